"""Unbiasedness: E g = (K-1)/K grad J for the group mean, and grad J for leave-one-out."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.rl.advantage import group_advantages
from evidence.theory.check import Check, Row, holds_if
from evidence.theory.estimator import (
    Moments,
    from_all_groups,
    from_patterns,
    moments,
    over_questions,
)
from evidence.theory.gradients import relative
from evidence.theory.interval import inside, mean_interval
from evidence.theory.law import Law
from evidence.theory.setting import objective_gradient, sample
from evidence.theory.toy import QUESTIONS, Toy

GROUP_SIZES = (2, 3, 4, 8)
EXACT = 1e-10
"""Relative error below which two float64 sums count as equal."""

Seeds = Callable[[int, int, Tensor, int], Tensor]


def score_moments(law: Law) -> Moments:
    """Moments of the score grad log pi(a | x, m) given the reward."""
    rewards = law.rewards.expand(law.probability.shape)
    return moments(law.probability.flatten(), rewards.flatten(), law.score.flatten(0, 1))


def check_objective(laws: Sequence[Law], gradients: Tensor) -> Check:
    """grad J = E[r grad log pi(a | x, m)]: the mask's law has no parameters, so it has no score."""
    rows: list[Row] = []
    worst = 0.0
    for i, (law, gradient) in enumerate(zip(laws, gradients, strict=True)):
        weighted = law.probability * law.rewards
        summed = torch.einsum("ma,map->p", weighted, law.score)
        error = relative(summed - gradient, gradient)
        worst = max(worst, error)
        rows.append([i + 1, law.expected_reward, float(gradient.norm()), error])
    return Check(
        id="objective.gradient",
        claim="The gradient of J is the mean of reward times score: the mask's law has no parameters, so no score.",
        quantity="|E[r grad log pi] - grad J| / |grad J|, worst question",
        exact=0.0,
        estimate=worst,
        error=worst,
        verdict=holds_if(worst < EXACT),
        detail={"columns": ["question", "J", "|grad J|", "relative error"], "rows": rows},
    )


def check_unbiased(
    laws: Sequence[Law],
    gradients: Tensor,
    *,
    advantages: Callable[..., Tensor] = group_advantages,
    all_groups: Sequence[int] = (2,),
) -> Check:
    """Compare E g with (K-1)/K grad J, and leave-one-out with grad J, by exact sums.

    Args:
        laws: the law of each question.
        gradients: grad J of each question, [N, P].
        advantages: the function under test.
        all_groups: values of K for which all groups of the first question are also enumerated, to check the patterns.
    """
    rows: list[Row] = []
    worst = 0.0
    gradient = gradients.mean(0)
    for k in GROUP_SIZES:
        share = (k - 1) / k
        given = [score_moments(law) for law in laws]
        mean = over_questions([from_patterns(m, k, advantages) for m in given]).mean
        one_out = partial(advantages, leave_one_out=True)
        unbiased = over_questions([from_patterns(m, k, one_out) for m in given]).mean
        errors = [relative(mean - share * gradient, gradient), relative(unbiased - gradient, gradient)]
        terms = 1 << k
        if k in all_groups:
            law, atoms = laws[0], laws[0].probability.flatten()
            rewards = law.rewards.repeat(len(law.weights))
            every = from_all_groups(atoms, rewards, law.score.flatten(0, 1), k, advantages)
            errors.append(relative(every - from_patterns(given[0], k, advantages).mean, gradients[0]))
            terms = len(atoms) ** k
        worst = max(worst, *errors)
        rows.append([k, share, projection(mean, gradient), projection(unbiased, gradient), max(errors), terms])
    return Check(
        id="unbiased.exact",
        claim="With A = r - mean(r) the mean of g is (K-1)/K grad J; scaled by K/(K-1), leave-one-out, it is grad J.",
        quantity="largest relative error of E g over K = 2, 3, 4, 8",
        exact=0.0,
        estimate=worst,
        error=worst,
        verdict=holds_if(worst < EXACT),
        detail={
            "columns": ["K", "(K-1)/K", "factor found", "leave-one-out", "relative error", "terms summed"],
            "rows": rows,
        },
    )


def check_sampled(
    toy: Toy,
    gradients: Tensor,
    *,
    seed: int,
    batches: int = 40,
    groups: int = 64,
    seeds: Seeds = rollout_seeds,
    advantages: Callable[..., Tensor] = group_advantages,
) -> Check:
    """The same by Monte Carlo through the whole library: seeds, rollouts, rewards, advantages, replay, objective.

    Args:
        toy: the toy.
        gradients: grad J of each question, [N, P].
        seed: seed of the run.
        batches: number of independent gradients.
        groups: groups per question in a batch.
        seeds: function that makes the rollouts' seeds, under test.
        advantages: the function under test.
    """
    k, gradient = 4, gradients.mean(0)
    questions = torch.arange(QUESTIONS).repeat(groups)
    factors, mixed = [], 0.0
    for batch in range(batches):
        drawn = sample(toy.setting, questions, seeds(seed, batch, torch.arange(len(questions)), k))
        found = objective_gradient(toy.setting, drawn, advantages)
        factors.append(projection(found.gradient, gradient))
        mixed += float((drawn.rewards.std(dim=1) > 0).double().mean()) / batches
    mean, interval = mean_interval(factors)
    exact = (k - 1) / k
    return Check(
        id="unbiased.sampled",
        claim="Rollouts drawn by their seeds, replayed and put through the objective have this mean as well.",
        quantity="length of the mean of g along grad J, over |grad J|, at K = 4",
        exact=exact,
        estimate=mean,
        interval=interval,
        verdict=holds_if(inside(exact, interval)),
        detail={
            "columns": ["batches", "groups in a batch", "K", "mixed groups"],
            "rows": [[batches, len(questions), k, mixed]],
        },
    )


def projection(mean: Tensor, gradient: Tensor) -> float:
    """Length of the projection of ``mean`` on ``gradient``, in units of the latter."""
    return float(mean @ gradient / gradient.square().sum())
