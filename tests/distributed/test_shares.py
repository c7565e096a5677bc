"""Shares of work."""

from itertools import product

import pytest

from dropout_grpo.distributed.processes import balanced, imbalance


def test_shares_by_hand() -> None:
    """7 to the first, 5 to the second, 4 to the second (5 < 7), 3 to the first, 2 to the second (9 < 10)."""
    shares = balanced([3, 7, 2, 5, 4], 2)
    assert shares == [[1, 0], [3, 4, 2]]
    assert imbalance([3, 7, 2, 5, 4], shares) == pytest.approx(11 / 10.5)


def test_fewer_items_than_processes() -> None:
    shares = balanced([5], 4)
    assert shares == [[0], [], [], []]
    assert imbalance([5], shares) == 4
    assert imbalance([], balanced([], 2)) == 1


def test_every_item_once_and_within_the_bound() -> None:
    """Against the best of all assignments: the heaviest share is at most 4/3 of it (Graham 1969)."""
    costs = [9, 7, 6, 5, 5, 4, 2]
    for parts in (2, 3):
        shares = balanced(costs, parts)
        assert sorted(i for share in shares for i in share) == list(range(len(costs)))
        heaviest = max(sum(costs[i] for i in share) for share in shares)
        best = min(
            max(sum(c for c, p in zip(costs, places, strict=True) if p == part) for part in range(parts))
            for places in product(range(parts), repeat=len(costs))
        )
        assert heaviest <= 4 / 3 * best
