"""Paired comparison of two models on the same problems."""

from collections.abc import Sequence
from typing import Any

from dropout_grpo.evaluation.intervals import paired_interval
from dropout_grpo.evaluation.metrics import mcnemar


def compare(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """Compare two models; entry i of both lists says whether problem i was solved.

    Returns:
        ``wins`` (only the second solves it), ``losses`` (only the first), ``mcnemar_p`` of the exact test, and
        ``difference``, second minus first, with ``ci95`` (Newcombe's paired interval).
    """
    pairs = list(zip(first, second, strict=True))
    wins, losses = pairs.count((False, True)), pairs.count((True, False))
    interval = paired_interval(pairs.count((True, True)), wins, losses, pairs.count((False, False)))
    return {
        "wins": wins,
        "losses": losses,
        "mcnemar_p": mcnemar(wins, losses),
        "difference": (wins - losses) / len(pairs),
        "ci95": list(interval),
    }
