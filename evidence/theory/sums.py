"""Mean and variance of a group estimator g = (1/K) sum_k A_k v_k as finite sums; intervals of sampled means.

The K rollouts of a group are independent and A depends only on rewards. Given its reward a rollout is independent of
the others, so the first two moments of v given the reward are all that is needed, and a sum over the 2^K patterns of
right and wrong is exact. It takes the advantages as a function, so it runs over the library's own ``group_advantages``.

Shapes: n atoms (a mask and an answer), P parameters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean, stdev

import torch
from torch import Tensor

from evidence.theory.toy import Law

EXACT = 1e-10
"""Relative error below which two float64 sums count as equal."""

CONFIDENCE = 0.999
"""Confidence of every interval: a true claim fails for one seed in a thousand."""

Advantages = Callable[[Tensor], Tensor]
"""Advantages [G, K] from rewards [G, K]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Moments of a rollout's vector v given its reward, 0 or 1."""

    right: float  # probability of reward 1
    mean: Tensor  # [2, P]
    square: Tensor  # [2], mean of |v|^2


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The mean [P] of a group's gradient, and the trace of its covariance."""

    mean: Tensor
    variance: float


def moments(probability: Tensor, rewards: Tensor, vectors: Tensor) -> Moments:
    """Moments from atoms: probability [n], rewards [n] of 0 and 1, vectors [n, P]; 0 given a reward that none has."""
    assert bool(((rewards == 0) | (rewards == 1)).all()), "rewards must be 0 or 1"
    weights = torch.stack([probability * (rewards == r) for r in (0, 1)])  # [2, n]
    share = weights.sum(1)
    right = float(share[1])
    share = torch.where(share > 0, share, torch.ones_like(share))
    return Moments(
        right=right,
        mean=weights @ vectors / share[:, None],
        square=weights @ vectors.square().sum(-1) / share,
    )


def score_moments(law: Law) -> Moments:
    """Moments of the score grad log pi(a | x, m) given the reward."""
    rewards = law.rewards.expand(law.probability.shape)
    return moments(law.probability.flatten(), rewards.flatten(), law.score.flatten(0, 1))


def patterns(k: int) -> Tensor:
    """All rewards of a group, [2^K, K] of 0 and 1."""
    return torch.tensor([[float(i >> j & 1) for j in range(k)] for i in range(1 << k)], dtype=torch.float64)


def pattern_probability(rewards: Tensor, right: float) -> Tensor:
    """Probability of each pattern of rewards [*, K] when each of the K is 1 with probability ``right``."""
    return (rewards * right + (1 - rewards) * (1 - right)).prod(-1)


def from_patterns(of_rollout: Moments, k: int, advantages: Advantages) -> Estimate:
    """The estimate for groups of K, from the 2^K patterns of rewards."""
    rewards = patterns(k)
    probability = pattern_probability(rewards, of_rollout.right)  # [2^K]
    gains = advantages(rewards)
    reward = rewards.long()
    group_mean = (gains[..., None] * of_rollout.mean[reward]).sum(1) / k  # [2^K, P], mean of g given the pattern
    spread = of_rollout.square - of_rollout.mean.square().sum(-1)  # [2], trace of the covariance of v given its reward
    within = (gains.square() * spread[reward]).sum(1) / k**2
    mean = probability @ group_mean
    second = probability @ (within + group_mean.square().sum(-1))
    return Estimate(mean=mean, variance=float(second - mean.square().sum()))


def over_questions(estimates: Sequence[Estimate]) -> Estimate:
    """The estimate for one group of each question, averaged."""
    n = len(estimates)
    return Estimate(
        mean=torch.stack([estimate.mean for estimate in estimates]).mean(0),
        variance=sum(estimate.variance for estimate in estimates) / n**2,
    )


def relative(difference: Tensor, to: Tensor) -> float:
    """Length of ``difference`` in units of the length of ``to``."""
    return float(difference.norm() / to.norm())


def projection(vector: Tensor, on: Tensor) -> float:
    """Length of the projection of a vector, in units of the one that it is projected on."""
    return float(vector @ on / on.square().sum())


def sine(vector: Tensor, other: Tensor) -> float:
    """Sine of the angle between two vectors."""
    return relative(vector - projection(vector, other) * other, vector)


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean of independent values and its interval, by the central limit theorem."""
    mean = fmean(values)
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * stdev(values) / sqrt(len(values))
    return mean, (mean - half, mean + half)


def inside(value: float, interval: tuple[float, float]) -> bool:
    """True if the value lies in the interval."""
    return interval[0] <= value <= interval[1]
