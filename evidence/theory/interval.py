"""Confidence intervals of Monte-Carlo means."""

from collections.abc import Callable, Sequence
from math import exp, sqrt
from statistics import NormalDist, fmean, stdev

CONFIDENCE = 0.999
"""Confidence of every interval here: a true claim fails for one seed in a thousand."""

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean of independent values and its interval, by the central limit theorem."""
    mean, half = fmean(values), _Z * stdev(values) / sqrt(len(values))
    return mean, (mean - half, mean + half)


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Ratio of the means of paired positive values and its interval (delta method on the ratio's logarithm)."""
    ratio = fmean(above) / fmean(below)
    residuals = [a / fmean(above) - b / fmean(below) for a, b in zip(above, below, strict=True)]
    half = _Z * stdev(residuals) / sqrt(len(residuals))
    return ratio, (ratio * exp(-half), ratio * exp(half))


def jackknife_interval(n: int, statistic: Callable[[Sequence[int]], float]) -> tuple[float, tuple[float, float]]:
    """A statistic of n independent values and its interval, from the statistic with each value left out in turn.

    Args:
        n: number of values.
        statistic: computes it from the values at the given indices.
    """
    whole = statistic(range(n))
    parts = [statistic([i for i in range(n) if i != left_out]) for left_out in range(n)]
    half = _Z * sqrt((n - 1) / n * sum((part - fmean(parts)) ** 2 for part in parts))
    return whole, (whole - half, whole + half)


def inside(value: float, interval: tuple[float, float]) -> bool:
    """True if the value lies in the interval."""
    return interval[0] <= value <= interval[1]
