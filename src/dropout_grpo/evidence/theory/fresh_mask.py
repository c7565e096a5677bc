"""Compares replaying the rollout's mask in the update with drawing a fresh one, by exact sums over (m, m', a)."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.evidence.theory.check import Check, Row, holds_if
from dropout_grpo.evidence.theory.estimator import Estimate, Moments, from_patterns, over_questions
from dropout_grpo.evidence.theory.gradients import relative
from dropout_grpo.evidence.theory.law import Law
from dropout_grpo.evidence.theory.mask_pairs import Pairs, pair_moments, pair_up, ratio_moments, update_vectors
from dropout_grpo.evidence.theory.unbiased import EXACT
from dropout_grpo.rl.advantage import group_advantages

_K = 8
_OFF = math.inf  # an epsilon that clips nothing
Variants = Mapping[str, dict[str, Any] | None]
VARIANTS: Variants = {
    "ratio of the answer, not clipped": {"importance_sampling_level": "sequence", "epsilon": _OFF},
    "ratio of the answer, clipped": {"importance_sampling_level": "sequence"},
    "ratio of each token, not clipped": {"importance_sampling_level": "token", "epsilon": _OFF},
    "ratio of each token, clipped": {"importance_sampling_level": "token"},
    "ratio taken to be 1": None,
}
"""Options of ``rl.objective.surrogate``. None: the old log-probabilities are those of the update, detached, as in
trainers that compute no old log-probabilities when there is one update per batch."""


def check_ratio(laws: Sequence[Law], *, replayed: bool = True) -> Check:
    """The ratio at the old policy: 1 without variance under the replayed mask, random under a fresh one."""
    rows: list[Row] = []
    found = []
    for i, law in enumerate(laws):
        _, variance = ratio_moments(pair_up(law, replayed=replayed))
        mean_fresh, fresh = ratio_moments(pair_up(law, replayed=False))
        rows.append([i + 1, variance, fresh, mean_fresh])
        found.append(variance)
    worst = max(found)
    return Check(
        id="replay.ratio",
        claim="With the mask replayed the ratio at the old policy has variance 0; with a fresh mask it is random.",
        quantity="variance of the ratio of answers, worst question",
        exact=0.0,
        estimate=worst,
        error=worst,
        verdict=holds_if(worst < EXACT),
        detail={
            "columns": ["question", "variance, replayed", "variance, fresh", "mean, fresh"],
            "rows": rows,
        },
    )


def check_fresh(
    laws: Sequence[Law], gradients: Tensor, *, replayed: bool = False, variants: Variants = VARIANTS
) -> list[Check]:
    """Bias and variance of the gradient when the update draws fresh masks, for each form of the ratio.

    Args:
        laws: the law of each question.
        gradients: grad J of each question, [N, P].
        replayed: use the rollouts' own masks instead, under test; then there is no bias.
        variants: forms of the ratio, under test.
    """
    loo = partial(group_advantages, leave_one_out=True)  # mean grad J, so that bias and variance need no rescaling
    gradient = gradients.mean(0)
    truth = _estimate([_replay_moments(law) for law in laws], loo)
    rows: list[Row] = [["mask replayed", 0.0, relative(truth.mean - gradient, gradient), 1.0]]
    for name, options in variants.items():
        given, missed = [], []
        for law in laws:
            pairs = pair_up(law, replayed=replayed)
            vectors = update_vectors(pairs, options)
            given.append(pair_moments(pairs, vectors))
            missed.append(_missed(law, pairs, vectors))
        found = _estimate(given, loo)
        bias = relative(found.mean - gradient, gradient)
        rows.append([name, sum(missed) / len(missed), bias, found.variance / truth.variance])
    columns = ["update", "error of g given the rollouts", "bias of E g", "tr Cov g over replayed"]
    detail = {"columns": columns, "rows": rows}
    by_name = {row[0]: row for row in rows}
    product = by_name["ratio of each token, clipped"]
    exception = by_name["ratio of the answer, not clipped"]
    return [
        Check(
            id="replay.noise",
            claim="With a fresh mask in the update the gradient has a higher variance.",
            quantity="tr Cov g with fresh masks over that with replayed ones, unclipped ratio of the answer, K = 8",
            estimate=exception[3],
            verdict=holds_if(exception[3] > 1 + EXACT),
            detail=detail,
        ),
        Check(
            id="replay.given_rollouts",
            claim="With a fresh mask the gradient is biased for g: given the rollouts, its mean over masks is not g.",
            quantity="|mean over m' of a rollout's term - its term in g|, root mean square, relative",
            estimate=exception[1],
            verdict=holds_if(min(row[1] for row in rows[1:]) > EXACT),
            detail=detail,
        ),
        Check(
            id="replay.bias",
            claim="With a fresh mask GRPO's objective, a clipped ratio for each token, is biased for grad J as well.",
            quantity="|E g - grad J| / |grad J|",
            estimate=product[2],
            verdict=holds_if(product[2] > EXACT),
            detail=detail,
        ),
        Check(
            id="replay.exception",
            claim="But an unclipped ratio of whole answers corrects for the mask: E g is grad J, at a higher variance.",
            quantity="|E g - grad J| / |grad J|",
            exact=0.0,
            estimate=exception[2],
            error=exception[2],
            verdict=holds_if(exception[2] < EXACT),
            detail=detail,
        ),
    ]


def _replay_moments(law: Law) -> Moments:
    pairs = pair_up(law, replayed=True)
    return pair_moments(pairs, update_vectors(pairs, {}))


def _estimate(given: Sequence[Moments], advantages: Any) -> Estimate:
    return over_questions([from_patterns(m, _K, advantages) for m in given])


def _missed(law: Law, pairs: Pairs, vectors: Tensor) -> float:
    """Root mean square over (m, a) of |E_{m'} v(m, m', a) - score(m, a)|, relative to that of the score."""
    probability = pairs.probability.sum(1)  # [M, A]
    mean = torch.einsum("mua,muap->map", pairs.probability, vectors) / probability[..., None]
    missed = (probability * (mean - law.score).square().sum(-1)).sum()
    return float((missed / (probability * law.score.square().sum(-1)).sum()).sqrt())
