"""Statistics against values by hand, brute-force enumeration, scipy and examples from the literature."""

import math
from itertools import combinations

import numpy
import pytest
from scipy.stats import binomtest

from dropout_grpo.evaluation.statistics import (
    compare,
    majorities,
    majority_vote,
    mcnemar,
    mean_interval,
    paired_interval,
    pass_at_k,
    pass_at_k_curves,
    wilson_interval,
)


def enumerated_pass_at_k(n: int, c: int, k: int) -> float:
    """The definition: the share of all k-subsets of n answers that hold at least one of the c right ones."""
    subsets = list(combinations([i < c for i in range(n)], k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def test_pass_at_k_is_the_share_of_subsets_and_not_the_plug_in() -> None:
    cases = [(n, c, k) for n in range(1, 9) for c in range(n + 1) for k in range(1, n + 1)]
    for n, c, k in cases:
        assert pass_at_k(n, c, k) == pytest.approx(enumerated_pass_at_k(n, c, k), abs=1e-15), (n, c, k)
    # The biased plug-in 1 - (1 - c/n)^k would not pass: the check above can fail.
    assert any(abs(1 - (1 - c / n) ** k - enumerated_pass_at_k(n, c, k)) > 0.05 for n, c, k in cases)


def test_pass_at_k_keeps_its_digits_where_factorials_overflow_and_differences_cancel() -> None:
    # With one right answer it is k / n exactly.
    assert pass_at_k(10_000, 1, 100) == 0.01
    assert pass_at_k(10**7, 1, 1) == 1e-7


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"^[ck] is "):
        pass_at_k(n, c, k)


def test_curves_have_an_entry_for_each_k() -> None:
    assert pass_at_k_curves(4, [0, 1, 4, 1]) == [
        [0, 0, 0, 0],
        [0.25, 0.5, 0.75, 1],  # of one right answer, k / n
        [1, 1, 1, 1],
        [0.25, 0.5, 0.75, 1],
    ]
    with pytest.raises(ValueError, match="c is 5"):
        pass_at_k_curves(4, [5])


@pytest.mark.parametrize(
    ("votes", "winner"),
    [
        (["3", "5", "5"], "5"),
        (["5", "3", "3", "5"], "5"),  # tie: 5 was seen first
        (
            ["3", "5", "5", "3"],
            "3",
        ),  # the same tie, the other order; neither the smallest nor the last counts
        ([None, None, "7"], "7"),  # unparsable answers never outvote one
        ([None, "9", "2", None, None], "9"),
        ([None, None], None),
        ([], None),
    ],
)
def test_majority_vote(votes: list[str | None], winner: str | None) -> None:
    assert majority_vote(votes) == winner


def test_majorities_of_the_first_answers() -> None:
    assert majorities(["1", "2", "2"]) == ["1", "1", "2"]  # a tie after two, then a majority
    assert majorities([None, "4", None, "5", "5"]) == [None, "4", "4", "4", "5"]
    assert majorities([]) == []


def test_mcnemar_by_hand() -> None:
    assert mcnemar(5, 1) == 2 * (1 + 6) / 64
    assert mcnemar(1, 5) == mcnemar(5, 1)
    assert mcnemar(10, 0) == 2 / 1024
    assert mcnemar(3, 3) == 1.0  # twice the tail exceeds 1
    assert mcnemar(0, 0) == 1.0
    with pytest.raises(ValueError, match="losses is -2"):
        mcnemar(3, -2)


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (7, 2), (40, 40), (523, 104), (4000, 5000)])
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    assert mcnemar(wins, losses) == pytest.approx(binomtest(wins, wins + losses, 0.5).pvalue, rel=1e-9)


def test_wilson_by_hand() -> None:
    # z = 1.96, 5 of 10: centre 0.5, half width 1.96 sqrt(0.025 + 0.009604) / 1.38416 = 0.26341
    lo, hi = wilson_interval(5, 10)
    assert (lo, hi) == (pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5))
    # At 0 of n the closed form is (0, z^2 / (n + z^2)) = (0, 3.84146 / 13.84146).
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert wilson_interval(10, 10) == (pytest.approx(1 - 0.277533, abs=1e-6), 1.0)


@pytest.mark.parametrize(
    ("correct", "n", "confidence"), [(0, 1, 0.95), (1, 1, 0.8), (1, 7, 0.95), (806, 2000, 0.99), (2000, 2000, 0.95)]
)
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
    assert mean_interval([0.1] * 3)[1] > 0.5  # rounding leaves equal values a variance, and no certainty


def test_the_interval_of_fractions_by_hand() -> None:
    # Mean 1/2, variance (1/16 + 1/16 + 1/4 + 1/4 + 0 + ...) / 10 = 1/16: as uncertain as 10 * 1/4 * 16 = 40 trials.
    assert mean_interval([0.25, 0.75, 0.0, 1.0] + [0.5] * 6) == pytest.approx(wilson_interval(20, 40), abs=1e-12)


@pytest.mark.parametrize("k", [1, 4, 8])
def test_the_interval_of_pass_at_k_covers(k: int) -> None:
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
    assert 0.93 < covered / 2000 < 0.97


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
    lo, hi = paired_interval(*counts)
    assert (round(lo, digits), round(hi, digits)) == expected
    both, wins, losses, neither = counts
    assert paired_interval(both, losses, wins, neither) == pytest.approx((-hi, -lo), abs=1e-12)


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


def test_compare_by_hand() -> None:
    first = [True, True, False, False, False, False, True, False]
    second = [True, False, True, True, True, True, True, False]
    found = compare(first, second)
    assert (found["wins"], found["losses"]) == (4, 1)
    assert found["difference"] == 6 / 8 - 3 / 8
    assert found["mcnemar_p"] == 2 * (1 + 5) / 32  # of 5 fair coins, at most one tail, on either side
    assert found["ci95"] == list(paired_interval(2, 4, 1, 1))
    assert found["ci95"][0] < 0.375 < found["ci95"][1]


def test_problems_must_pair_up() -> None:
    with pytest.raises(ValueError, match="shorter"):
        compare([True, False], [True])
