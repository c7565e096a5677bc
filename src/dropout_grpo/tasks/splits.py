"""Dealing generated problems to the splits of a task, so that no question can ever be in two of them.

A question belongs to one split by a hash of its text, whatever the seed, the counts and the settings: splits
never overlap, not even those of two different runs. Each split has its own random stream, so a larger count
extends that split and changes nothing else.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TypeVar

from dropout_grpo.errors import UserError
from dropout_grpo.problems.problem import Problem

SPLITS = ("train", "grpo", "valid", "test")
"""For the curriculum, for GRPO (answers alone), for choosing settings, for the final numbers."""

_SPLIT_OF_HASH = ("train", "train", "grpo", "grpo", "grpo", "grpo", "valid", "test")
_MAX_MISSES = 10_000  # draws in a row without a new question of the split: its share of the questions is used up

_Item = TypeVar("_Item")


def split_of(question: str) -> str:
    """The one split that a question may be in."""
    digest = blake2b(question.encode(), digest_size=8, person=b"split").digest()
    return _SPLIT_OF_HASH[digest[0] % len(_SPLIT_OF_HASH)]


def deal_split(task: str, split: str, count: int, seed: int, draw: Callable[[random.Random], Problem]) -> list[Problem]:
    """The first `count` distinct problems of a split, numbered from 0; those of ``grpo`` without their steps.

    Args:
        task: its name, part of the stream's seed and of messages.
        split: one of `SPLITS`.
        count: how many.
        seed: which problems.
        draw: draws any problem of the task.

    Raises:
        UserError: the task does not have that many questions for this split.
    """
    rng = random.Random(f"{task}/{seed}/{split}")
    problems: list[Problem] = []
    seen: set[str] = set()
    misses = 0
    while len(problems) < count:
        problem = draw(rng)
        if split_of(problem.question) != split or problem.question in seen:
            misses += 1
            if misses > _MAX_MISSES:
                raise UserError(
                    f"{task}: n_{split} is {count}, but no new question turned up after {len(problems)}; "
                    f"lower n_{split}, or choose settings that allow more different questions"
                )
            continue
        misses = 0
        seen.add(problem.question)
        steps = () if split == "grpo" else problem.steps
        problems.append(replace(problem, id=len(problems), steps=steps))
    return problems


def below(rng: random.Random, n: int) -> int:
    """Uniform in 0..n-1. From `random()` alone, the one method whose sequence Python promises to keep."""
    return int(rng.random() * n)


def pick(rng: random.Random, items: Sequence[_Item]) -> _Item:
    """One of the items, each as likely."""
    return items[int(rng.random() * len(items))]
