"""Intervals against values by hand, scipy, worked examples from the literature, and their coverage."""

import math
from statistics import NormalDist

import numpy
import pytest
from scipy.stats import binomtest

from dropout_grpo.evaluation.intervals import mean_interval, paired_interval, wilson_interval

Z = NormalDist().inv_cdf(0.975)


def test_wilson_by_hand() -> None:
    # z = 1.96, 5 of 10: centre 0.5, half width 1.96 sqrt(0.025 + 0.009604) / 1.38416 = 0.26341
    lo, hi = wilson_interval(5, 10)
    assert (lo, hi) == (pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5))
    # At 0 of n the closed form is (0, z^2 / (n + z^2)) = (0, 3.84146 / 13.84146).
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson_interval(10, 10) == (pytest.approx(1 - 0.277533, abs=1e-6), 1.0)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (1, 7), (806, 2000), (1232, 2000), (2000, 2000)])
def test_wilson_is_scipys(correct: int, n: int, confidence: float) -> None:
    oracle = binomtest(correct, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(correct, n, confidence) == (
        pytest.approx(oracle.low, abs=1e-12),
        pytest.approx(oracle.high, abs=1e-12),
    )


@pytest.mark.parametrize(
    ("correct", "n", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (0, 0, 0.95), (1, 5, 0.0), (1, 5, 95.0)]
)
def test_wilson_refuses(correct: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"is (-1|6|0|0\.0|95\.0):"):
        wilson_interval(correct, n, confidence)


@pytest.mark.parametrize(("correct", "n"), [(0, 3), (3, 3), (1, 1), (2, 7), (806, 2000)])
def test_the_mean_of_zeros_and_ones_has_wilsons_interval(correct: int, n: int) -> None:
    found = mean_interval([1.0] * correct + [0.0] * (n - correct))
    assert found == pytest.approx(wilson_interval(correct, n), abs=1e-12)


def test_the_interval_of_fractions_by_hand() -> None:
    # Mean 1/2, variance (1/16 + 1/16 + 1/4 + 1/4 + 0 + ...) / 10 = 1/16: as uncertain as 10 * 1/4 * 16 = 40 trials.
    assert mean_interval([0.25, 0.75, 0.0, 1.0] + [0.5] * 6) == pytest.approx(wilson_interval(20, 40), abs=1e-12)


def test_the_interval_of_many_fractions_is_the_normal_one() -> None:
    values = numpy.random.default_rng(0).beta(2, 5, size=20_000)
    half = Z * values.std() / math.sqrt(len(values))
    assert mean_interval(values.tolist()) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-5)


def test_problems_that_are_all_alike_still_have_an_interval() -> None:
    assert mean_interval([1.0] * 20) == wilson_interval(20, 20)
    assert mean_interval([0.5] * 10) == pytest.approx(wilson_interval(5, 10), abs=1e-12)
    assert mean_interval([0.1] * 3)[1] > 0.5  # rounding leaves them a variance, and no certainty


@pytest.mark.parametrize(("k", "least"), [(1, 0.93), (4, 0.93), (8, 0.93)])
def test_the_interval_of_pass_at_k_covers(k: int, least: float) -> None:
    """Of 8 answers to each of 60 problems, some hard and some easy: 95 % of the intervals hold the expected pass@k."""
    generator = numpy.random.default_rng(k)
    rates = generator.beta(0.4, 0.8, size=(2000, 60))
    corrects = generator.binomial(8, rates)
    by_count = numpy.array([1 - math.comb(8 - c, k) / math.comb(8, k) for c in range(9)])
    # E[1 - (1 - p)^k] for p of Beta(a, b) is 1 - prod (b + i) / (a + b + i)
    expected = 1 - math.prod((0.8 + i) / (1.2 + i) for i in range(k))
    covered = 0
    for row in by_count[corrects]:
        lo, hi = mean_interval(row.tolist())
        assert 0 <= lo < row.mean() < hi <= 1
        covered += lo <= expected <= hi
    assert least < covered / 2000 < 0.97


@pytest.mark.parametrize(("values", "message"), [([], "no problems"), ([0.5, 1.5], "1.5"), ([-0.1], "-0.1")])
def test_mean_interval_refuses(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values)


@pytest.mark.parametrize(
    ("counts", "expected", "digits"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404), 4),  # Newcombe 1998
        ((1, 1, 7, 12), (-0.507, -0.026), 3),  # Fagerland, Lydersen and Laake 2014
        ((59, 6, 16, 80), (-0.1186, -0.0046), 4),  # the same authors' R package contingencytables, chapter 8
    ],
)
def test_paired_interval_of_worked_examples(
    counts: tuple[int, int, int, int], expected: tuple[float, float], digits: int
) -> None:
    assert tuple(round(end, digits) for end in paired_interval(*counts)) == expected


def test_paired_interval_turns_round_with_the_models() -> None:
    lo, hi = paired_interval(30, 9, 4, 17)
    assert paired_interval(30, 4, 9, 17) == pytest.approx((-hi, -lo), abs=1e-12)
    assert lo < 5 / 60 < hi


def test_paired_interval_where_the_models_agree() -> None:
    lo, hi = paired_interval(40, 0, 0, 60)
    assert lo == pytest.approx(-hi)
    assert 0 < hi < 0.03  # of a hundred problems none told them apart, but it is only a hundred
    assert paired_interval(0, 0, 0, 10) == pytest.approx((-0.277533, 0.277533), abs=1e-6)  # Wilson's at 0 of 10


def test_paired_interval_covers() -> None:
    generator = numpy.random.default_rng(3)
    shares = [0.35, 0.12, 0.05, 0.48]
    tables = generator.multinomial(80, shares, size=3000)
    ends = [paired_interval(*(int(count) for count in table)) for table in tables]
    assert 0.94 < sum(lo <= 0.07 <= hi for lo, hi in ends) / 3000 < 0.98


def test_paired_interval_refuses() -> None:
    with pytest.raises(ValueError, match="negative"):
        paired_interval(3, -1, 0, 0)
    with pytest.raises(ValueError, match="n is 0"):
        paired_interval(0, 0, 0, 0)
