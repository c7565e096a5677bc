"""Divides work among processes, so that all finish at about the same time."""

from collections.abc import Sequence


def balanced(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Divide items into ``parts`` shares of about the same cost; return the indices of the items in each share.

    Greedy: items in order of decreasing cost go to the share with the lowest cost so far (Graham 1969; the most
    expensive share costs at most 4/3 of the optimum). A pure function of its arguments, so every process computes the
    same shares.

    Args:
        costs: cost of each item, for example its number of tokens.
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
    """Cost of the most expensive share divided by the mean cost: 1 is perfect, ``len(shares)`` means no balance."""
    loads = [sum(costs[i] for i in share) for share in shares]
    total = sum(loads)
    return max(loads) * len(loads) / total if total else 1.0
