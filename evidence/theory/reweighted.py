"""Divided advantages and filtered groups: the expected gradient of a question is c(J) grad J, with J its success rate.

With rewards 0 and 1, a group with n right answers of K adds n (K - n) / K^2 (mu_1 - mu_0) to E g, where mu_r is the
mean score given the reward, and mu_1 - mu_0 = grad J / (J (1 - J)). If each n counts with a weight w(n), then

    c(J) = sum over n of w(n) C(K, n) J^(n-1) (1 - J)^(K-n-1) n (K - n) / K^2

With w = 1 it is (K-1)/K. A filter has w = 0 for the groups that it drops; c is then called W. The expected gradient is
that of Phi(J) with Phi' = c.
"""

from collections.abc import Callable
from functools import partial
from math import comb, sqrt

import torch
from torch import Tensor

from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.groups import select_groups
from evidence.theory.check import Check, Row
from evidence.theory.sums import (
    EXACT,
    from_patterns,
    pattern_probability,
    patterns,
    projection,
    relative,
    score_moments,
    sine,
)
from evidence.theory.toy import Exact

Range = tuple[float, float]

PAPER_RANGE: Range = (0.2, 0.95)
"""The filter of the paper's runs (public draft)."""

_K, _PAPER_K = 8, 32
_ENDS_K, _ENDS_RANGE = 5, (0.2, 0.8)  # 1 and 4 of 5 right are the range's ends, which are not dropped
_TRL_FLOOR = 1e-4  # added to the standard deviation
_SEEN = 1e-3  # a sine that is no rounding error
_CURVE = [j / 50 for j in range(1, 50)]


def factor(right: float, k: int, weight: Callable[[int], float]) -> float:
    """c(J) by the module's formula, without the library's advantages."""
    return sum(
        weight(n) * comb(k, n) * right ** (n - 1) * (1 - right) ** (k - n - 1) * n * (k - n) / k**2 for n in range(1, k)
    )


def divided(n: int, k: int = _K) -> float:
    """w(n) of groups divided by their sample standard deviation sqrt(n (K - n) / (K (K - 1))) plus TRL's floor."""
    return 1 / (sqrt(n * (k - n) / (k * (k - 1))) + _TRL_FLOOR)


def in_range(n: int, k: int = _K, mean_range: Range = PAPER_RANGE) -> bool:
    """w(n) of filtered groups: whether n right answers of K are in the range."""
    return mean_range[0] <= n / k <= mean_range[1]


def share_in_range(right: float, k: int = _K) -> float:
    """Probability that a group of the question is in the filter's range."""
    return sum(comb(k, n) * right**n * (1 - right) ** (k - n) for n in range(k + 1) if in_range(n, k))


def check_divided(exact: Exact) -> Check:
    """Dividing by the group's standard deviation gives each question another c(J), and the mean another direction."""
    gradient = exact.gradients.mean(0)
    of_rollouts = [score_moments(law) for law in exact.laws]
    rows: list[Row] = []
    means: dict[str, Tensor] = {}  # scale -> E g of each question, [N, P]
    for scale in ("none", "group"):
        advantages = partial(group_advantages, scale_rewards=scale)
        means[scale] = torch.stack([from_patterns(m, _K, advantages).mean for m in of_rollouts])
        factors = [projection(mean, g) for mean, g in zip(means[scale], exact.gradients, strict=True)]
        rows.append([scale, *factors, sine(means[scale].mean(0), gradient)])
    by_formula = torch.stack(
        [factor(m.right, _K, divided) * g for m, g in zip(of_rollouts, exact.gradients, strict=True)]
    )
    angle = rows[1][-1]
    return Check(
        id="divided.group",
        claim="Dividing by the group's standard deviation gives each question its own factor: no rescaling is grad J.",
        quantity="sine of the angle between E g and grad J at K = 8 (0 would be unbiased up to scale)",
        expected=sine(by_formula.mean(0), gradient),
        value=angle,
        holds=relative(means["group"] - by_formula, by_formula) < EXACT and angle > _SEEN,
        columns=["scale_rewards", *(f"factor at J = {m.right:.2f}" for m in of_rollouts), "sine of the angle"],
        rows=rows,
        curves={"J": _CURVE, "divided by the standard deviation, K = 8": [factor(j, _K, divided) for j in _CURVE]},
    )


def filtered_advantages(rewards: Tensor, mean_range: Range) -> Tensor:
    """Advantages [N, K]; 0 for the groups that the library's filter drops."""
    selected = torch.zeros(len(rewards), 1, dtype=rewards.dtype)
    selected[select_groups(rewards, mixed=False, mean_range=mean_range)] = 1
    return group_advantages(rewards) * selected


def check_filtered(exact: Exact) -> list[Check]:
    """Compare the mean gradient under the library's filter with W(J) grad J, and with that of the selected questions.

    The second is the gradient of the expected reward on questions weighted by the share of their groups that the
    filter selects.
    """
    advantages = partial(filtered_advantages, mean_range=PAPER_RANGE)
    rewards = patterns(_K)
    selected = rewards[select_groups(rewards, mixed=False, mean_range=PAPER_RANGE)]
    rows: list[Row] = []
    means, ends = [], []
    for law, gradient in zip(exact.laws, exact.gradients, strict=True):
        of_rollout = score_moments(law)
        j = of_rollout.right
        mean = from_patterns(of_rollout, _K, advantages).mean
        w, share = factor(j, _K, in_range), float(pattern_probability(selected, j).sum())
        error = relative(mean - w * gradient, gradient)
        means.append(mean)
        rows.append([j, share, projection(mean, gradient), w, share * (_K - 1) / _K, error])
        at_ends = from_patterns(of_rollout, _ENDS_K, partial(filtered_advantages, mean_range=_ENDS_RANGE)).mean
        ends.append(relative(at_ends - factor(j, _ENDS_K, lambda n: 1) * gradient, gradient))  # 1 to 4 of 5
    worst = max(*ends, *(row[5] for row in rows))

    def of_questions(weights: list[float]) -> Tensor:
        return torch.tensor(weights, dtype=torch.float64) @ exact.gradients

    angle = sine(torch.stack(means).mean(0), of_questions([row[1] for row in rows]))
    expected = sine(of_questions([row[3] for row in rows]), of_questions([share_in_range(row[0]) for row in rows]))
    columns = ["J", "share of groups selected", "factor found", "W(J)", "share x (K-1)/K", "relative error"]
    low, high = PAPER_RANGE
    names = {k: f"filtered to mean rewards of {low} to {high}, K = {k}" for k in (_K, _PAPER_K)}
    return [
        Check(
            id="filtered.objective",
            claim="Filtered by its own mean reward, a question's expected gradient is W(J) grad J: that of Phi(J).",
            quantity="largest relative error of E g, K = 8, and K = 5 with both ends of the range at a group's mean",
            expected=0.0,
            value=worst,
            holds=worst < EXACT,
            columns=columns,
            rows=rows,
            curves={"J": _CURVE}
            | {name: [factor(j, k, partial(in_range, k=k)) for j in _CURVE] for k, name in names.items()},
        ),
        Check(
            id="filtered.selected_questions",
            claim="It is not the gradient of the reward on the selected questions: the filter sees the rewards.",
            quantity="sine of the angle between E g and the gradient on questions weighted by their share, K = 8",
            expected=expected,
            value=angle,
            holds=abs(angle - expected) < EXACT and angle > _SEEN,
            columns=columns,
            rows=rows,
        ),
    ]
