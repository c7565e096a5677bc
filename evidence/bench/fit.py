"""Straight lines fitted to sweeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import correlation, linear_regression


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Least squares: seconds = intercept + slope * value. ``r2`` is the explained share of the variance."""

    intercept: float
    slope: float
    r2: float


def fit_line(values: Sequence[float], seconds: Sequence[float]) -> Fit:
    """Fits a line to at least two different values. Equal seconds give r2 = 1."""
    slope, intercept = linear_regression(values, seconds)
    r2 = 1.0 if len(set(seconds)) == 1 else correlation(values, seconds) ** 2
    return Fit(intercept=intercept, slope=slope, r2=r2)
