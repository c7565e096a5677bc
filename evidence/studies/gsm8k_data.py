"""The problem files of ``make gsm8k``: ``python -m evidence.studies.gsm8k_data DATA --out FOLDER``.

GSM8K-Aug's 500 validation problems are also in GSM8K's training file, so they and their variations are left out of
training. MAWPS and ASDiv-A are one file of short problems; a part of it is held out as a test of one- and two-step
problems.
"""

import argparse
import random
import sys
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

SPLIT_NAMES = ("short-test", "valid", "grpo", "train")

_HELD_OUT = 500
_SHORT_VALID, _SHORT_TEST = 200, 500

MOST = (2, 180)
"""Steps, and characters of the question, that a problem to train on has at most."""


def write_files(data: Path, out: Path, *, seed: int = 0, most: tuple[int, int] = MOST) -> None:
    """Write the problem files of the study to a folder, once; there is no test of short problems without their file.

    Args:
        data: folder with GSM8K's files.
        out: folder to write to.
        seed: seed of the division and of the variations.
        most: like ``MOST``.

    Raises:
        UserError: GSM8K's training or test file is missing.
    """
    if (out / f"{SPLIT_NAMES[-1]}.json").is_file():
        return
    for name in (TRAIN, TEST):
        if not (data / name).is_file():
            raise UserError(f"{data / name} is missing: give the folder with GSM8K's files as published.")
    gsm8k = load_problems(data / TRAIN)
    valid = load_problems(data / VALID, require_steps=False) if (data / VALID).is_file() else gsm8k[-_HELD_OUT:]
    short = load_problems(data / SHORT) if (data / SHORT).is_file() else []
    splits = split(gsm8k, valid, short, seed=seed, most=most)
    out.mkdir(parents=True, exist_ok=True)
    for name in SPLIT_NAMES:
        if splits[name]:
            save_problems(out / f"{name}.json", splits[name])


def split(
    gsm8k: Sequence[Problem],
    valid: Sequence[Problem],
    short: Sequence[Problem],
    *,
    seed: int,
    most: tuple[int, int] = MOST,
) -> dict[str, list[Problem]]:
    """Divide and vary the problems; no question of one file is in another.

    Args:
        gsm8k: GSM8K's training problems.
        valid: GSM8K's problems to validate on; they are removed from ``gsm8k``.
        short: problems of one or two steps; may be empty.
        seed: seed of the division and of the variations.
        most: like ``MOST``.
    """
    held_out = {key(p) for p in valid}
    long = [p for p in gsm8k if key(p) not in held_out]
    few = distinct(short)
    random.Random(seed).shuffle(few)
    short_valid, short_test = few[:_SHORT_VALID], few[_SHORT_VALID : _SHORT_VALID + _SHORT_TEST]
    short_train = few[_SHORT_VALID + _SHORT_TEST :]
    train = [p for p in (*long, *short_train) if fits(p, most)]
    taken = {key(p) for p in (*train, *valid, *short_valid, *short_test)}
    splits = {
        "train": train,
        "grpo": [p for p in vary(train, 1, seed=seed) if key(p) not in taken],
        "valid": [*valid[: _SHORT_VALID if few else 2 * _SHORT_VALID], *short_valid],
        "short-test": short_test,
    }
    return {name: [replace(p, id=i, extra={}) for i, p in enumerate(problems)] for name, problems in splits.items()}


def fits(problem: Problem, most: tuple[int, int]) -> bool:
    """Whether the problem has steps, but not too many, and a question that is not too long."""
    steps, characters = most
    return 1 <= len(problem.steps) <= steps and len(problem.question) <= characters


def distinct(problems: Iterable[Problem]) -> list[Problem]:
    """The first problem of each question."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(key(problem), problem)
    return list(first.values())


def key(problem: Problem) -> str:
    """The question without differences of white space and case."""
    return " ".join(problem.question.split()).casefold()


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with GSM8K's files")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    of = ("STEPS", "CHARACTERS")
    parser.add_argument("--most", type=int, nargs=2, default=MOST, metavar=of, help="of a problem to train on")
    options = parser.parse_args(argv)
    try:
        write_files(options.data, options.out, most=tuple(options.most))
    except UserError as error:
        sys.exit(f"gsm8k_data: error: {error}")


if __name__ == "__main__":
    main()
