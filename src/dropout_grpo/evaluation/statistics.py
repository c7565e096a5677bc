"""Statistics of right and wrong answers, in pure Python: pass@k, votes, confidence intervals, paired comparison.

Counts go in and fractions in [0, 1] come out, never percent. An impossible input raises ValueError: a negative count,
or more right answers than answers. All intervals are based on Wilson's score interval, so they stay inside their range
and have a positive width even if all problems are right or all are wrong. There is no resampling and no seed.
"""

from collections import Counter
from collections.abc import Sequence
from math import comb, fsum, sqrt
from statistics import NormalDist
from typing import Any

CI95 = "Wilson's score interval over problems; of fractions, with the effective sample size n m (1 - m) / variance"
"""What ``ci95`` is, for the files that hold it."""


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
    counts: Counter[str] = Counter()
    winners: list[str | None] = []
    for vote in votes:
        if vote is not None:
            counts[vote] += 1
        winners.append(max(counts, key=counts.__getitem__) if counts else None)
    return winners


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval (lo, hi) of a success probability after `correct` of `n` independent trials.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference", without continuity
    correction. Unlike p +- z sqrt(p (1 - p) / n) it stays inside [0, 1] and has a width at 0 and at n too.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct is {correct}: of n = {n} answers, between 0 and {n} can be right")
    if n == 0:
        raise ValueError("n is 0: an interval needs at least one trial")
    return _score_interval(correct / n, n, confidence)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval (lo, hi) of the expected value of a measure in [0, 1], from its values for independent problems.

    Wilson's interval with the effective sample size n m (1 - m) / s^2, m the mean and s^2 the variance (divisor n):
    as many yes-or-no trials as would leave the mean as uncertain as it is. It is known from surveys, where s^2
    comes from the design (Franco et al. 2019, "Comparative study of confidence intervals for proportions in complex
    sample surveys"). For values 0 and 1 it is Wilson's interval itself; for many problems it is m +- z s / sqrt(n).
    If all problems have the same value, s^2 is 0 and the sample size is n, which suffices for any measure in [0, 1].
    """
    n = len(values)
    if n == 0:
        raise ValueError("there are no problems to average over")
    if outside := [value for value in values if not 0 <= value <= 1]:
        raise ValueError(f"a value is {outside[0]}: the measures of problems lie between 0 and 1")
    mean = fsum(values) / n
    variance = fsum((value - mean) ** 2 for value in values) / n
    spread = variance > 0 and min(values) < max(values)  # rounding can leave a variance where there is none
    return _score_interval(mean, n * mean * (1 - mean) / variance if spread else n, confidence)


def paired_interval(both: int, wins: int, losses: int, neither: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval (lo, hi) of how much more often the second of two models is right, both asked the same problems.

    Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based on paired
    data", method 10: Wilson's intervals of the two shares, joined as the sides of a triangle whose angle is the
    correlation of the two models (continuity-corrected).

    Args:
        both: problems that both models solve.
        wins: problems that only the second solves.
        losses: problems that only the first solves.
        neither: problems that neither solves.
        confidence: confidence level of the interval.
    """
    counts = (both, wins, losses, neither)
    n = sum(counts)
    if min(counts) < 0:
        raise ValueError(f"a count of {counts} is negative")
    second, first = both + wins, both + losses
    lo2, hi2 = wilson_interval(second, n, confidence)
    lo1, hi1 = wilson_interval(first, n, confidence)
    margins = second * (n - second) * first * (n - first)
    excess = both * neither - wins * losses
    corrected = max(excess - n / 2, 0.0) if excess > 0 else excess
    correlation = corrected / sqrt(margins) if margins else 0.0
    p2, p1 = second / n, first / n
    below = _third_side(p2 - lo2, hi1 - p1, correlation)
    above = _third_side(hi2 - p2, p1 - lo1, correlation)
    return p2 - p1 - below, p2 - p1 + above


def _third_side(a: float, b: float, correlation: float) -> float:
    return sqrt(max(a * a - 2 * correlation * a * b + b * b, 0.0))  # rounding may go below 0 where it is 0


def _score_interval(share: float, trials: float, confidence: float) -> tuple[float, float]:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}: it must lie between 0 and 1, both excluded")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half_width = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    # With none or all the end is exactly 0 or 1; rounding would leave it a few 1e-18 on the wrong side.
    lo = 0.0 if share == 0 else centre - half_width
    hi = 1.0 if share == 1 else centre + half_width
    return lo, hi


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


def compare(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """Compare two models; entry i of both lists says whether problem i was solved.

    Returns:
        ``wins`` (only the second solves it), ``losses`` (only the first), ``mcnemar_p`` of the exact test, and
        ``difference``, second minus first, with ``ci95`` (Newcombe's paired interval).
    """
    pairs = list(zip(first, second, strict=True))
    wins, losses = pairs.count((False, True)), pairs.count((True, False))
    interval = paired_interval(pairs.count((True, True)), wins, losses, pairs.count((False, False)))
    return {
        "wins": wins,
        "losses": losses,
        "mcnemar_p": mcnemar(wins, losses),
        "difference": (wins - losses) / len(pairs),
        "ci95": list(interval),
    }
