"""One problem: what a question, its worked steps and its answer are called everywhere in this package."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its answer and, for the curriculum, its worked steps.

    Attributes:
        id: index of the problem in its set; it enters every rollout's seed.
        question: what the model reads, without the closing newline.
        steps: the chain of thought, one string a step; empty where only the answer is known.
        answer: what should follow ``### ``, as text.
        extra: the file's other columns, handed to reward functions by name.
    """

    id: int
    question: str
    steps: tuple[str, ...]
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict)
