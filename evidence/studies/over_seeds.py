"""Differences over seeds: paired Student's t, with Holm's correction for the comparisons of a table.

A seed gives a baseline, the questions and the noise, so the seeds are the independent units. Problems of one network
are not: a test that pools them over the seeds compares these networks, not the methods that made them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import NormalDist, fmean, stdev

from scipy import stats

from evidence.pages.markdown import table

COLUMNS = (
    "arm",
    "compared with",
    "difference, points",
    "95 % interval over seeds",
    "p",
    "p, Holm",
    "seeds ahead",
    "these networks: 95 % interval",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """The mean difference of paired values, one pair per seed. Without a second seed there is no interval and no p."""

    difference: float
    ci95: tuple[float, float] | None
    p: float | None
    ahead: int  # seeds with a positive difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """An arm and what it is compared with: a share for each seed, in the same order."""

    arm: str
    other: str
    of_arm: Sequence[float]
    of_other: Sequence[float]
    networks: Sequence[float] | None = None  # interval of the difference over the problems of these networks

    @property
    def paired(self) -> Paired:
        """The difference over seeds."""
        return paired(self.of_other, self.of_arm)


def t_interval(values: Sequence[float]) -> list[float] | None:
    """95 % interval of the mean of independent values, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return [fmean(values) - half, fmean(values) + half]


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Second minus first, seed by seed: mean, 95 % interval and two-sided p of Student's t.

    Equal values for every seed have p = 1.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean, interval = fmean(differences), t_interval(differences)
    ahead = sum(d > 0 for d in differences)
    if interval is None:
        return Paired(difference=mean, ci95=None, p=None, ahead=ahead)
    error = stdev(differences) / sqrt(len(differences))
    t = abs(mean) / error if error else (inf if mean else 0.0)
    p = 2 * float(stats.t.sf(t, len(differences) - 1))
    return Paired(difference=mean, ci95=(interval[0], interval[1]), p=p, ahead=ahead)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the same order: the i-th smallest of n times n - i + 1, at least the one before."""
    n, adjusted, so_far = len(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(n), key=lambda i: p_values[i])):
        so_far = max(so_far, min(1.0, (n - rank) * p_values[place]))
        adjusted[place] = so_far
    return adjusted


_FOUND = 1 + NormalDist().inv_cdf(0.8) / NormalDist().inv_cdf(0.975)


def detectable(interval: Sequence[float]) -> float:
    """The difference that a test at 0.05 finds in 80 % of cases, from the 95 % interval of a difference near 0.

    With a standard error s it is (1.96 + 0.84) s, and the interval is 2 x 1.96 s wide (normal approximation).
    """
    low, high = interval
    return _FOUND * (high - low) / 2


def short_p(p: float | None) -> str:
    """A p-value with two digits; empty if there is none."""
    return "" if p is None else f"{p:.2g}"


def short_holm(p_values: Sequence[float | None]) -> list[str]:
    """Adjusted p-values with two digits; all empty if there is a single seed."""
    known = [p for p in p_values if p is not None]
    return [short_p(p) for p in holm(known)] if len(known) == len(p_values) else [""] * len(p_values)


def signed_range(interval: Sequence[float] | None) -> str:
    """An interval of differences in points, with signs."""
    return "" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"


def distinct(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Without the pairs that occur before in the other direction: a comparison counts once in Holm's correction."""
    first: dict[frozenset[str], Comparison] = {}
    for comparison in comparisons:
        first.setdefault(frozenset((comparison.arm, comparison.other)), comparison)
    return list(first.values())


def comparisons_table(comparisons: Sequence[Comparison]) -> str:
    """One row per comparison, as Markdown; Holm's correction is for all rows."""
    tested = [comparison.paired for comparison in comparisons]
    adjusted = short_holm([test.p for test in tested])
    rows = [
        [
            comparison.arm,
            comparison.other,
            f"{100 * test.difference:+.2f}",
            signed_range(test.ci95),
            short_p(test.p),
            corrected,
            f"{test.ahead} of {len(comparison.of_arm)}",
            signed_range(comparison.networks),
        ]
        for comparison, test, corrected in zip(comparisons, tested, adjusted, strict=True)
    ]
    shown = len(COLUMNS) if any(comparison.networks for comparison in comparisons) else -1
    return table(COLUMNS[:shown], [row[:shown] for row in rows])
