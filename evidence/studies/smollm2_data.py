"""The problem files of ``make gsm8k``, for training, validation and tests.

GSM8K-Aug's 500 validation problems are also in GSM8K's training file, so they and their variations are left out of
training. MAWPS and ASDiv-A are one file of short problems; a part of it is held out as a test of one- and two-step
problems.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.vary import vary
from dropout_grpo.errors import UserError

TRAIN, TEST = "gsm8k_train.jsonl", "gsm8k_test.jsonl"
VALID = "gsm8k_aug_valid.json"
SHORT = "mawps_asdiva_train.coconut.json"
TESTS = ("svamp*.json*", "multiarith*.json*", "asdiv*.json*")

SPLIT_NAMES = ("train", "grpo", "valid", "short-test")

_HELD_OUT = 500
_SHORT_VALID, _SHORT_TEST = 200, 500
_MOST_STEPS, _MOST_CHARACTERS = 2, 180


def write_files(data: Path, out: Path, *, seed: int = 0) -> None:
    """Write the problem files of the study to a folder; an existing folder with all of them is kept.

    Raises:
        UserError: GSM8K's training or test file is missing.
    """
    targets = [out / f"{name}.json" for name in SPLIT_NAMES]
    if all(target.is_file() for target in targets):
        return
    for name in (TRAIN, TEST):
        if not (data / name).is_file():
            raise UserError(f"{data / name} is missing: give the folder with GSM8K's files as published.")
    gsm8k = load_problems(data / TRAIN)
    valid = load_problems(data / VALID, require_steps=False) if (data / VALID).is_file() else gsm8k[-_HELD_OUT:]
    short = load_problems(data / SHORT) if (data / SHORT).is_file() else []
    made = split(gsm8k, valid, short, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    for name, target in zip(SPLIT_NAMES, targets, strict=True):
        save_problems(target, made[name])


def split(
    gsm8k: Sequence[Problem], valid: Sequence[Problem], short: Sequence[Problem], *, seed: int
) -> dict[str, list[Problem]]:
    """Divide and vary the problems; no question of one file is in another.

    Args:
        gsm8k: GSM8K's training problems.
        valid: GSM8K's problems to validate on; they are removed from ``gsm8k``.
        short: problems of one or two steps; may be empty.
        seed: seed of the division and of the variations.
    """
    asked = {key(p) for p in valid}
    long = [p for p in gsm8k if key(p) not in asked]
    few = distinct(short)
    random.Random(seed).shuffle(few)
    short_valid, short_test = few[:_SHORT_VALID], few[_SHORT_VALID : _SHORT_VALID + _SHORT_TEST]
    short_train = few[_SHORT_VALID + _SHORT_TEST :]
    train = [p for p in (*long, *short_train) if fits(p)]
    trained = {key(p) for p in train}
    made = {
        "train": train,
        "grpo": [p for p in vary(train, 1, seed=seed) if key(p) not in trained],
        "valid": [*valid[: _SHORT_VALID if few else 2 * _SHORT_VALID], *short_valid],
        "short-test": short_test,
    }
    return {name: [replace(p, id=i, extra={}) for i, p in enumerate(problems)] for name, problems in made.items()}


def test_files(data: Path, out: Path) -> list[Path]:
    """The files to measure checkpoints on: GSM8K's test file, other given test files, and the held-out problems."""
    given = sorted({file for pattern in TESTS for file in data.glob(pattern)})
    return [data / TEST, *given, *([out / "short-test.json"] if (data / SHORT).is_file() else [])]


def fits(problem: Problem) -> bool:
    """Whether the problem has steps, but not too many, and a question that is not too long."""
    return 1 <= len(problem.steps) <= _MOST_STEPS and len(problem.question) <= _MOST_CHARACTERS


def distinct(problems: Iterable[Problem]) -> list[Problem]:
    """The first problem of each question."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(key(problem), problem)
    return list(first.values())


def key(problem: Problem) -> str:
    """The question without differences of white space and case."""
    return " ".join(problem.question.split()).casefold()
