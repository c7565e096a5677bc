"""``python -m dropout_grpo.evidence.studies.gpu``: what is checked and measured on a GPU, with results as JSON.

Parts: tests (exactness, ``pytest -m gpu``), gpt2-cuda (the benchmark), gpt2-cuda-sweep (how it grows). Needs the
package (``pip install -e .``) and pytest; fails if a test fails or none could run.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.evidence.bench.config import BenchConfig
from dropout_grpo.evidence.bench.machine import machine
from dropout_grpo.evidence.bench.run import run_bench
from dropout_grpo.evidence.bench.tables import render
from dropout_grpo.runs.folder import provenance, write_json

ROOT = Path(__file__).parents[4]
PARTS = ("tests", "gpt2-cuda", "gpt2-cuda-sweep")


def benchmarks() -> dict[str, tuple[BenchConfig, bool]]:
    """By part: batches that fill a GPU, and whether it is a sweep."""
    config = BenchConfig(size="gpt2", device="cuda", questions=128, problems=1024, micro_batch_size=2048)
    sweep = replace(config, num_generations=(32,), repeats=3, beside=())
    return {"gpt2-cuda": (config, False), "gpt2-cuda-sweep": (sweep, True)}


def has_device() -> bool:
    """Is there anything to check and measure on?"""
    return torch.cuda.is_available()


class Outcomes:
    """A pytest plugin that counts."""

    def __init__(self) -> None:
        self.passed, self.skipped, self.failed = 0, 0, []  # type: tuple[int, int, list[str]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test passes by its call alone, and fails or is skipped in any phase."""
        if report.failed:
            self.failed.append(report.nodeid)
        self.skipped += report.skipped
        self.passed += report.passed and report.when == "call"


def run_tests() -> dict[str, Any]:
    """The tests marked gpu."""
    outcomes, start = Outcomes(), time.monotonic()
    pytest.main(["-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests")], plugins=[outcomes])
    return {
        "kind": "tests",
        **vars(outcomes),
        "seconds": round(time.monotonic() - start, 1),
        "machine": machine(),
        **provenance(),
    }


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if not has_device():
        print("torch finds no CUDA device here: nothing to check or measure.", file=sys.stderr)
        return 2
    status = 0
    if "tests" in options.parts:
        found = run_tests()
        write_json(options.out / "gpu-tests.json", found)
        status = 1 if found["failed"] or not found["passed"] else 0
    for name, (config, sweep) in benchmarks().items():
        if name in options.parts:
            result = run_bench(config, sweep=sweep)
            write_json(options.out / f"{name}.json", result)
            print(render(result))
    return status


if __name__ == "__main__":
    sys.exit(main())
