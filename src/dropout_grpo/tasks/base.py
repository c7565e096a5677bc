"""What a built-in task is, and how its problems are dealt to splits. A question can occur in one split only.

The hash of its text assigns a question to a split, for any seed, counts and settings. So splits never overlap, not even
those of two runs. Each split has a separate random stream: a larger count appends problems to that split and changes
nothing else.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, TypeVar

from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError

SPLIT_NAMES = ("train", "grpo", "valid", "test")
"""For the curriculum, for GRPO (without steps), for choosing settings, for the final results."""

_SPLIT_OF_HASH = ("train", "train", "grpo", "grpo", "grpo", "grpo", "valid", "test")
_MAX_MISSES = 10_000  # draws in a row without a new question, after which the split counts as exhausted

_Item = TypeVar("_Item")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A built-in task.

    Attributes:
        name: the name on the command line and in recipes.
        config: its settings, a dataclass whose fields all have defaults; ``n_train``, ``n_grpo``, ``n_valid`` and
            ``n_test`` are the sizes of its splits.
        make_splits: makes the wanted splits from the settings; see ``deal_split``.
        vocabulary: every word of the questions, steps and answers, for the tokenizer of a model made from scratch.
    """

    name: str
    config: type[Any]
    make_splits: Callable[[Any, Sequence[str]], dict[str, list[Problem]]]
    vocabulary: Callable[[Any], list[str]]


def split_of(question: str) -> str:
    """The split that a question belongs to."""
    digest = blake2b(question.encode(), digest_size=8, person=b"split").digest()
    return _SPLIT_OF_HASH[digest[0] % len(_SPLIT_OF_HASH)]


def deal_split(task: str, split: str, count: int, seed: int, draw: Callable[[random.Random], Problem]) -> list[Problem]:
    """The first ``count`` distinct problems of a split, with ids from 0. Those of ``grpo`` have no steps.

    Args:
        task: name of the task, part of the random stream's seed and of messages.
        split: one of ``SPLIT_NAMES``.
        count: number of problems.
        seed: seed of the random stream.
        draw: draws a problem of the task.

    Raises:
        UserError: the task has fewer questions for this split.
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
                    f"{task}.n_{split}={count}, but only {len(problems)} different questions were found; "
                    f"lower n_{split}, or choose settings that allow more different questions"
                )
            continue
        misses = 0
        seen.add(problem.question)
        steps = () if split == "grpo" else problem.steps
        problems.append(replace(problem, id=len(problems), steps=steps))
    return problems


def below(rng: random.Random, n: int) -> int:
    """A uniform draw from 0 to n - 1. Uses ``random()``, the only method whose sequence Python guarantees."""
    return int(rng.random() * n)


def pick(rng: random.Random, items: Sequence[_Item]) -> _Item:
    """A uniform draw from the items."""
    return items[int(rng.random() * len(items))]
