"""The bias from dividing the advantage by a standard deviation, as GRPO does by default, computed as an exact sum.

Rewards are 0 or 1, so for each question E g(x) = c(x) grad J(x) for any advantages. Without the division c is (K-1)/K
for every question. With it c depends on J(x), and questions that are nearly always or nearly never solved get larger
weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from math import comb, prod, sqrt

import torch
from torch import Tensor

from dropout_grpo.config.grpo import ScaleRewards
from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.estimator import Moments, pattern_probability, patterns
from evidence.theory.gradients import relative
from evidence.theory.law import Law
from evidence.theory.unbiased import EXACT, projection, score_moments

_K = 8
_TRL_FLOOR = 1e-4  # added to the standard deviation
_SEEN = 1e-3  # a sine that is no rounding error


def check_divided(laws: Sequence[Law], gradients: Tensor, *, scale_rewards: ScaleRewards = "group") -> Check:
    """Dividing scales grad J(x) by a function of J(x), which changes the direction of the mean over x.

    The means of the library's advantages are compared with the factor's formula.

    Args:
        laws: the law of each question.
        gradients: grad J of each question, [N, P].
        scale_rewards: the option under test.
    """
    gradient = gradients.mean(0)
    given = [score_moments(law) for law in laws]
    rows: list[Row] = []
    off, means_of = {}, {}
    for scale in ("none", "group", "batch"):
        means = _joint_means(given, _K, partial(group_advantages, scale_rewards=scale))
        mean, means_of[scale] = means.mean(0), means
        off[scale] = _sine(mean, gradient)
        rows.append([scale, *(projection(m, g) for m, g in zip(means, gradients, strict=True)), off[scale]])
    formula = torch.stack([_divided_factor(m.right, _K) * g for m, g in zip(given, gradients, strict=True)])
    error = relative(means_of[scale_rewards] - formula, formula)
    estimate = off[scale_rewards]
    curve = [j / 50 for j in range(1, 50)]
    return Check(
        id="divided.group",
        claim="Dividing by the group's standard deviation gives each question its own factor: no rescaling is grad J.",
        quantity="sine of the angle between E g and grad J at K = 8 (0 would be unbiased up to scale)",
        exact=_sine(formula.mean(0), gradient),
        estimate=estimate,
        error=error,
        verdict=holds_if(error < EXACT and estimate > _SEEN),
        detail={
            "columns": ["scale_rewards", *(f"factor at J = {m.right:.2f}" for m in given), "sine of the angle"],
            "rows": rows,
            "success": [m.right for m in given],
            "curve_success": curve,
            "curve_none": [_reward_factor(j, _K, group_advantages) for j in curve],
            "curve_group": [_reward_factor(j, _K, partial(group_advantages, scale_rewards="group")) for j in curve],
        },
    )


def _sine(mean: Tensor, gradient: Tensor) -> float:
    """Sine of the angle between two vectors."""
    return relative(mean - projection(mean, gradient) * gradient, mean)


def _divided_factor(right: float, k: int) -> float:
    """c(J) by its formula, without the library's advantages.

    A group with c right answers adds c (K - c) / K^2 / (J (1 - J)) grad J, divided by the sample standard deviation
    sqrt(c (K - c) / (K (K - 1))) plus TRL's floor.
    """
    total = 0.0
    for c in range(1, k):
        deviation = sqrt(c * (k - c) / (k * (k - 1))) + _TRL_FLOOR
        total += comb(k, c) * right ** (c - 1) * (1 - right) ** (k - c - 1) * c * (k - c) / k**2 / deviation
    return total


def _reward_factor(right: float, k: int, advantages: Callable[[Tensor], Tensor]) -> float:
    """c in E g = c grad J for one question with success rate ``right``.

    Rewards are 0 or 1 and scores have mean zero, so the score's mean is grad J / J given a right answer and
    -grad J / (1 - J) given a wrong one.
    """
    rewards = patterns(k)
    per_score = rewards / right - (1 - rewards) / (1 - right)
    return float(pattern_probability(rewards, right) @ (advantages(rewards) * per_score).mean(1))


def _joint_means(given: Sequence[Moments], k: int, advantages: Callable[[Tensor], Tensor]) -> Tensor:
    """E g of each question [N, P] if advantages may depend on the whole batch, which has one group per question.

    A sum over the number of right answers in each group, (K+1)^N terms, since advantages do not depend on the order
    within a group.
    """
    n = len(given)
    weight = torch.zeros(n, 2, dtype=torch.float64)  # of the score's two conditional means in E g
    for counts in product(range(k + 1), repeat=n):
        rewards = (torch.arange(k) < torch.tensor(counts)[:, None]).double()  # [N, K]
        probability = prod(
            comb(k, c) * m.right**c * (1 - m.right) ** (k - c) for c, m in zip(counts, given, strict=True)
        )
        gains = advantages(rewards) * probability / k
        weight[:, 1] += (gains * rewards).sum(1)
        weight[:, 0] += (gains * (1 - rewards)).sum(1)
    return torch.stack([weight[i] @ m.mean for i, m in enumerate(given)])
