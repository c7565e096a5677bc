"""The objective is the reward of a model average, and the group estimator is unbiased for it up to (K-1)/K."""

from functools import partial

import torch
from torch import Tensor

from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.decoding import AverageOverMasks
from dropout_grpo.rl.advantage import group_advantages, zero_variance
from evidence.theory.check import Check, Row
from evidence.theory.sums import (
    EXACT,
    from_patterns,
    inside,
    mean_interval,
    over_questions,
    projection,
    relative,
    score_moments,
)
from evidence.theory.toy import QUESTIONS, Exact, Rollouts, answer_index, objective_gradient, sample

GROUP_SIZES = (2, 3, 4, 8)
_ROWS = 256  # at p = 1/4 the probability of each mask is a multiple of 1 / 256


def check_objective(exact: Exact) -> Check:
    """grad J = E[r grad log pi(a | x, m)]: the mask's law has no parameters, so it has no score."""
    rows: list[Row] = []
    for i, (law, gradient) in enumerate(zip(exact.laws, exact.gradients, strict=True)):
        summed = torch.einsum("ma,map->p", law.probability * law.rewards, law.score)
        rows.append([i + 1, law.expected_reward, float(gradient.norm()), relative(summed - gradient, gradient)])
    worst = max(row[3] for row in rows)
    return Check(
        id="objective.gradient",
        claim="The gradient of J is the mean of reward times score: the mask's law has no parameters, so no score.",
        quantity="|E[r grad log pi] - grad J| / |grad J|, worst question",
        expected=0.0,
        value=worst,
        holds=worst < EXACT,
        columns=["question", "J", "|grad J|", "relative error"],
        rows=rows,
    )


def check_average(exact: Exact) -> Check:
    """E_m J(m) is the reward of the average policy, which the library's ``AverageOverMasks`` builds token by token.

    It is given the tokens of every answer. Its weights are then pi(a | x, m), whose mean is pibar(a | x).
    """
    toy = exact.toy
    times = (exact.masks.weights * _ROWS).round().long()
    which = torch.arange(len(times)).repeat_interleave(times)  # each mask as often as it is probable
    rows: list[Row] = []
    for i, law in enumerate(exact.laws):
        average = 0.0
        for a, answer in enumerate(toy.answers):
            strategy = AverageOverMasks(_ROWS)
            for t in range(int(toy.answer_mask[a].sum())):
                logprobs = torch.full((_ROWS, len(toy.answers)), -torch.inf, dtype=torch.float64)
                logprobs[:, answer[t]] = law.logprobs[which, a, t]
                tokens = strategy.choose(logprobs, t)
                strategy = strategy.after(logprobs.gather(-1, tokens[:, None])[:, 0])
            assert strategy.log_weights is not None
            average += float(strategy.log_weights.exp().mean() * law.rewards[a])
        rows.append([i + 1, law.expected_reward, average, abs(average - law.expected_reward)])
    worst = max(row[3] for row in rows)
    return Check(
        id="objective.average",
        claim="The mean over masks of the expected rewards is the expected reward of the Bayesian model average.",
        quantity="largest difference of the two over the questions",
        expected=0.0,
        value=worst,
        holds=worst < EXACT,
        columns=["question", "E_m J(m)", "reward of pibar", "difference"],
        rows=rows,
    )


def check_rollouts(exact: Exact, *, seed: int, rollouts: int = 8192) -> Check:
    """Compare the mean reward of the library's rollouts, drawn by their seeds, with J, by Monte Carlo."""
    seeds = rollout_seeds(seed, 0, torch.arange(QUESTIONS), rollouts)
    rewards = sample(exact.toy, torch.arange(QUESTIONS), seeds).rewards
    expected = sum(law.expected_reward for law in exact.laws) / QUESTIONS
    mean, interval = mean_interval(rewards.mean(0).tolist())
    return Check(
        id="objective.rollouts",
        claim="A rollout under a fresh seed is a sample of the model average: its mean reward is J.",
        quantity="mean reward, averaged over the questions",
        expected=expected,
        value=mean,
        interval=interval,
        holds=inside(expected, interval),
        columns=["question", "J", "mean reward", "rollouts"],
        rows=[[i + 1, law.expected_reward, float(rewards[i].mean()), rollouts] for i, law in enumerate(exact.laws)],
    )


def check_unbiased(exact: Exact) -> Check:
    """Compare E g with (K-1)/K grad J, and leave-one-out with grad J, by exact sums."""
    gradient = exact.gradients.mean(0)
    of_rollouts = [score_moments(law) for law in exact.laws]
    one_out = partial(group_advantages, leave_one_out=True)
    rows: list[Row] = []
    for k in GROUP_SIZES:
        share = (k - 1) / k
        mean = over_questions([from_patterns(m, k, group_advantages) for m in of_rollouts]).mean
        unbiased = over_questions([from_patterns(m, k, one_out) for m in of_rollouts]).mean
        errors = [relative(mean - share * gradient, gradient), relative(unbiased - gradient, gradient)]
        rows.append([k, share, projection(mean, gradient), projection(unbiased, gradient), max(errors)])
    worst = max(row[4] for row in rows)
    return Check(
        id="unbiased.exact",
        claim="With A = r - mean(r) the mean of g is (K-1)/K grad J; scaled by K/(K-1), leave-one-out, it is grad J.",
        quantity="largest relative error of E g over K = 2, 3, 4, 8",
        expected=0.0,
        value=worst,
        holds=worst < EXACT,
        columns=["K", "(K-1)/K", "factor found", "leave-one-out", "relative error"],
        rows=rows,
    )


def check_sampled(exact: Exact, *, seed: int, batches: int = 40, groups: int = 64) -> Check:
    """The same by Monte Carlo through the whole library: seeds, rollouts, rewards, advantages, replay, objective.

    Args:
        exact: the toy.
        seed: seed of the run.
        batches: number of independent gradients.
        groups: groups per question in a batch.
    """
    k, gradient = 4, exact.gradients.mean(0)
    questions = torch.arange(QUESTIONS).repeat(groups)
    factors, mixed = [], 0.0
    for batch in range(batches):
        rollouts = sample(exact.toy, questions, rollout_seeds(seed, batch, torch.arange(len(questions)), k))
        factors.append(projection(objective_gradient(exact.toy, rollouts).gradient, gradient))
        mixed += float((~zero_variance(rollouts.rewards)).double().mean()) / batches
    mean, interval = mean_interval(factors)
    expected = (k - 1) / k
    return Check(
        id="unbiased.sampled",
        claim="Rollouts drawn by their seeds, replayed and put through the objective have this mean as well.",
        quantity="length of the mean of g along grad J, over |grad J|, at K = 4",
        expected=expected,
        value=mean,
        interval=interval,
        holds=inside(expected, interval),
        columns=["batches", "groups in a batch", "K", "mixed groups"],
        rows=[[batches, len(questions), k, mixed]],
    )


def check_surrogate(exact: Exact, *, seed: int, batches: int = 8, loss_type: str = "sum") -> list[Check]:
    """Compare the objective's gradient on sampled batches with the sum over rollouts of enumerated scores.

    Args:
        exact: the toy.
        seed: seed of the rollouts.
        batches: number of batches of 64 groups of 4.
        loss_type: loss type of the objective, under test.
    """
    questions = torch.arange(64) % QUESTIONS
    rows: list[Row] = []
    ratio_error, tokens = 0.0, 0
    for level in ("token", "sequence"):
        worst = 0.0
        for batch in range(batches):
            rollouts = sample(exact.toy, questions, rollout_seeds(seed, batch, torch.arange(len(questions)), 4))
            replayed = objective_gradient(exact.toy, rollouts, importance_sampling_level=level, loss_type=loss_type)
            g = _estimator(exact, rollouts)
            worst = max(worst, relative(replayed.gradient - g, g))
            tokens += int(rollouts.answers.mask.sum())
            ratio_error = max(ratio_error, float((replayed.log_ratio.exp() - 1).abs().max()))
        rows.append([level, loss_type, worst])
    largest = max(row[2] for row in rows)
    return [
        Check(
            id="surrogate.gradient",
            claim="At the old policy the gradient of the clipped surrogate is g, at token and sequence level.",
            quantity="|gradient of the surrogate - g| / |g|, worst batch",
            expected=0.0,
            value=largest,
            holds=largest < EXACT,
            columns=["ratio of", "loss_type", "relative error"],
            rows=rows,
        ),
        Check(
            id="surrogate.ratio",
            claim="With the mask replayed from its seed, every ratio at the old policy is 1.",
            quantity="largest |ratio - 1| over all answer tokens",
            expected=0.0,
            value=ratio_error,
            holds=ratio_error < EXACT,
            columns=["tokens compared"],
            rows=[[tokens]],
        ),
    ]


def _estimator(exact: Exact, rollouts: Rollouts) -> Tensor:
    """g = mean of A_k grad log pi(a_k | x, m_k), with the scores of the enumeration."""
    mask = exact.masks.index(exact.toy, rollouts.seeds)  # [G, K]
    answer = answer_index(exact.toy.answers, rollouts.answers.token_ids).view_as(mask)
    gains = group_advantages(rollouts.rewards)
    total = torch.zeros_like(exact.gradients[0])
    for group, question in enumerate(rollouts.questions.tolist()):
        total += gains[group] @ exact.laws[question].score[mask[group], answer[group]]
    return total / mask.numel()
