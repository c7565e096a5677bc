"""Variance reduction in the paper's sense: common random numbers.

An update changes the weights from theta to theta + d. The paper's method evaluates the gradient at both with the same
mask and answer, g(theta; m, a) = A grad log pi_theta(a | x, m). The variance of the difference is then of order |d|^2.
With a fresh mask and a fresh answer at theta + d, it is about 2 Var g, however small d is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from statistics import linear_regression
from typing import Literal

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.estimator import Estimate, Moments, from_patterns, moments, over_questions
from evidence.theory.gradients import flat_gradients
from evidence.theory.interval import inside, mean_interval
from evidence.theory.law import Law, answer_logprobs
from evidence.theory.perturbed import flat_weights, moved
from evidence.theory.setting import objective_gradient, sample
from evidence.theory.toy import Masks, Toy
from evidence.theory.unbiased import Seeds, score_moments

Reuse = Literal["mask and answer", "answer"]

STEPS = tuple(10 ** (i / 2 - 6) for i in range(11))
"""|d| / |theta|, 1e-6 to 1e-1. The slope is fitted over the first three decades; larger steps show where it ends."""

FITTED = 1.001e-3

SLOPE_ERROR = 0.02
_K = 8
_BATCHES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moved:
    """The policy of one question at theta + d: M masks, A answers, P parameters."""

    policy: Tensor  # [M, A]
    score: Tensor  # [M, A, P]


def check_coupling(
    toy: Toy,
    masks: Masks,
    laws: Sequence[Law],
    gradients: Tensor,
    *,
    steps: Sequence[float] = STEPS,
    questions: Sequence[int] | None = None,
    seed: int = 0,
    reuse: Reuse = "mask and answer",
    seeds: Seeds = rollout_seeds,
    batches: int = _BATCHES,
) -> list[Check]:
    """Var[g(theta + d) - g(theta)] over |d|, as exact sums over masks and answers. The step d follows grad J.

    What fresh draws leave is sampled as well, with the library's seeds of two steps, at the smallest d.

    Args:
        toy: the toy.
        masks: all masks.
        laws: the law of each question at theta.
        gradients: grad J of each question, [N, P].
        steps: |d| / |theta|.
        questions: the questions to enumerate; all if None.
        reuse: what the coupled estimator keeps at theta + d, under test. With ``answer`` the mask is drawn again.
        seeds: function that makes the rollouts' seeds of a step, under test.
        seed: seed of the sampled rollouts.
        batches: number of sampled pairs of gradients.
    """
    model = toy.setting.model
    used = range(len(laws)) if questions is None else questions
    at_start = over_questions([from_patterns(score_moments(laws[i]), _K, group_advantages) for i in used])
    direction = gradients.mean(0) / gradients.mean(0).norm() * flat_weights(model).norm()
    rows: list[Row] = []
    for size in steps:
        found: dict[str, list[Estimate]] = {"reused": [], "ratio": [], "fresh": []}
        with moved(model, size * direction):
            there = {i: _moved(toy, masks, i) for i in used}
        for i in used:
            for way, given in _differences(laws[i], there[i], reuse).items():
                found[way].append(from_patterns(given, _K, group_advantages))
        reused = over_questions(found["reused"]).variance
        after = over_questions(found["fresh"]).variance
        ratio = over_questions(found["ratio"]).variance
        rows.append([size, reused, ratio, at_start.variance + after, after, at_start.variance])
    slope = log_slope([row[:2] for row in rows if row[0] < FITTED])
    squares = _sampled_differences(toy, steps[0] * direction, list(used), seed=seed, seeds=seeds, batches=batches)
    mean, interval = mean_interval(squares)
    limit, low, high = (value / (2 * at_start.variance) for value in (mean, *interval))
    detail = {
        "columns": [
            "|d| / |theta|",
            "mask and answer reused",
            "the same, with the ratio",
            "mask and answer fresh",
            "Var g(theta + d)",
            "Var g(theta)",
        ],
        "rows": rows,
    }
    return [
        Check(
            id="coupling.reused",
            claim="With mask and answer reused, Var[g(theta + d) - g(theta)] falls as |d|^2.",
            quantity="slope of log Var over log |d| for |d| / |theta| from 1e-6 to 1e-3, K = 8",
            exact=2.0,
            estimate=slope,
            error=abs(slope - 2),
            verdict=holds_if(abs(slope - 2) < SLOPE_ERROR),
            detail=detail,
        ),
        Check(
            id="coupling.fresh",
            claim="With a fresh mask and answer it does not fall: it is 2 Var g for the smallest d.",
            quantity="Var[g(theta + d) - g(theta)] / (2 Var g) at |d| / |theta| = 1e-6, K = 8",
            exact=1.0,
            estimate=limit,
            interval=(low, high),
            verdict=holds_if(inside(1.0, (low, high))),
            detail=detail,
        ),
    ]


def _sampled_differences(
    toy: Toy, step: Tensor, questions: list[int], *, seed: int, seeds: Seeds, batches: int
) -> list[float]:
    """|g(theta + d) - g(theta)|^2 of batches of one group for each question, by the library's rollouts and objective.

    Every batch has two steps of a run, one at each theta. Their means differ by the order of |d| only, so the mean of
    these values is the variance of the difference.
    """
    asked = torch.tensor(questions)

    def gradients(run: int) -> Tensor:
        found = []
        for batch in range(batches):
            drawn = sample(toy.setting, asked, seeds(seed, 2 * batch + run, asked, _K))
            found.append(objective_gradient(toy.setting, drawn, group_advantages).gradient)
        return torch.stack(found)

    before = gradients(0)
    with moved(toy.setting.model, step):
        after = gradients(1)
    return (after - before).square().sum(1).tolist()


def log_slope(points: Sequence[Sequence[float]]) -> float:
    """Least-squares slope of log y over log x from points (x, y)."""
    return linear_regression([log10(x) for x, _ in points], [log10(y) for _, y in points]).slope


def _moved(toy: Toy, masks: Masks, question: int) -> _Moved:
    """Policy and scores at the model's current weights, one mask at a time."""
    policies, scores = [], []
    for i in range(len(masks.seeds)):
        one = Masks(seeds=masks.seeds[i : i + 1], weights=masks.weights[i : i + 1], codes=masks.codes[i : i + 1])
        logprobs = answer_logprobs(toy, one, toy.exploration, question).sum(-1)  # [1, A]
        scores.append(flat_gradients(logprobs, toy.setting.model))
        policies.append(logprobs.detach().exp())
    return _Moved(policy=torch.cat(policies), score=torch.cat(scores))


def _differences(law: Law, there: _Moved, reuse: Reuse) -> dict[str, Moments]:
    """Moments of a rollout's vector: the reused difference, the same with the ratio, and the fresh gradient."""
    probability = law.probability.flatten()
    rewards = law.rewards.expand(law.probability.shape).flatten()
    ratio = (there.policy / law.policy)[..., None]
    after = law.weights[:, None] * there.policy
    kept = moments(probability, rewards, (there.score - law.score).flatten(0, 1))
    if reuse == "answer":
        joint = law.weights[:, None, None] * law.probability[None]  # [M', M, A]
        change = there.score[:, None] - law.score[None]  # [M', M, A, P]
        kept = moments(joint.flatten(), law.rewards.expand(joint.shape).flatten(), change.flatten(0, 2))
    return {
        "reused": kept,
        "ratio": moments(probability, rewards, (ratio * there.score - law.score).flatten(0, 1)),
        "fresh": moments(after.flatten(), rewards, there.score.flatten(0, 1)),
    }
