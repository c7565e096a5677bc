"""``python -m evidence.bench.gpu``: tests, correctness at real sizes and speed on a GPU, in 8 minutes.

The most important parts come first: the tests marked gpu, models of 0.1 to 1.5 billion parameters, the benchmark at
GPT-2's size, and how its cost grows. Each part is a process of its own with a time limit. It writes its JSON after
every test, size or case, so a part that fails or takes too long loses nothing that it has measured, and the next one
starts. Needs the package's dependencies and pytest; from a source tree that is not installed, set ``PYTHONPATH=src``.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dropout_grpo.distributed.device import unused_gpu
from dropout_grpo.runs.files import write_json
from dropout_grpo.runs.provenance import provenance
from evidence.bench.config import BenchConfig
from evidence.bench.gpu_sizes import Work, check_sizes
from evidence.bench.measure import machine, run_bench
from evidence.places import PERFORMANCE_FOLDER, ROOT

DEVICE: Literal["cpu", "cuda"] = "cuda"


@dataclass(frozen=True, slots=True)
class Part:
    """One part: what it does, its time limit in seconds, and how it runs; it writes a file and returns what failed."""

    what: str
    seconds: int
    run: Callable[[Path], list[str]]


def has_device() -> bool:
    """True if there is a CUDA device."""
    return torch.cuda.is_available()


class Outcomes:
    """A pytest plugin that counts outcomes and writes them after every test."""

    def __init__(self, file: Path) -> None:
        self.passed, self.skipped, self.failed = 0, 0, []  # type: tuple[int, int, list[str]]
        self._file, self._start = file, time.monotonic()
        self._where = {"machine": machine(), **provenance()}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Counts a test as passed in its call phase, and as failed or skipped in any phase."""
        if report.failed:
            self.failed.append(report.nodeid)
        self.skipped += report.skipped
        self.passed += report.passed and report.when == "call"
        if report.when == "teardown":
            self.write()

    def write(self) -> None:
        """Writes the counts so far."""
        counts = {"passed": self.passed, "skipped": self.skipped, "failed": self.failed}
        seconds = round(time.monotonic() - self._start, 1)
        write_json(self._file, {"kind": "tests", **counts, "seconds": seconds, **self._where})


def run_tests(file: Path) -> list[str]:
    """Runs the tests marked gpu."""
    import pytest  # here, since the other parts need none

    outcomes = Outcomes(file)
    files = sorted(map(str, (ROOT / "tests" / "exactness").glob("test_gpu*.py")))  # others need the extra "dev"
    pytest.main(["-m", "gpu", "-p", "no:cacheprovider", *files], plugins=[outcomes])
    outcomes.write()
    return outcomes.failed if outcomes.passed else [*outcomes.failed, "no test passed"]


def run_sizes(file: Path) -> list[str]:
    """Checks models of real sizes."""
    where = {"machine": machine(), **provenance()}
    rows = check_sizes(
        torch.device(DEVICE), Work(), lambda rows: write_json(file, {"kind": "sizes", "results": rows, **where})
    )
    return [f"{row['size']}: {what}" for row in rows for what in row["wrong"]]


def gpt2(sweep: bool) -> BenchConfig:
    """The benchmark's options, with batches that fill a GPU."""
    config = BenchConfig(
        size="gpt2",
        device=DEVICE,
        num_generations=(32,),
        questions=128,
        problems=1024,
        micro_batch_size=2048,
        published_rows=2,
        repeats=3,
    )
    return replace(config, beside=()) if sweep else config


def run_gpt2(file: Path, *, sweep: bool) -> list[str]:
    """Runs the benchmark or its sweep."""
    return run_bench(gpt2(sweep), sweep=sweep, save=lambda result: write_json(file, result))["failed"]


PARTS = {  # the most important first; together 8 minutes
    "gpu-tests": Part("tests marked gpu", 150, run_tests),
    "gpu-sizes": Part("models of 0.1 to 1.5 billion parameters", 120, run_sizes),
    "gpt2-cuda": Part("the benchmark at GPT-2's size", 150, lambda file: run_gpt2(file, sweep=False)),
    "gpt2-cuda-sweep": Part("how its cost grows", 60, lambda file: run_gpt2(file, sweep=True)),
}


def main() -> int:
    """Runs the parts; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PERFORMANCE_FOLDER, help="folder for the JSON files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--here", action="store_true", help="run the parts in this process, without a time limit")
    options = parser.parse_args()
    if not has_device():
        print(unused_gpu() or "torch finds no CUDA device here: nothing to check or measure.", file=sys.stderr)
        return 2
    parts = {name: PARTS[name] for name in options.parts}
    if options.here:
        failed = [f"{name}: {what}" for name, part in parts.items() for what in part.run(options.out / f"{name}.json")]
    else:
        print(plan(parts), flush=True)
        failed = [why for name, part in parts.items() if (why := _run(name, part, options.out)) is not None]
    for line in failed:
        print(f"failed: {line}", flush=True)
    return 1 if failed else 0


def plan(parts: dict[str, Part]) -> str:
    """The parts with their time limits, one per line."""
    lines = [f"  {part.seconds:4d} s  {name}: {part.what}" for name, part in parts.items()]
    return "\n".join(["plan, at most:", *lines, f"  {sum(part.seconds for part in parts.values()):4d} s  in all"])


def _run(name: str, part: Part, out: Path) -> str | None:
    """Run a part in a process of its own; returns what failed, which the process has printed line by line."""
    start = time.monotonic()
    command = [sys.executable, "-m", "evidence.bench.gpu", "--here", "--parts", name, "--out", str(out)]
    try:
        status = subprocess.run(command, timeout=part.seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"{name}: stopped after {part.seconds} s; {name}.json has what was measured until then"
    print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return None if status == 0 else f"{name}: exit status {status}"


if __name__ == "__main__":
    sys.exit(main())
