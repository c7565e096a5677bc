"""The registry of tasks: a new task is one file."""

import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from dropout_grpo.data.files import load_problems
from dropout_grpo.tasks.base import SPLIT_NAMES
from dropout_grpo.tasks.registry import DEFAULT_TASK, TASKS

CUPS = '''
"""A third task: a ball is under one of four cups, which are swapped."""
from dataclasses import dataclass

from dropout_grpo.data.problem import Problem
from dropout_grpo.config.ranges import check_ranges, ranged, seed_field
from dropout_grpo.tasks.base import SPLIT_NAMES, Task, below, deal_split


@dataclass(frozen=True, kw_only=True)
class CupsConfig:
    """Settings of the cups.

    Attributes:
        seed: seed of all problems.
        n_train: number of problems with steps.
        n_grpo: number of problems without steps.
        n_valid: number of problems to validate on.
        n_test: number of problems to measure on.
        swaps: number of swaps.
    """

    seed: int = seed_field()
    n_train: int = ranged(100, at_least=0)
    n_grpo: int = ranged(100, at_least=0)
    n_valid: int = ranged(100, at_least=0)
    n_test: int = ranged(100, at_least=0)
    swaps: int = ranged(2, at_least=1)

    def __post_init__(self):
        check_ranges(self, "cups")


def make_splits(config, wanted=SPLIT_NAMES):
    def draw(rng):
        place = below(rng, 4)
        told, steps = [f"ball {place}"], []
        for _ in range(config.swaps):
            a, b = below(rng, 4), below(rng, 4)
            place = {a: b, b: a}.get(place, place)
            told.append(f"swap {a} {b}")
            steps.append(f"ball {place}")
        return Problem(id=0, question=" . ".join(told), steps=tuple(steps), answer=str(place))

    return {split: deal_split("cups", split, getattr(config, f"n_{split}"), config.seed, draw) for split in wanted}


def vocabulary(config):
    return [".", "0", "1", "2", "3", "ball", "swap"]


TASK = Task(name="cups", config=CupsConfig, make_splits=make_splits, vocabulary=vocabulary)
'''

PROGRAM = """
import sys

from dropout_grpo import tasks

folder, out = sys.argv[1:]
tasks.__path__.append(folder)  # as if the file were in the package

from dropout_grpo.cli.main import main

assert "torch" not in sys.modules
assert main(["data", "--task", "cups", "--cups.swaps=3", "--cups.n_valid", "7", "--out", out]) == 0
assert main(["data", "--task", "cups", "--cups.swaps", "0", "--out", out + "-2"]) == 2
assert main(["sft", "--smoke", "--data.task", "cups", "--data.cups.swaps", "3", "--run_dir", out + "-run"]) == 0
"""


@pytest.mark.slow
def test_a_third_task_is_one_file(tmp_path: Path) -> None:
    """``data`` makes its problems, and ``--smoke`` trains on them."""
    (tmp_path / "cups.py").write_text(CUPS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(tmp_path / "data")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cups.swaps=0 must be at least 1" in done.stderr.replace("\n", " ")
    assert "pass@1" in done.stdout
    problems = load_problems(tmp_path / "data" / "valid.json")
    assert len(problems) == 7
    assert {len(problem.steps) for problem in problems} == {3}


def test_the_entries_are_complete() -> None:
    assert next(iter(TASKS)) == DEFAULT_TASK == "word_problems"
    for name, task in TASKS.items():
        assert task.name == name
        assert is_dataclass(task.config)
        few = task.config(n_train=3, n_grpo=2, n_valid=1, n_test=1)
        splits = task.make_splits(few, SPLIT_NAMES)
        assert [len(splits[split]) for split in SPLIT_NAMES] == [3, 2, 1, 1]
        assert len(task.vocabulary(few)) == len(set(task.vocabulary(few))) > 0
