"""One problem: a question, its steps and its answer."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dropout_grpo.errors import UserError

Message = Mapping[str, Any]
"""A turn of a conversation, as in chat templates: ``{"role": "user", "content": "..."}``."""

Prompt = str | Sequence[Message]
"""What the model reads: a question, or a conversation that ends before the assistant's turn."""

LONGEST_TEXT = 1_000_000
"""Characters that a question, a step or an answer may have. Longer texts exceed every model's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with its answer and, for the curriculum, its steps.

    Attributes:
        id: index of the problem in its set; it enters every rollout's seed.
        question: what the model reads, without the closing newline. Of a conversation, the last turn's text.
        steps: the chain of thought, one string per step; empty if only the answer is known.
        answer: what should follow ``### ``, as text; empty if it is not known, and rewards judge without it.
        extra: the file's other columns, passed to reward functions by name.
        messages: the conversation that the model reads, if the prompt is one.

    Raises:
        UserError: a text is no string, is too long to be read, or holds a lone surrogate, which no tokenizer can
            encode; or ``steps`` is one string.
    """

    id: int
    question: str
    steps: tuple[str, ...]
    answer: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] | None = None

    def __post_init__(self) -> None:
        _check_text("the question", self.question)
        _check_text("the answer", self.answer)
        if isinstance(self.steps, str):
            raise UserError(f"steps is one string ({self.steps[:40]!r}): give a tuple, with one string for each step.")
        for number, step in enumerate(self.steps, start=1):
            _check_text(f"step {number}", step)
        for number, message in enumerate(self.messages or (), start=1):
            _check_text(f"message {number}", message["content"])

    @property
    def prompt(self) -> Prompt:
        """What the model reads: the conversation if there is one, else the question."""
        return self.question if self.messages is None else list(self.messages)


def with_equal_columns(problems: Sequence[Problem]) -> list[Problem]:
    """The problems with the same extra columns, those of all of them. A value that is missing is None.

    A reward function then gets the same columns for every batch.
    """
    names = dict.fromkeys(name for problem in problems for name in problem.extra)
    return [
        problem
        if problem.extra.keys() == names.keys()
        else replace(problem, extra={name: problem.extra.get(name) for name in names})
        for problem in problems
    ]


_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
"""In the text of an object, such as an image; it differs between processes."""


def problem_fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 of problems, in hexadecimal: equal for equal problems in equal order."""
    digest = hashlib.sha256()
    for problem in problems:
        extra = _ADDRESS.sub("", repr(sorted(problem.extra.items())))
        fields = [problem.id, problem.question, problem.steps, problem.answer, extra]
        if problem.messages is not None:
            fields.append([dict(message) for message in problem.messages])
        digest.update(json.dumps(fields, default=str).encode() + b"\n")
    return digest.hexdigest()


def _check_text(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"{name} must be a string, found {text!r:.40} of type {type(text).__name__}")
    if len(text) > LONGEST_TEXT:
        raise UserError(
            f"{name} has {len(text):,} characters ({text[:40]!r}...), and at most {LONGEST_TEXT:,} are read; shorten it"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - 20) : error.start + 20]
        raise UserError(
            f"{name} has a lone surrogate, {text[error.start]!r}, at character {error.start} ({around!r}); it is "
            "half of a character and cannot be encoded, so remove it or write the whole character"
        ) from error
