"""Every (m, m', a): the mask of a rollout, the mask of its update, and its answer.

A rollout draws mask m and answer a; the update scores a under m'. With a fresh mask m' is independent of m. The
contribution of the rollout to the gradient is then A v(m, m', a), where v comes from the library's own objective:
its derivative by the log-probabilities is the weight of each token's score. The surrogate is
positively homogeneous in A and the sign of A is that of r - 1/2, so the weights at A = +1 and -1 determine all others.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.rl.objective import Batch, surrogate
from evidence.theory.estimator import Moments, moments
from evidence.theory.law import Law


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Every (m, m', a) of one question: M masks, U masks of the update, A answers."""

    probability: Tensor  # [M, U, A]
    log_ratio: Tensor  # [M, U, A, L], of tokens
    update_scores: Tensor  # [U, A, L, P]
    rewards: Tensor  # [A]
    answer_mask: Tensor  # [A, L]

    @property
    def ratio(self) -> Tensor:
        """pi(a | x, m') / pi(a | x, m), [M, U, A]."""
        return self.log_ratio.sum(-1).exp()


def pair_up(law: Law, *, replayed: bool) -> Pairs:
    """Rollouts with the mask of their update, which is their own or an independent one."""
    count = len(law.weights)
    joint = torch.diag(law.weights) if replayed else law.weights[:, None] * law.weights[None, :]  # [M, U]
    assert joint.shape == (count, count)
    return Pairs(
        probability=joint[:, :, None] * law.policy[:, None],
        log_ratio=law.logprobs[None, :] - law.logprobs[:, None],
        update_scores=law.scores,
        rewards=law.rewards,
        answer_mask=law.answer_mask,
    )


def update_vectors(pairs: Pairs, options: dict[str, Any] | None) -> Tensor:
    """v of every (m, m', a), [M, U, A, P]: the gradient of the objective at advantage A is A v."""
    shape = pairs.log_ratio.shape
    sign = torch.where(pairs.rewards == 1, 1.0, -1.0).double().expand(shape[:3]).flatten()
    mask = pairs.answer_mask.expand(shape).flatten(0, 2)
    old = torch.zeros_like(pairs.log_ratio).flatten(0, 2)
    new = (torch.zeros_like(old) if options is None else pairs.log_ratio.flatten(0, 2)).requires_grad_()
    # One rollout per loss, so that the weights are not divided by the number of rollouts.
    batch = Batch(rollouts=1, tokens=1, max_completion_length=shape[-1])
    loss = surrogate(new, old, mask, sign, batch=batch, **(options or {})).loss
    (slope,) = torch.autograd.grad(-loss, new)
    weight = (slope * sign[:, None]).view(shape)  # sign is its own inverse
    return torch.einsum("muat,uatp->muap", weight, pairs.update_scores)


def vectors_by_hand(pairs: Pairs, options: dict[str, Any] | None) -> Tensor:
    """The same vectors from PPO's rule, without the library's objective, [M, U, A, P].

    A token counts with its ratio, or not at all where the clip holds: above 1 + epsilon for a positive advantage, below
    1 - epsilon for a negative one. On the level of sequences the ratio is that of the answer.
    """
    if options is None:
        return pairs.update_scores.sum(2).expand(*pairs.log_ratio.shape[:3], -1)
    epsilon = options.get("epsilon", 0.2)
    right = (pairs.rewards == 1)[:, None]  # [A, 1], where the advantage is positive
    if options.get("importance_sampling_level") == "sequence":
        ratio = pairs.ratio[..., None].expand_as(pairs.log_ratio)
    else:
        ratio = pairs.log_ratio.exp()
    moves = torch.where(right, ratio <= 1 + epsilon, ratio >= 1 - epsilon)
    return torch.einsum("muat,uatp->muap", ratio * moves * pairs.answer_mask, pairs.update_scores)


def pair_moments(pairs: Pairs, vectors: Tensor) -> Moments:
    """Moments of v given the reward."""
    rewards = pairs.rewards.expand(pairs.probability.shape)
    return moments(pairs.probability.flatten(), rewards.flatten(), vectors.flatten(0, 2))


def ratio_moments(pairs: Pairs) -> tuple[float, float]:
    """Mean and variance of the ratio of answers."""
    mean = float((pairs.probability * pairs.ratio).sum())
    return mean, float((pairs.probability * (pairs.ratio - mean).square()).sum())
