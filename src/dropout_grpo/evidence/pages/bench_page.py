"""``python -m dropout_grpo.evidence.pages.bench_page``: redo docs/performance.md from benchmarks/results/*.json."""

from pathlib import Path

from dropout_grpo.evidence.bench.page import write_page

ROOT = Path(__file__).parents[4]

if __name__ == "__main__":
    write_page(ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results")
