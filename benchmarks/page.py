"""Redo the tables and figures of docs/performance.md from benchmarks/results/*.json: python benchmarks/page.py"""

from pathlib import Path

from dropout_grpo.bench.page import write_page

HERE = Path(__file__).parent

if __name__ == "__main__":
    write_page(HERE.parent / "docs" / "performance.md", HERE / "results")
