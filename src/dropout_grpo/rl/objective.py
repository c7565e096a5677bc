"""The objective of GRPO with replayed masks: the mask is sampled with the answer, and replayed from its seed.

Differences from GRPO as published:

- The log-ratio compares the new and the old policy under the same mask. The distribution of masks has no parameters, so
  it contributes no term.
- Advantages are not divided by a standard deviation.
- Tokens are summed, not averaged, within an answer, so that the gradient at the old policy is the policy gradient of
  whole answers. The authors' own runs average within an answer, then over the kept rollouts (``loss_type="grpo"``).
- The mean is over all sampled rollouts, including those of zero-variance groups, which need no forward pass.
- There is no KL unless ``beta`` is set.

Shapes: R rollouts, L answer tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dropout_grpo.config.grpo import ImportanceSamplingLevel, KLEstimator, LossType


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Totals over all rollouts sampled for an update, so that losses of micro-batches add up to the batch's loss."""

    rollouts: int
    tokens: int
    max_completion_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Surrogate:
    """A micro-batch's share of the loss and the metrics. All are sums, to be added over micro-batches."""

    loss: Tensor  # []
    kl: Tensor  # [], sum over answer tokens of the KL's estimate
    clipped_low: Tensor  # [], number of answer tokens
    clipped_high: Tensor  # [], number of answer tokens


def token_weight(mask: Tensor, loss_type: LossType, totals: Totals, dtype: torch.dtype) -> Tensor:
    """Weight of each answer token in the loss, [R, L] of type ``dtype`` from the answer mask [R, L].

    ``sum`` sums tokens and averages rollouts (the default here). As in TRL, ``grpo`` averages within an answer first,
    ``dr_grpo`` divides the sum by ``max_completion_length``, and ``dapo`` averages over all tokens of the batch,
    including those of masked truncated answers.
    """
    weight = mask.to(dtype)
    if loss_type == "sum":
        return weight / totals.rollouts
    if loss_type == "grpo":
        return weight / mask.sum(-1, keepdim=True).clamp(min=1) / totals.rollouts
    if loss_type == "dr_grpo":
        return weight / totals.rollouts / totals.max_completion_length
    return weight / totals.tokens


def kl_estimate(gap: Tensor, estimator: KLEstimator, delta: float) -> Tensor:
    """Estimate of KL(pi || pi_ref) at each sampled token, with the shape of ``gap``.

    With gap = log pi_ref - log pi, Schulman's k3 is e^gap - gap - 1. It is non-negative, and unbiased for tokens
    sampled from pi. It grows exponentially with the gap, so one token that is much more probable under the reference
    can outweigh a whole batch. The public draft of the paper writes its formulas with r = log pi - log pi_ref. Here the
    argument is the gap above, as in TRL, because only in this direction is k3 an estimate of KL(pi || pi_ref).

    Args:
        gap: log pi_ref - log pi.
        estimator: ``k3``; ``k3_huber`` continues it beyond +-delta by its tangents, so that its slope is bounded and
            never 0 there (public draft of the paper, Huberised k3); ``k3_clamp`` keeps it constant there, so that such
            a token has no gradient.
        delta: absolute gap beyond which ``k3_huber`` and ``k3_clamp`` differ from k3.
    """
    if estimator == "k3":
        return gap.exp() - gap - 1.0
    inner = gap.clamp(-delta, delta)
    k3 = inner.exp() - inner - 1.0
    if estimator == "k3_clamp":
        return k3
    slope = inner.detach().expm1()  # slope of k3 at the end of the range; inside the range gap - inner is 0
    return k3 + slope * (gap - inner)


def surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    totals: Totals,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    importance_sampling_level: ImportanceSamplingLevel = "token",
    loss_type: LossType = "sum",
    beta: float = 0.0,
    ref_logprobs: Tensor | None = None,
    kl_estimator: KLEstimator = "k3",
    kl_delta: float = 5.0,
) -> Surrogate:
    """Clipped surrogate, negated for descent (PPO, equation 7; GRPO, equation 3; with the mask replayed).

    Args:
        logprobs: log pi_theta(a_t | x, m, a_<t) under the replayed mask, [R, L], with gradient.
        old_logprobs: the same at the time when the answer was sampled, [R, L].
        mask: 1 for answer tokens, [R, L].
        advantages: A_k, [R].
        totals: totals that normalise the loss.
        epsilon: the ratio is clipped to [1 - epsilon, 1 + epsilon_high].
        epsilon_high: epsilon when None.
        importance_sampling_level: ``token`` for one ratio per token, or ``sequence`` for the product over all tokens,
            as in the theory (GSPO and TRL take the root of this product instead).
        loss_type: see ``token_weight``.
        beta: weight of the estimate of KL(pi_theta || pi_ref).
        ref_logprobs: the reference's log-probabilities, [R, L]; needed when beta > 0.
        kl_estimator: see ``kl_estimate``.
        kl_delta: see ``kl_estimate``.
    """
    mask = mask.bool()
    log_ratio = torch.where(mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    if importance_sampling_level == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True)  # [R, 1]
    high = epsilon if epsilon_high is None else epsilon_high
    gain = advantages[:, None]  # [R, 1]
    # Without a negative advantage the clip holds here, so a larger ratio changes nothing. If it overflowed, inf times
    # the gradient 0 would be NaN.
    beyond = math.log1p(high) + 1.0
    ratio = torch.where(gain < 0, log_ratio, log_ratio.clamp(max=beyond)).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + high)
    objective = torch.minimum(ratio * gain, clipped * gain)  # [R, L] or [R, 1]
    weight = token_weight(mask, loss_type, totals, objective.dtype)
    if importance_sampling_level == "sequence":
        # There is one ratio per answer. It counts once under "sum", and has TRL's token weights otherwise.
        weight = weight.amax(-1, keepdim=True) if loss_type == "sum" else weight.sum(-1, keepdim=True)
    loss = -(objective * weight).sum()
    kl = torch.zeros_like(loss)
    if beta > 0:
        assert ref_logprobs is not None, "beta > 0 needs the reference's log-probabilities"
        gap = torch.where(mask, ref_logprobs - logprobs, torch.zeros_like(logprobs))
        estimate = kl_estimate(gap, kl_estimator, kl_delta)
        loss = loss + beta * (estimate * token_weight(mask, loss_type, totals, estimate.dtype)).sum()
        kl = estimate.sum().detach()
    with torch.no_grad():
        low = (ratio < 1 - epsilon) & (gain < 0) & mask
        up = (ratio > 1 + high) & (gain > 0) & mask
    return Surrogate(loss=loss, kl=kl, clipped_low=low.sum(), clipped_high=up.sum())
