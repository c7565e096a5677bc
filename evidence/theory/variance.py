"""Variance with and without the group mean as a baseline, by exact sums.

A baseline does not change the mean of the gradient (leave-one-out) or shrinks it by (K-1)/K (the group mean), but it
does not always lower the variance. With a constant b instead of the group mean, tr Cov of the gradient changes by
E[(b^2 - 2 b r) |s|^2] / K, where s is the score. So it falls exactly if 0 < b < 2 b*, where b* = E[r |s|^2] / E[|s|^2]
is the best constant (Greensmith, Bartlett and Baxter, "Variance reduction techniques for gradient estimates in
reinforcement learning", 2004). If right answers are probable, their scores are small and b* is far below J. Subtracting
the mean reward then adds the large scores of rare wrong answers, which do not occur without a baseline.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.estimator import Moments, from_patterns, moments
from evidence.theory.law import Law
from evidence.theory.unbiased import GROUP_SIZES, score_moments

_K = 8


def best_baseline(given: Moments) -> float:
    """b* = E[r |s|^2] / E[|s|^2]."""
    right, wrong = given.right * float(given.square[1]), (1 - given.right) * float(given.square[0])
    return right / (right + wrong)


def check_baseline(laws: Sequence[Law], *, advantages: Callable[..., Tensor] = group_advantages) -> Check:
    """tr Cov g for A = r - mean(r) and for leave-one-out (which has the mean of A = r), divided by that for A = r.

    Args:
        laws: the law of each of the toy's questions.
        advantages: the function under test.
    """
    rows: list[Row] = []
    for law in laws:
        given = score_moments(law)
        for k in GROUP_SIZES:
            none = from_patterns(given, k, torch.clone).variance
            group = from_patterns(given, k, advantages).variance
            one_out = from_patterns(given, k, partial(advantages, leave_one_out=True)).variance
            rows.append([given.right, best_baseline(given), k, group / none, one_out / none])
    worst = max(row[3] for row in rows)
    return Check(
        id="baseline.toy",
        claim="On the toy the group mean as a baseline lowers the variance against no baseline.",
        quantity="tr Cov g over that without baseline, worst question and K",
        estimate=worst,
        verdict=holds_if(worst < 1),
        detail={"columns": ["J", "b*", "K", "r - mean(r)", "leave-one-out"], "rows": rows},
    )


def check_condition(laws: Sequence[Law], *, advantages: Callable[[Tensor, float], Tensor] = torch.sub) -> Check:
    """When a baseline helps, over many tasks: each answer is in turn the only right one, and the only wrong one.

    Args:
        laws: laws whose policies and scores are used, with other rewards.
        advantages: function of rewards and the mean reward J, under test; by default r - J, the limit of large groups.
    """
    cases = []
    for law in laws:
        for answer in range(len(law.rewards)):
            only = torch.zeros_like(law.rewards)
            only[answer] = 1
            for rewards in (only, 1 - only):
                flat = rewards.repeat(len(law.weights))
                given = moments(law.probability.flatten(), flat, law.score.flatten(0, 1))
                none = from_patterns(given, 1, torch.clone).variance
                ideal = from_patterns(given, 1, lambda r, j=given.right: advantages(r, j)).variance  # type: ignore[misc]
                one_out = from_patterns(given, _K, partial(group_advantages, leave_one_out=True)).variance
                cases.append([given.right, best_baseline(given), ideal / none, one_out / (none / _K)])
    wrong = sum((j < 2 * best) != (ratio < 1) for j, best, ratio, _ in cases)
    rows: list[Row] = [
        ["J < 2 b*", *_counts([case for case in cases if case[0] < 2 * case[1]])],
        ["J >= 2 b*", *_counts([case for case in cases if case[0] >= 2 * case[1]])],
    ]
    return Check(
        id="baseline.condition",
        claim="Subtracting the mean reward lowers the variance exactly where J < 2 b*, and raises it elsewhere.",
        quantity=f"tasks of {len(cases)} in which it is otherwise",
        exact=0.0,
        estimate=float(wrong),
        error=float(wrong),
        verdict=holds_if(wrong == 0 and min(row[1] for row in rows) > 0),
        detail={
            "columns": [
                "tasks with",
                "number",
                "lower with A = r - J",
                "lower with r - mean(r), K = 8",
                "lower with leave-one-out, K = 8",
                "least ratio, A = r - J",
                "greatest",
            ],
            "rows": rows,
            "cases": cases,
        },
    )


def _counts(cases: Sequence[Sequence[float]]) -> Row:
    """The number of cases, the numbers in which the variance is lower by three measures, and the range of the first."""
    ideal, one_out = [case[2] for case in cases], [case[3] for case in cases]
    group_mean = [ratio * ((_K - 1) / _K) ** 2 for ratio in one_out]
    lower = [sum(ratio < 1 for ratio in ratios) for ratios in (ideal, group_mean, one_out)]
    return [len(cases), *lower, min(ideal, default=0.0), max(ideal, default=0.0)]
