"""Group-relative advantages: reward minus the mean of its group."""

import torch
from torch import Tensor

from dropout_grpo.rl.config import ScaleRewards

_STD_FLOOR = 1e-4  # TRL's


def zero_variance(rewards: Tensor) -> Tensor:
    """True for groups whose rollouts all earned the same, bool [N] from rewards [N, K]."""
    return (rewards == rewards[:, :1]).all(dim=1)


def group_advantages(rewards: Tensor, *, scale_rewards: ScaleRewards = "none", leave_one_out: bool = False) -> Tensor:
    """A_k = r_k - mean_j r_j, [N, K] from rewards [N, K].

    The surrogate's gradient with these is (K-1)/K times the true one (paper, unbiasedness; ``docs/theory.md``).

    Args:
        rewards: one row a group.
        scale_rewards: ``group`` divides by the group's standard deviation, ``batch`` by the batch's (both as TRL does);
            either biases the gradient. ``none`` is the paper's.
        leave_one_out: multiply by K/(K-1), which makes the mean that of the other rollouts and the estimator unbiased.

    Returns:
        Advantages; those of a group without variance are exactly 0, not 0 up to rounding.
    """
    advantages = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = torch.where(zero_variance(rewards)[:, None], torch.zeros_like(rewards), advantages)
    if leave_one_out:
        k = rewards.shape[1]
        advantages = advantages * (k / (k - 1))
    if scale_rewards == "group":
        return advantages / (rewards.std(dim=1, keepdim=True) + _STD_FLOOR)
    if scale_rewards == "batch":
        return advantages / (rewards.std() + _STD_FLOOR)
    return advantages
