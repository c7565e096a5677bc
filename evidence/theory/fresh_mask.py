"""Compares replaying the rollout's mask in the update with drawing a fresh one, by exact sums over (m, m', a)."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.estimator import Estimate, Moments, from_patterns, over_questions
from evidence.theory.gradients import relative
from evidence.theory.interval import inside, mean_interval
from evidence.theory.law import Law
from evidence.theory.mask_pairs import (
    Pairs,
    pair_moments,
    pair_up,
    ratio_moments,
    update_vectors,
    vectors_by_hand,
)
from evidence.theory.setting import Rollouts, objective_gradient, sample
from evidence.theory.surrogate_gradient import FRESH
from evidence.theory.toy import Toy
from evidence.theory.unbiased import EXACT

_K = 8
_RATIOS = 8192  # rollouts of each question
_OFF = math.inf  # an epsilon that clips nothing
_SEEN = 0.01  # a bias or a gain in variance that is no rounding error
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


def check_ratio(toy: Toy, laws: Sequence[Law], *, seed: int, replayed: bool = True, drawn_again: bool = True) -> Check:
    """The library's ratios at the old policy: 1 under the replayed mask; under a fresh one as spread as enumerated.

    Args:
        toy: the toy.
        laws: the law of each question.
        seed: seed of the rollouts.
        replayed: update under the rollouts' own masks, under test.
        drawn_again: the other update draws its masks again, under test.
    """
    rows: list[Row] = []
    spread, matches = 0.0, []
    for question, law in enumerate(laws):
        asked = torch.full((_RATIOS // 8,), question)
        seeds = rollout_seeds(seed, question, torch.arange(len(asked)), 8)
        rollouts = sample(toy.setting, asked, seeds)

        def squares(update_seeds: Tensor, rollouts: Rollouts = rollouts) -> Tensor:
            """(ratio - 1)^2 of every answer; the mean of the ratio is 1."""
            found = objective_gradient(toy.setting, rollouts, group_advantages, update_seeds=update_seeds)
            return (found.log_ratio.sum(-1).exp() - 1).square().double()

        own = squares(seeds if replayed else seeds + FRESH)
        mean, interval = mean_interval(squares(seeds + FRESH if drawn_again else seeds).tolist())
        _, exact = ratio_moments(pair_up(law, replayed=False))
        spread = max(spread, float(own.max()))
        matches.append(inside(exact, interval))
        rows.append([question + 1, float(own.mean()), mean, *interval, exact])
    return Check(
        id="replay.ratio",
        claim="With the mask replayed the ratio at the old policy has variance 0; with a fresh mask it is random.",
        quantity="largest (ratio - 1)^2 of an answer, replayed",
        exact=0.0,
        estimate=spread,
        error=spread,
        verdict=holds_if(spread < EXACT and all(matches)),
        detail={
            "columns": ["question", "variance, replayed", "variance, fresh", "from", "to", "fresh, enumerated"],
            "rows": rows,
        },
    )


def check_fresh(
    laws: Sequence[Law], gradients: Tensor, *, replayed: bool = False, variants: Variants = VARIANTS
) -> list[Check]:
    """Bias and variance of the gradient when the update draws fresh masks, for each form of the ratio.

    Every value of the library's objective is compared with that of PPO's rule, written out in ``mask_pairs``.

    Args:
        laws: the law of each question.
        gradients: grad J of each question, [N, P].
        replayed: use the rollouts' own masks instead, under test; then there is no bias.
        variants: forms of the ratio, under test.
    """
    loo = partial(group_advantages, leave_one_out=True)  # mean grad J, so that bias and variance need no rescaling
    gradient = gradients.mean(0)
    truth = _estimate([_replay_moments(law) for law in laws], loo)
    expected: dict[str, list[float]] = {}  # of the rows, by PPO's rule instead of the library's objective
    rows: list[Row] = [["mask replayed", 0.0, relative(truth.mean - gradient, gradient), 1.0]]
    for name, options in variants.items():
        rows.append([name])
        for by in (update_vectors, vectors_by_hand):
            given, missed = [], []
            for law in laws:
                # The rule is applied to fresh masks, whatever the library is given.
                pairs = pair_up(law, replayed=replayed and by is update_vectors)
                vectors = by(pairs, options if by is update_vectors else VARIANTS[name])
                given.append(pair_moments(pairs, vectors))
                missed.append(_missed(law, pairs, vectors))
            found = _estimate(given, loo)
            bias = relative(found.mean - gradient, gradient)
            values = [sum(missed) / len(missed), bias, found.variance / truth.variance]
            if by is update_vectors:
                rows[-1] += values
            else:
                expected[name] = values
    columns = ["update", "error of g given the rollouts", "bias of E g", "tr Cov g over replayed"]
    detail = {"columns": columns, "rows": rows}
    by_name = {row[0]: row for row in rows}
    clipped, whole = "ratio of each token, clipped", "ratio of the answer, not clipped"
    product, exception = by_name[clipped], by_name[whole]
    ruled, ruled_exception = expected[clipped], expected[whole]
    off = {
        name: max(_apart(x, y) for x, y in zip(row[1:], expected[name], strict=True))
        for name, row in by_name.items()
        if name in expected
    }
    return [
        Check(
            id="replay.noise",
            claim="With a fresh mask in the update the gradient has a higher variance.",
            quantity="tr Cov g with fresh masks over that with replayed ones, unclipped ratio of the answer, K = 8",
            exact=ruled_exception[2],
            estimate=exception[3],
            error=_apart(exception[3], ruled_exception[2]),
            verdict=holds_if(_apart(exception[3], ruled_exception[2]) < EXACT and exception[3] > 1 + _SEEN),
            detail=detail,
        ),
        Check(
            id="replay.given_rollouts",
            claim="With a fresh mask the gradient is biased for g: given the rollouts, its mean over masks is not g.",
            quantity="|mean over m' of a rollout's term - its term in g|, root mean square, relative",
            exact=ruled_exception[0],
            estimate=exception[1],
            error=max(off.values()),
            verdict=holds_if(max(off.values()) < EXACT and min(row[1] for row in rows[1:]) > _SEEN),
            detail=detail,
        ),
        Check(
            id="replay.bias",
            claim="With a fresh mask GRPO's objective, a clipped ratio for each token, is biased for grad J as well.",
            quantity="|E g - grad J| / |grad J|",
            exact=ruled[1],
            estimate=product[2],
            error=off[clipped],
            verdict=holds_if(off[clipped] < EXACT and product[2] > _SEEN),
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


def _apart(found: float, expected: float) -> float:
    """Difference in units of the expected value; of values below 1 as it is."""
    return abs(found - expected) / max(1.0, abs(expected))


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
