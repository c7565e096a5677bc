"""Turns the records of metrics.jsonl into curves."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from dropout_grpo.runs.read import JsonObject, number

CURRICULUM = "sft"


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of one part of a run by ascending step: two lists of equal length, empty if never logged."""

    steps: list[int]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.steps)


def series(metrics: Sequence[JsonObject], part: str, key: str) -> Series:
    """The finite values of `key` in the records of `part`.

    A resumed run writes the steps after its last checkpoint a second time: the later record counts.
    """
    by_step: dict[int, float] = {}
    for record in metrics:
        if record["part"] == part:
            value = number(record, key, f"metrics.jsonl, part {part!r}, step {record['step']}")
            if value is not None:
                by_step[record["step"]] = value
    steps = sorted(by_step)
    return Series(steps, [by_step[step] for step in steps])


def complement(curve: Series) -> Series:
    """1 - value: the share of mixed groups from the share of groups whose rewards are all equal."""
    return Series(curve.steps, [1.0 - value for value in curve.values])


def running_mean(curve: Series, window: int, breaks: Sequence[int] = ()) -> Series:
    """Mean over the `window` values around each one, fewer at the two ends; window must be odd.

    No mean crosses a step of `breaks`, at which something else begins.
    """
    assert window % 2 == 1, window
    reach = window // 2
    edges = [0, *sorted(bisect_left(curve.steps, step) for step in breaks), len(curve.steps)]
    means = []
    for start, end in pairwise(edges):
        for i in range(start, end):
            around = curve.values[max(start, i - reach) : min(end, i + reach + 1)]
            means.append(sum(around) / len(around))
    return Series(curve.steps, means)


def stage_starts(metrics: Sequence[JsonObject]) -> list[tuple[int, int]]:
    """(first step, stage) of every stage of the curriculum, in order."""
    stages = series(metrics, CURRICULUM, "stage")
    starts: list[tuple[int, int]] = []
    for step, stage in zip(stages.steps, stages.values, strict=True):
        if not starts or starts[-1][1] != int(stage):
            starts.append((step, int(stage)))
    return starts


def arms(metrics: Sequence[JsonObject]) -> list[str]:
    """The reinforcement-learning parts of the run in order of appearance: every part but the curriculum."""
    return list(dict.fromkeys(record["part"] for record in metrics if record["part"] != CURRICULUM))
