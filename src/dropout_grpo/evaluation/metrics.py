"""Metrics of right and wrong answers. Pure Python: counts in, fractions in [0, 1] out, never percent.

Every function raises ValueError for an impossible input: a negative count, or more right answers than answers.
"""

from collections import Counter
from collections.abc import Sequence
from math import comb


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that k answers hold a right one, drawn without replacement from n of which c are right.

    The unbiased estimator 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, "Evaluating large language models
    trained on code", section 2.1). Exact integers, divided once: correctly rounded at any size.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c is {c}: of n = {n} answers, between 0 and {n} can be right")
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}: pass@k of n = {n} answers needs 1 <= k <= {n}")
    subsets = comb(n, k)
    return (subsets - comb(n - c, k)) / subsets


def pass_at_k_curves(n: int, corrects: Sequence[int]) -> list[list[float]]:
    """pass@k of every problem for k = 1 ... n; `corrects[i]` is how many of problem i's n answers are right."""
    curves = {c: [pass_at_k(n, c, k) for k in range(1, n + 1)] for c in set(corrects)}
    return [curves[c] for c in corrects]


def majority_vote(votes: Sequence[str | None]) -> str | None:
    """The most frequent answer, or None if there is none.

    None means a sample without an answer, which does not vote. The earliest of tied answers wins.
    """
    counts = Counter(vote for vote in votes if vote is not None)
    # A Counter keeps the order of first sight, and max returns the first of equals.
    return max(counts, key=counts.__getitem__) if counts else None


def majorities(votes: Sequence[str | None]) -> list[str | None]:
    """The majority votes of the first k answers, for k = 1 ... n."""
    return [majority_vote(votes[:k]) for k in range(1, len(votes) + 1)]


def mcnemar(wins: int, losses: int) -> float:
    """Two-sided p-value of the exact McNemar test of two models on the same problems.

    `wins` counts the problems that only the second model solves and `losses` those that only the first does;
    problems on which they agree carry no information. Under the null each of the others is a fair coin:
    p = min(1, 2 P[Binomial(wins + losses, 1/2) <= min(wins, losses)]) (McNemar 1947, in its exact form).
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"wins is {wins} and losses is {losses}: counts cannot be negative")
    n = wins + losses
    tail, ways = 0, 1
    for i in range(min(wins, losses) + 1):
        tail += ways  # C(n, i)
        ways = ways * (n - i) // (i + 1)
    return min(1.0, 2 * tail / 2**n)
