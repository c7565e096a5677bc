"""Variance reduction: common random numbers in the paper's sense, and the group mean as a baseline.

An update changes the weights from theta to theta + d. The paper's method evaluates the gradient at both with the same
mask and answer, g(theta; m, a) = A grad log pi_theta(a | x, m). The variance of the difference is then of order |d|^2.
With a fresh mask and a fresh answer at theta + d, it is about 2 Var g, however small d is.

A baseline is another matter. With a constant b instead of the group mean, tr Cov of the gradient changes by
E[(b^2 - 2 b r) |s|^2] / K, where s is the score. So it falls exactly if 0 < b < 2 b*, where b* = E[r |s|^2] / E[|s|^2]
is the best constant (Greensmith, Bartlett and Baxter, "Variance reduction techniques for gradient estimates in
reinforcement learning", 2004). If right answers are probable, their scores are small and b* is far below J.
"""

from collections.abc import Sequence
from functools import partial
from math import log10
from statistics import linear_regression

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row
from evidence.theory.sums import (
    Moments,
    from_patterns,
    inside,
    mean_interval,
    moments,
    over_questions,
    score_moments,
)
from evidence.theory.toy import (
    QUESTIONS,
    Exact,
    Law,
    Toy,
    enumerate_law,
    flat_weights,
    moved,
    objective_gradient,
    sample,
)

STEPS = tuple(10 ** (i / 2 - 6) for i in range(11))
"""|d| / |theta|, 1e-6 to 1e-1. The slope is fitted over the first three decades; larger steps show where it ends."""

_FITTED = 1.001e-3
_SLOPE_ERROR = 0.02
_K = 8


def check_coupling(
    exact: Exact,
    *,
    seed: int,
    steps: Sequence[float] = STEPS,
    questions: Sequence[int] = range(QUESTIONS),
    batches: int = 400,
) -> list[Check]:
    """Var[g(theta + d) - g(theta)] over |d|, as exact sums over masks and answers. The step d follows grad J.

    What fresh draws leave is sampled as well, with the library's seeds of two steps, at the smallest d.

    Args:
        exact: the toy at theta.
        seed: seed of the sampled rollouts.
        steps: |d| / |theta|.
        questions: the questions to enumerate.
        batches: number of sampled pairs of gradients.
    """
    toy, model = exact.toy, exact.toy.model
    laws = [exact.laws[i] for i in questions]
    at_start = _variance([score_moments(law) for law in laws])
    gradient = exact.gradients.mean(0)
    direction = gradient / gradient.norm() * flat_weights(model).norm()
    rows: list[Row] = []
    for size in steps:
        with moved(model, size * direction):
            pairs = [(law, enumerate_law(toy, exact.masks, i)) for law, i in zip(laws, questions, strict=True)]
        reused, ratio = [], []
        for here, there in pairs:
            probability, rewards = here.probability.flatten(), here.rewards.repeat(len(here.weights))
            in_ratio = (there.policy / here.policy)[..., None] * there.score
            reused.append(moments(probability, rewards, (there.score - here.score).flatten(0, 1)))
            ratio.append(moments(probability, rewards, (in_ratio - here.score).flatten(0, 1)))
        after = _variance([score_moments(there) for _, there in pairs])
        rows.append([size, _variance(reused), _variance(ratio), at_start + after, after, at_start])
    slope = _log_slope([row[:2] for row in rows if row[0] < _FITTED])
    squares = _sampled_differences(toy, steps[0] * direction, torch.tensor(questions), seed, batches)
    mean, interval = mean_interval(squares)
    limit, low, high = (value / (2 * at_start) for value in (mean, *interval))
    columns = [
        "|d| / |theta|",
        "mask and answer reused",
        "the same, with the ratio",
        "mask and answer fresh",
        "Var g(theta + d)",
        "Var g(theta)",
    ]
    return [
        Check(
            id="coupling.reused",
            claim="With mask and answer reused, Var[g(theta + d) - g(theta)] falls as |d|^2.",
            quantity="slope of log Var over log |d| for |d| / |theta| from 1e-6 to 1e-3, K = 8",
            expected=2.0,
            value=slope,
            holds=abs(slope - 2) < _SLOPE_ERROR,
            columns=columns,
            rows=rows,
        ),
        Check(
            id="coupling.fresh",
            claim="With a fresh mask and answer it does not fall: it is 2 Var g for the smallest d.",
            quantity="Var[g(theta + d) - g(theta)] / (2 Var g) at |d| / |theta| = 1e-6, K = 8",
            expected=1.0,
            value=limit,
            interval=(low, high),
            holds=inside(1.0, (low, high)),
            columns=["batches"],
            rows=[[batches]],
        ),
    ]


def _variance(of_rollouts: Sequence[Moments]) -> float:
    """tr Cov of the estimator over the questions at K = 8, from the moments of a rollout of each."""
    return over_questions([from_patterns(m, _K, group_advantages) for m in of_rollouts]).variance


def _sampled_differences(toy: Toy, step: Tensor, questions: Tensor, seed: int, batches: int) -> list[float]:
    """|g(theta + d) - g(theta)|^2 of batches of one group for each question, by the library's rollouts and objective.

    Every batch has two steps of a run, one at each theta. Their means differ by the order of |d| only, so the mean of
    these values is the variance of the difference.
    """

    def gradients(run: int) -> Tensor:
        rollouts = (
            sample(toy, questions, rollout_seeds(seed, 2 * batch + run, questions, _K)) for batch in range(batches)
        )
        return torch.stack([objective_gradient(toy, drawn).gradient for drawn in rollouts])

    before = gradients(0)
    with moved(toy.model, step):
        after = gradients(1)
    return (after - before).square().sum(1).tolist()


def _log_slope(points: Sequence[Sequence[float]]) -> float:
    """Least-squares slope of log y over log x from points (x, y)."""
    return linear_regression([log10(x) for x, _ in points], [log10(y) for _, y in points]).slope


def best_baseline(of_rollout: Moments) -> float:
    """b* = E[r |s|^2] / E[|s|^2]."""
    right = of_rollout.right * float(of_rollout.square[1])
    wrong = (1 - of_rollout.right) * float(of_rollout.square[0])
    return right / (right + wrong)


def less_the_mean(rewards: Tensor, mean: float) -> Tensor:
    """r - J, the limit of r - mean(r) for large groups."""
    return rewards - mean


def check_baseline(exact: Exact) -> Check:
    """When a baseline helps, over many tasks: each answer is in turn the only right one, and the only wrong one."""
    cases = [
        _with_rewards(law, rewards)
        for law in exact.laws
        for only in torch.eye(len(exact.toy.answers), dtype=torch.float64)
        for rewards in (only, 1 - only)
    ]
    wrong = sum((j < 2 * best) != (ratio < 1) for j, best, ratio, _ in cases)
    rows: list[Row] = [
        ["J < 2 b*", *_counts([case for case in cases if case[0] < 2 * case[1]])],
        ["J >= 2 b*", *_counts([case for case in cases if case[0] >= 2 * case[1]])],
    ]
    return Check(
        id="baseline.condition",
        claim="Subtracting the mean reward lowers the variance exactly where J < 2 b*, and raises it elsewhere.",
        quantity=f"tasks of {len(cases)} in which it is otherwise",
        expected=0.0,
        value=float(wrong),
        holds=wrong == 0 and min(row[1] for row in rows) > 0,
        columns=[
            "tasks with",
            "number",
            "lower with A = r - J",
            "lower with r - mean(r), K = 8",
            "lower with leave-one-out, K = 8",
            "least ratio, A = r - J",
            "greatest",
        ],
        rows=rows,
        curves={"cases": cases},
    )


def _with_rewards(law: Law, rewards: Tensor) -> list[float]:
    """J, b*, and tr Cov g over that without baseline for A = r - J and for leave-one-out at K = 8."""
    of_rollout = moments(law.probability.flatten(), rewards.repeat(len(law.weights)), law.score.flatten(0, 1))
    none = from_patterns(of_rollout, 1, torch.clone).variance
    ideal = from_patterns(of_rollout, 1, partial(less_the_mean, mean=of_rollout.right)).variance
    one_out = from_patterns(of_rollout, _K, partial(group_advantages, leave_one_out=True)).variance
    return [of_rollout.right, best_baseline(of_rollout), ideal / none, one_out / (none / _K)]


def _counts(cases: Sequence[Sequence[float]]) -> Row:
    """The number of cases, the numbers in which the variance is lower by three measures, and the range of the first."""
    ideal, one_out = [case[2] for case in cases], [case[3] for case in cases]
    group_mean = [ratio * ((_K - 1) / _K) ** 2 for ratio in one_out]
    lower = [sum(ratio < 1 for ratio in ratios) for ratios in (ideal, group_mean, one_out)]
    return [len(cases), *lower, min(ideal, default=0.0), max(ideal, default=0.0)]
