"""A straight line through a sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import correlation, linear_regression


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """seconds = intercept + slope * value, least squares; ``r2`` is the share of the variance that it explains."""

    intercept: float
    slope: float
    r2: float


def fit_line(values: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Fit at least two different values; a constant is a perfect line."""
    slope, intercept = linear_regression(values, seconds)
    r2 = 1.0 if len(set(seconds)) == 1 else correlation(values, seconds) ** 2
    return Fit(intercept=intercept, slope=slope, r2=r2)
