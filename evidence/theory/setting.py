"""A batch of GRPO without the optimiser, with the library's own rollouts, advantages, replay and objective."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.exploration.base import Exploration
from dropout_grpo.latent.model import Generation, LatentModel
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from dropout_grpo.rl.objective import Batch, surrogate
from evidence.theory.gradients import flat_gradient

Advantages = Callable[[Tensor], Tensor]
"""Advantages [G, K] from rewards [G, K]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A policy, its prompts and its rewards."""

    model: LatentModel
    prompts: Prompts  # N questions
    reward: Callable[[Tensor, Generation], Tensor]  # (question of each row [R], answers) -> float64 [R]
    exploration: Exploration
    temperature: float
    max_completion_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts:
    """G groups of K rollouts."""

    questions: Tensor  # [G], indices of the setting's prompts
    seeds: Tensor  # [G, K]
    answers: Generation  # G * K rows
    rewards: Tensor  # [G, K] float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One backward pass of the objective."""

    gradient: Tensor  # [P] float64, of the surrogate (not of its negation, the loss)
    log_ratio: Tensor  # [G * K, L], 0 after the end


def sample(
    setting: Setting,
    questions: Tensor,
    seeds: Tensor,
    *,
    exploration: Exploration | None = None,
    temperature: float | None = None,
) -> Rollouts:
    """Roll out one group for each of ``questions`` [G] under ``seeds`` [G, K]; the setting's noise unless given."""
    with torch.no_grad():
        answers = roll_out(
            setting.model,
            setting.prompts.select(questions),
            seeds,
            exploration or setting.exploration,
            temperature=setting.temperature if temperature is None else temperature,
            max_completion_length=setting.max_completion_length,
        )
    rows = questions.repeat_interleave(seeds.shape[1])
    rewards = setting.reward(rows, answers).view_as(seeds)
    return Rollouts(questions=questions, seeds=seeds, answers=answers, rewards=rewards)


def objective_gradient(
    setting: Setting,
    rollouts: Rollouts,
    advantages: Advantages,
    *,
    update_seeds: Tensor | None = None,
    exploration: Exploration | None = None,
    **options: Any,
) -> Replayed:
    """Gradient of the clipped surrogate at the old policy.

    Args:
        setting: the policy.
        rollouts: rollouts sampled from it.
        advantages: function from rewards to advantages.
        update_seeds: seeds of the masks in the update, [G, K]; those of the rollouts (a replay) when None.
        exploration: exploration of the rollouts; the setting's when None.
        **options: options of ``rl.objective.surrogate``.
    """
    seeds = rollouts.seeds if update_seeds is None else update_seeds
    answers = rollouts.answers
    logprobs = replay(
        setting.model,
        setting.prompts.select(rollouts.questions),
        seeds,
        answers.token_ids,
        exploration or setting.exploration,
        temperature=setting.temperature,
    )
    totals = Batch(
        rollouts=seeds.numel(),
        tokens=int(answers.mask.sum()),
        max_completion_length=setting.max_completion_length,
    )
    gain = advantages(rollouts.rewards).flatten().to(logprobs)
    part = surrogate(logprobs, answers.logprobs, answers.mask, gain, batch=totals, **options)
    log_ratio = ((logprobs - answers.logprobs) * answers.mask).detach()
    return Replayed(gradient=flat_gradient(-part.loss, setting.model), log_ratio=log_ratio)


def estimator_gradient(setting: Setting, rollouts: Rollouts, advantages: Advantages) -> Tensor:
    """g(theta; m, a): the mean of A_k grad log pi_theta(a_k | x, m_k) at the model's current weights, [P] float64.

    Unlike ``objective_gradient`` it has no ratio, so the weights may differ from those that sampled the rollouts.
    """
    answers = rollouts.answers
    logprobs = replay(
        setting.model,
        setting.prompts.select(rollouts.questions),
        rollouts.seeds,
        answers.token_ids,
        setting.exploration,
        temperature=setting.temperature,
    )
    gain = advantages(rollouts.rewards).flatten().to(logprobs)
    value = ((logprobs * answers.mask).sum(-1) * gain).mean()
    return flat_gradient(value, setting.model)
