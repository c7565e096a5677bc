"""Advantages: reward minus a baseline, which is the mean of the rollout's group or a moving average over steps.

The reward is NaN if no reward function judged the rollout. Such a rollout is left out of all means and has advantage 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dropout_grpo.config.grpo import ScaleRewards

_STD_FLOOR = 1e-4  # TRL's


def zero_variance(rewards: Tensor) -> Tensor:
    """True for groups whose judged rollouts all have the same reward, or are fewer than two; bool [N] from [N, K]."""
    unjudged = rewards.isnan()
    lowest = rewards.masked_fill(unjudged, torch.inf).amin(dim=1)
    highest = rewards.masked_fill(unjudged, -torch.inf).amax(dim=1)
    return highest <= lowest


def group_means(rewards: Tensor) -> Tensor:
    """Mean reward of each group's judged rollouts, [N] from [N, K]; NaN if none was judged."""
    judged = ~rewards.isnan()
    return torch.where(judged, rewards, torch.zeros_like(rewards)).sum(dim=1) / judged.sum(dim=1)


def counted_rollouts(rewards: Tensor, *, at_least: int = 2) -> Tensor:
    """True for the rollouts that the update averages over, bool [N, K]: judged, in a group with enough judged ones."""
    judged = ~rewards.isnan()
    return judged & (judged.sum(dim=1, keepdim=True) >= at_least)


def group_advantages(rewards: Tensor, *, scale_rewards: ScaleRewards = "none", leave_one_out: bool = False) -> Tensor:
    """A_k = r_k - mean_j r_j, [N, K] from rewards [N, K].

    The surrogate's gradient with these is (K-1)/K times the true one (paper, unbiasedness; ``docs/theory.md``).

    Args:
        rewards: one row per group.
        scale_rewards: ``group`` divides by the group's standard deviation, ``batch`` by the batch's (both as TRL does);
            both bias the gradient. ``none`` is the paper's choice.
        leave_one_out: multiply by K/(K-1), where K is the number of judged rollouts. This subtracts the mean of the
            other rollouts instead, and makes the estimator unbiased.

    Returns:
        Advantages; exactly 0 for a group without variance, not only up to rounding.
    """
    judged = ~rewards.isnan()
    advantages = rewards - group_means(rewards)[:, None]
    zero = zero_variance(rewards)[:, None] | ~judged
    advantages = torch.where(zero, torch.zeros_like(rewards), advantages)
    if leave_one_out:
        k = judged.sum(dim=1, keepdim=True).to(rewards.dtype)
        advantages = advantages * (k / (k - 1).clamp(min=1))
    if scale_rewards == "group":
        return advantages / (standard_deviations(rewards)[:, None] + _STD_FLOOR)
    if scale_rewards == "batch":
        return advantages / (standard_deviations(rewards.view(1, -1)) + _STD_FLOOR)
    return advantages


def all_correct(rewards: Tensor) -> Tensor:
    """True for the groups whose rollouts all have the same reward, above 0; bool [N] from rewards [N, K]."""
    return zero_variance(rewards) & (_highest(rewards) > 0)


def all_wrong(rewards: Tensor) -> Tensor:
    """True for the groups whose rollouts all have the same reward, 0 or below; bool [N] from rewards [N, K].

    A group without a judged rollout is neither wrong nor correct.
    """
    return zero_variance(rewards) & (_highest(rewards) <= 0) & ~rewards.isnan().all(dim=1)


def _highest(rewards: Tensor) -> Tensor:
    return rewards.nan_to_num(nan=-torch.inf).amax(dim=1)


def standard_deviations(rewards: Tensor) -> Tensor:
    """Sample standard deviation of each row's judged rewards, [N] from [N, K]; 0 for fewer than two."""
    judged = ~rewards.isnan()
    squares = torch.where(judged, rewards - group_means(rewards)[:, None], torch.zeros_like(rewards)).square()
    return (squares.sum(dim=1) / (judged.sum(dim=1) - 1).clamp(min=1)).sqrt()


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingAverage:
    """Exponential moving average of the mean reward of earlier steps: REINFORCE's baseline.

    The average is divided by its total weight (as in Adam, algorithm 1), so that its start at 0 does not bias it. It
    never contains the rewards of the current step, so REINFORCE with this baseline is unbiased.
    """

    total: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float:
        """The baseline; 0 before the first step."""
        return self.total / self.weight if self.weight else 0.0

    def after(self, rewards: Tensor, decay: float) -> "MovingAverage":
        """The average with one more step's rewards; unchanged if none was judged."""
        judged = rewards[~rewards.isnan()].double()
        if not judged.numel():
            return self
        fresh = 1.0 - decay
        return MovingAverage(
            total=decay * self.total + fresh * float(judged.mean()), weight=decay * self.weight + fresh
        )


def baseline_advantages(rewards: Tensor, baseline: float) -> Tensor:
    """A_k = r_k - baseline, [N, K] from rewards [N, K]."""
    return (rewards - baseline).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
