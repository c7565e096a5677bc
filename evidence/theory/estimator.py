"""Mean and variance of a group estimator g = (1/K) sum_k A_k v_k as finite sums.

The K rollouts of a group are independent and A depends only on rewards. ``from_all_groups`` sums over every group of
every atom (a mask and an answer), which n^K limits to K = 2 and 3. ``from_patterns`` sums over the 2^K patterns of
right and wrong instead: given its reward a rollout is independent of the others, so the first two moments of v given
the reward are all that is needed, and K = 8 costs 256 terms. Both are exact and take the advantages as a function, so
the sums run over the library's own ``group_advantages``.

Shapes: n atoms, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.theory.setting import Advantages


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
    """Moments from atoms: probability [n], rewards [n] of 0 and 1, vectors [n, P]."""
    assert bool(((rewards == 0) | (rewards == 1)).all()), "rewards must be 0 or 1"
    weights = torch.stack([probability * (rewards == r) for r in (0, 1)])  # [2, n]
    share = weights.sum(1)
    return Moments(
        right=float(share[1]),
        mean=weights @ vectors / share[:, None],
        square=weights @ vectors.square().sum(-1) / share,
    )


def patterns(k: int) -> Tensor:
    """All rewards of a group, [2^K, K] of 0 and 1."""
    return torch.tensor([[float(i >> j & 1) for j in range(k)] for i in range(1 << k)], dtype=torch.float64)


def pattern_probability(rewards: Tensor, right: float) -> Tensor:
    """Probability of each pattern of rewards [*, K] when each of the K is 1 with probability ``right``."""
    return (rewards * right + (1 - rewards) * (1 - right)).prod(-1)


def from_patterns(given: Moments, k: int, advantages: Advantages) -> Estimate:
    """The estimate for groups of K, from the 2^K patterns of rewards."""
    rewards = patterns(k)
    probability = pattern_probability(rewards, given.right)  # [2^K]
    gains = advantages(rewards)
    reward = rewards.long()
    group_mean = (gains[..., None] * given.mean[reward]).sum(1) / k  # [2^K, P], mean of g given the pattern
    spread = given.square - given.mean.square().sum(-1)  # [2], trace of the covariance of v given its reward
    within = (gains.square() * spread[reward]).sum(1) / k**2
    mean = probability @ group_mean
    second = probability @ (within + group_mean.square().sum(-1))
    return Estimate(mean=mean, variance=float(second - mean.square().sum()))


def from_all_groups(probability: Tensor, rewards: Tensor, vectors: Tensor, k: int, advantages: Advantages) -> Tensor:
    """E g [P] as the sum over all n^K groups of atoms: probability [n], rewards [n], vectors [n, P]."""
    n = len(probability)
    others = torch.cartesian_prod(*[torch.arange(n)] * (k - 1)).view(-1, k - 1)  # [n^(K-1), K-1]
    rest = probability[others].prod(1)
    weight = torch.zeros(n, dtype=torch.float64)  # of each atom's vector in E g
    for first in range(n):
        group = torch.cat([rewards[first].expand(len(others), 1), rewards[others]], dim=1)
        gains = advantages(group) * (probability[first] * rest)[:, None] / k
        weight[first] += gains[:, 0].sum()
        for place in range(k - 1):
            weight += torch.bincount(others[:, place], gains[:, place + 1], minlength=n)
    return weight @ vectors


def over_questions(estimates: Sequence[Estimate]) -> Estimate:
    """The estimate for one group of each question, averaged."""
    n = len(estimates)
    return Estimate(
        mean=torch.stack([estimate.mean for estimate in estimates]).mean(0),
        variance=sum(estimate.variance for estimate in estimates) / n**2,
    )
