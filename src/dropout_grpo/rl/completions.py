"""A table of completions to print: questions, answers under their masks, rewards, advantages."""

import math
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

_WIDTH = 60
"""Maximum number of characters shown of a question or an answer."""


def completions_table(
    step: int,
    questions: Sequence[str],
    completions: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[float]],
    advantages: Sequence[Sequence[float]],
    answers: Sequence[str],
) -> Table:
    """One section per question and one row per rollout, as TRL's ``log_completions`` prints them.

    Args:
        step: number of the training step.
        questions: N texts.
        completions: K texts per question.
        rewards: K per question; NaN for a rollout that no reward function judged.
        advantages: K per question.
        answers: N right answers.
    """
    table = Table("question (right answer)", "answer under its mask", "reward", "advantage", title=f"step {step}")
    for question, said, earned, gained, right in zip(questions, completions, rewards, advantages, answers, strict=True):
        for k, (text, reward, advantage) in enumerate(zip(said, earned, gained, strict=True)):
            first = f"{_cut(question)} ({_cut(right)})" if k == 0 else ""
            judged = "none" if math.isnan(reward) else f"{reward:.2f}"
            # Text, so that brackets in an answer are not read as markup.
            table.add_row(Text(first), Text(_cut(text)), judged, f"{advantage:+.2f}", end_section=k == len(said) - 1)
    return table


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 4]} ..."
