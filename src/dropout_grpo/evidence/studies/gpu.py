"""``python -m dropout_grpo.evidence.studies.gpu``: tests and benchmark on a GPU, with results as JSON.

Parts: tests (exactness, ``pytest -m gpu``), gpt2-cuda (the benchmark), gpt2-cuda-sweep (how the cost grows). Needs the
package (``pip install -e .``) and pytest. Fails if a test fails or if no test could run.
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
from dropout_grpo.evidence.places import PERFORMANCE_FOLDER, ROOT
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.write import write_json

PARTS = ("tests", "gpt2-cuda", "gpt2-cuda-sweep")


def benchmarks() -> dict[str, tuple[BenchConfig, bool]]:
    """The benchmark parts by name: options with batches that fill a GPU, and whether the part is a sweep."""
    config = BenchConfig(size="gpt2", device="cuda", questions=128, problems=1024, micro_batch_size=2048)
    sweep = replace(config, num_generations=(32,), repeats=3, beside=())
    return {"gpt2-cuda": (config, False), "gpt2-cuda-sweep": (sweep, True)}


def has_device() -> bool:
    """True if there is a CUDA device."""
    return torch.cuda.is_available()


class Outcomes:
    """A pytest plugin that counts outcomes."""

    def __init__(self) -> None:
        self.passed, self.skipped, self.failed = 0, 0, []  # type: tuple[int, int, list[str]]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a test as passed in its call phase, and as failed or skipped in any phase."""
        if report.failed:
            self.failed.append(report.nodeid)
        self.skipped += report.skipped
        self.passed += report.passed and report.when == "call"


def run_tests() -> dict[str, Any]:
    """Runs the tests marked gpu."""
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
    """Runs the parts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PERFORMANCE_FOLDER, help="folder for the JSON files")
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
