"""Metrics against values by hand, brute-force enumeration and scipy."""

from itertools import combinations

import pytest
from scipy.stats import binomtest

from dropout_grpo.evaluation.metrics import (
    majorities,
    majority_vote,
    mcnemar,
    pass_at_k,
    pass_at_k_curves,
)


def enumerated_pass_at_k(n: int, c: int, k: int) -> float:
    """The definition: the share of all k-subsets of n answers that hold at least one of the c right ones."""
    subsets = list(combinations([i < c for i in range(n)], k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == 0.5  # of the 6 pairs, 3 hold the right answer
    assert pass_at_k(5, 2, 3) == 0.9  # of the 10 triples, one holds neither
    assert pass_at_k(8, 0, 8) == 0.0
    assert pass_at_k(8, 1, 8) == 1.0
    assert pass_at_k(8, 7, 2) == 1.0  # only one wrong answer: no pair without a right one


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


@pytest.mark.parametrize(
    ("wins", "losses"), [(1, 0), (7, 2), (40, 40), (61, 40), (523, 104), (1500, 1400), (4000, 5000)]
)
def test_mcnemar_is_the_exact_binomial_test(wins: int, losses: int) -> None:
    assert mcnemar(wins, losses) == pytest.approx(binomtest(wins, wins + losses, 0.5).pvalue, rel=1e-9)
