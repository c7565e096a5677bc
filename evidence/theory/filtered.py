"""The group filter: the objective whose gradient is the mean gradient of the kept groups.

With rewards 0 and 1, a group with c right answers of K adds c (K - c) / K^2 (mu_1 - mu_0) to E g, where mu_r is the
mean score given the reward, and mu_1 - mu_0 = grad J / (J (1 - J)). With a filter that keeps some values of c, the
gradient is therefore W(J(x)) grad J(x) with

    W(J) = sum over the kept c of C(K, c) J^(c-1) (1 - J)^(K-c-1) c (K - c) / K^2

It is the gradient of Phi(J(x)) with Phi' = W. Without a filter W is (K-1)/K and Phi is J up to a factor.
"""

from collections.abc import Sequence
from functools import partial
from math import comb

import torch
from torch import Tensor

from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.selection import select_groups
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.estimator import from_patterns, pattern_probability, patterns
from evidence.theory.gradients import relative
from evidence.theory.law import Law
from evidence.theory.unbiased import EXACT, projection, score_moments

Range = tuple[float, float]

PAPER_RANGE: Range = (0.2, 0.95)
"""The filter of the paper's runs (public draft)."""

_K, _PAPER_K = 8, 32
_SEEN = 1e-3  # a sine that is no rounding error
_ENDS_K, _ENDS_RANGE = 5, (0.2, 0.8)  # 1 and 4 of 5 right are the range's ends, which are kept


def filtered_advantages(rewards: Tensor, mean_range: Range) -> Tensor:
    """Advantages [N, K]; 0 for the groups that the filter drops."""
    kept = torch.zeros(len(rewards), 1, dtype=rewards.dtype)
    kept[select_groups(rewards, mixed=False, mean_range=mean_range)] = 1
    return group_advantages(rewards) * kept


def kept_counts(k: int, mean_range: Range) -> list[int]:
    """Numbers of right answers for which a group of K is kept."""
    return [c for c in range(k + 1) if mean_range[0] <= c / k <= mean_range[1]]


def weight(right: float, k: int, mean_range: Range) -> float:
    """W(J) of the module's formula."""
    counts = [c for c in kept_counts(k, mean_range) if 0 < c < k]
    return sum(comb(k, c) * right ** (c - 1) * (1 - right) ** (k - c - 1) * c * (k - c) for c in counts) / k**2


def kept_share(right: float, k: int, mean_range: Range) -> float:
    """Probability that a group of the question is kept."""
    return sum(comb(k, c) * right**c * (1 - right) ** (k - c) for c in kept_counts(k, mean_range))


def check_filtered(
    laws: Sequence[Law], gradients: Tensor, *, mean_range: Range = PAPER_RANGE, claimed: Range | None = None
) -> list[Check]:
    """Compare the mean gradient under the library's filter with W(J) grad J, and with that of the kept questions.

    Args:
        laws: the law of each question.
        gradients: grad J of each question, [N, P].
        mean_range: the filter under test.
        claimed: the filter of the formula; ``mean_range`` if None.
    """
    claimed = claimed or mean_range
    rows: list[Row] = []
    means, of_kept, worst = [], [], _worst_at_the_ends(laws, gradients)
    by_formula: list[list[Tensor]] = [[], []]
    for law, gradient in zip(laws, gradients, strict=True):
        given = score_moments(law)
        mean = from_patterns(given, _K, partial(filtered_advantages, mean_range=mean_range)).mean
        factor = weight(given.right, _K, claimed)
        share = _share(given.right, mean_range)
        error = relative(mean - factor * gradient, gradient)
        worst = max(worst, error)
        means.append(mean)
        of_kept.append(share * (_K - 1) / _K * gradient)
        by_formula[0].append(factor * gradient)
        by_formula[1].append(kept_share(given.right, _K, claimed) * gradient)
        rows.append([given.right, share, projection(mean, gradient), factor, share * (_K - 1) / _K, error])
    off = _sine(torch.stack(means).mean(0), torch.stack(of_kept).mean(0))
    expected = _sine(*(torch.stack(vectors).mean(0) for vectors in by_formula))
    curve = [j / 50 for j in range(1, 50)]
    detail = {
        "columns": ["J", "share of groups kept", "factor found", "W(J)", "share kept x (K-1)/K", "relative error"],
        "rows": rows,
        "curve_success": curve,
        "curves": {
            f"K = {k}, filter {list(mean_range)}": [weight(j, k, mean_range) for j in curve] for k in (_K, _PAPER_K)
        },
        "unfiltered": (_K - 1) / _K,
    }
    return [
        Check(
            id="filtered.objective",
            claim="Filtered by its own mean reward, a question's expected gradient is W(J) grad J: that of Phi(J).",
            quantity="largest relative error of E g, K = 8, and K = 5 with both ends of the range at a group's mean",
            exact=0.0,
            estimate=worst,
            error=worst,
            verdict=holds_if(worst < EXACT),
            detail=detail,
        ),
        Check(
            id="filtered.kept_questions",
            claim="It is not the gradient of the expected reward on the kept questions: the filter sees the rewards.",
            quantity="sine of the angle between E g and the gradient on questions weighted by their share kept, K = 8",
            exact=expected,
            estimate=off,
            error=abs(off - expected),
            verdict=holds_if(abs(off - expected) < EXACT and off > _SEEN),
            detail=detail,
        ),
    ]


def _sine(first: Tensor, second: Tensor) -> float:
    """Sine of the angle between two vectors."""
    return relative(first - projection(first, second) * second, first)


def _worst_at_the_ends(laws: Sequence[Law], gradients: Tensor) -> float:
    """Largest relative error of E g for groups whose mean can lie on an end of the range; 1 to 4 of 5 are kept."""
    errors = []
    for law, gradient in zip(laws, gradients, strict=True):
        given, j = score_moments(law), law.expected_reward
        mean = from_patterns(given, _ENDS_K, partial(filtered_advantages, mean_range=_ENDS_RANGE)).mean
        factor = sum(comb(5, c) * j ** (c - 1) * (1 - j) ** (4 - c) * c * (5 - c) for c in (1, 2, 3, 4)) / 25
        errors.append(relative(mean - factor * gradient, gradient))
    return max(errors)


def _share(right: float, mean_range: Range) -> float:
    """Probability that the library's filter keeps a group of 8, summed over all patterns of rewards."""
    rewards = patterns(_K)
    kept = select_groups(rewards, mixed=False, mean_range=mean_range)
    return float(pattern_probability(rewards[kept], right).sum())
