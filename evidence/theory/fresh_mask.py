"""The update under a fresh mask instead of the rollout's own, by exact sums over every (m, m', a).

A rollout draws mask m and answer a; the update scores a under an independent m'. The rollout's contribution to the
gradient is A v(m, m', a), where v is a weighted sum of the token scores under m'. The weights come from the library's
own objective, as its derivative by the log-probabilities, and are compared with PPO's rule, written out here.

Shapes: M masks of rollouts, U masks of updates, A answers, L tokens, P parameters.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.objective import Totals, surrogate
from evidence.theory.check import Check, Row
from evidence.theory.sums import (
    EXACT,
    Estimate,
    Moments,
    from_patterns,
    inside,
    mean_interval,
    moments,
    over_questions,
    relative,
    score_moments,
)
from evidence.theory.toy import FRESH, Exact, Law, objective_gradient, sample

_K = 8
_RATIOS = 8192  # rollouts of each question
_SEEN = 0.01  # a bias or a gain in variance that is no rounding error
_WHOLE, _CLIPPED = "ratio of the answer, not clipped", "ratio of each token, clipped"

VARIANTS: dict[str, dict[str, Any] | None] = {
    _WHOLE: {"importance_sampling_level": "sequence", "epsilon": math.inf},
    "ratio of the answer, clipped": {"importance_sampling_level": "sequence"},
    "ratio of each token, not clipped": {"importance_sampling_level": "token", "epsilon": math.inf},
    _CLIPPED: {"importance_sampling_level": "token"},
    "ratio taken to be 1": None,
}
"""Options of ``rl.objective.surrogate``. None: the old log-probabilities are those of the update, detached, as in
trainers that compute no old log-probabilities when there is one update per batch."""


def joint(weights: Tensor) -> Tensor:
    """q(m) q(m') of a rollout's mask and its update's, [M, U]."""
    return weights[:, None] * weights[None, :]


def log_ratios(law: Law) -> Tensor:
    """log pi(a_t | x, m', a_<t) - log pi(a_t | x, m, a_<t) of tokens, [M, U, A, L]."""
    return law.logprobs[None, :] - law.logprobs[:, None]


def weights_by_library(law: Law, options: dict[str, Any] | None) -> Tensor:
    """Weight of each token's score in v, [M, U, A, L].

    The surrogate is positively homogeneous in A and the sign of A is that of r - 1/2, so the weights at A = +1 and -1
    determine all others.
    """
    log_ratio = log_ratios(law)
    sign = torch.where(law.rewards == 1, 1.0, -1.0).double().expand(log_ratio.shape[:3]).flatten()
    old = torch.zeros_like(log_ratio).flatten(0, 2)
    new = (old.clone() if options is None else log_ratio.flatten(0, 2)).requires_grad_()
    # One rollout per loss, so that the weights are not divided by the number of rollouts.
    totals = Totals(rollouts=1, tokens=1, max_completion_length=log_ratio.shape[-1])
    mask = law.answer_mask.expand(log_ratio.shape).flatten(0, 2)
    (slope,) = torch.autograd.grad(-surrogate(new, old, mask, sign, totals=totals, **(options or {})).loss, new)
    return (slope * sign[:, None]).view(log_ratio.shape)  # sign is its own inverse


def weights_by_rule(law: Law, options: dict[str, Any] | None) -> Tensor:
    """The same weights by PPO's rule.

    A token counts with its ratio, or not at all where the clip holds: above 1 + epsilon for a positive advantage, below
    1 - epsilon for a negative one. On the level of sequences the ratio is that of the answer.
    """
    log_ratio = log_ratios(law)
    if options is None:
        return law.answer_mask.double().expand(log_ratio.shape)
    if options["importance_sampling_level"] == "sequence":
        log_ratio = log_ratio.sum(-1, keepdim=True).expand_as(log_ratio)
    ratio, epsilon = log_ratio.exp(), options.get("epsilon", 0.2)
    right = (law.rewards == 1)[:, None]  # [A, 1], where the advantage is positive
    moves = torch.where(right, ratio <= 1 + epsilon, ratio >= 1 - epsilon)
    return ratio * moves * law.answer_mask


def check_ratio(exact: Exact, *, seed: int) -> Check:
    """The library's ratios at the old policy: 1 under the replayed mask; under a fresh one as spread as enumerated."""
    rows: list[Row] = []
    largest, matches = 0.0, []
    for question, law in enumerate(exact.laws):
        questions = torch.full((_RATIOS // 8,), question)
        seeds = rollout_seeds(seed, question, torch.arange(len(questions)), 8)
        rollouts = sample(exact.toy, questions, seeds)
        # (ratio - 1)^2 of every answer; the mean of the ratio is 1
        own, fresh = (
            (objective_gradient(exact.toy, rollouts, update_seeds=used).log_ratio.sum(-1).exp() - 1).square()
            for used in (seeds, seeds + FRESH)
        )
        mean, interval = mean_interval(fresh.tolist())
        squares = (log_ratios(law).sum(-1).exp() - 1).square()
        enumerated = float((joint(law.weights)[..., None] * law.policy[:, None] * squares).sum())
        largest = max(largest, float(own.max()))
        matches.append(inside(enumerated, interval))
        rows.append([question + 1, float(own.mean()), mean, *interval, enumerated])
    return Check(
        id="replay.ratio",
        claim="With the mask replayed the ratio at the old policy has variance 0; with a fresh mask it is random.",
        quantity="largest (ratio - 1)^2 of an answer, replayed",
        expected=0.0,
        value=largest,
        holds=largest < EXACT and all(matches),
        columns=["question", "variance, replayed", "variance, fresh", "from", "to", "fresh, enumerated"],
        rows=rows,
    )


def check_fresh(exact: Exact) -> list[Check]:
    """Bias and variance of the gradient when the update draws fresh masks, for each form of the ratio."""
    one_out = partial(group_advantages, leave_one_out=True)  # mean grad J, so bias and variance need no rescaling
    gradient = exact.gradients.mean(0)

    def estimate(of_rollouts: list[Moments]) -> Estimate:
        return over_questions([from_patterns(m, _K, one_out) for m in of_rollouts])

    def bias_and_variance(weights: Callable[..., Tensor], options: dict[str, Any] | None) -> list[float]:
        fresh = estimate([_moments(law, weights(law, options)) for law in exact.laws])
        return [relative(fresh.mean - gradient, gradient), fresh.variance / replayed.variance]

    replayed = estimate([score_moments(law) for law in exact.laws])
    library = {name: bias_and_variance(weights_by_library, options) for name, options in VARIANTS.items()}
    rule = {name: bias_and_variance(weights_by_rule, options) for name, options in VARIANTS.items()}
    apart = max(abs(a - b) for name in VARIANTS for a, b in zip(library[name], rule[name], strict=True))
    columns = ["update", "bias of E g", "tr Cov g over replayed"]
    rows: list[Row] = [["mask replayed", relative(replayed.mean - gradient, gradient), 1.0]]
    rows += [[name, *values] for name, values in library.items()]
    bias, (exception, noise) = library[_CLIPPED][0], library[_WHOLE]
    return [
        Check(
            id="replay.noise",
            claim="With a fresh mask in the update the gradient has a higher variance.",
            quantity="tr Cov g with fresh masks over that with replayed ones, unclipped ratio of the answer, K = 8",
            expected=rule[_WHOLE][1],
            value=noise,
            holds=apart < EXACT and noise > 1 + _SEEN,
            columns=columns,
            rows=rows,
        ),
        Check(
            id="replay.bias",
            claim="With a fresh mask GRPO's objective, a clipped ratio for each token, is biased for grad J.",
            quantity="|E g - grad J| / |grad J|",
            expected=rule[_CLIPPED][0],
            value=bias,
            holds=apart < EXACT and bias > _SEEN,
            columns=columns,
            rows=rows,
        ),
        Check(
            id="replay.exception",
            claim="But an unclipped ratio of whole answers corrects for the mask: E g is grad J, at a higher variance.",
            quantity="|E g - grad J| / |grad J|",
            expected=0.0,
            value=exception,
            holds=exception < EXACT,
            columns=columns,
            rows=rows,
        ),
    ]


def _moments(law: Law, weights: Tensor) -> Moments:
    """Moments of v given the reward, from the weights [M, U, A, L] of the token scores under m'."""
    vectors = torch.einsum("muat,uatp->muap", weights, law.scores)
    probability = joint(law.weights)[..., None] * law.policy[:, None]  # [M, U, A]
    rewards = law.rewards.expand(probability.shape)
    return moments(probability.flatten(), rewards.flatten(), vectors.flatten(0, 2))
