"""Shares of work: which process does what, so that all of them finish at about the same time."""

from collections.abc import Sequence


def balanced(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Places of all items in ``parts`` shares of about the same cost.

    Greedy: items by falling cost, each to the share that is lightest so far (Graham 1969, at most 4/3 of the best
    possible heaviest share). A pure function of its arguments: every process computes the same shares.

    Args:
        costs: of each item, for example its tokens.
        parts: number of shares; some stay empty if there are fewer items.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        lightest = loads.index(min(loads))
        shares[lightest].append(item)
        loads[lightest] += costs[item]
    return shares


def imbalance(costs: Sequence[int], shares: Sequence[Sequence[int]]) -> float:
    """Cost of the heaviest share over the mean cost: 1 is perfect, ``len(shares)`` if one process does everything."""
    loads = [sum(costs[i] for i in share) for share in shares]
    total = sum(loads)
    return max(loads) * len(loads) / total if total else 1.0
