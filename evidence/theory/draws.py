"""Gradients of a trained model, sampled in all compared ways, with the library's rollouts and objective."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.exploration.dropout import PerStepDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.rollout import replay
from dropout_grpo.rl.advantage import group_advantages, zero_variance
from evidence.theory.gradients import flat_gradients
from evidence.theory.setting import Replayed, Rollouts, Setting, objective_gradient, sample
from evidence.theory.surrogate_gradient import FRESH

K = 8
_SCORED = 4  # batches whose rollouts are differentiated one at a time
_UNCLIPPED: dict[str, Any] = {"importance_sampling_level": "sequence", "epsilon": float("inf")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Independent batches over the same questions."""

    gradients: dict[str, list[Tensor]]  # way -> one gradient [P] per batch
    fresh_ratios: Tensor  # [answers], of whole answers under a fresh mask
    replay_error: float  # largest |ratio - 1| of a token under the replayed mask
    mixed: dict[str, list[float]]  # masks -> share of mixed groups per batch
    success: float  # mean reward
    best_baseline: float  # E[r |s|^2] / E[|s|^2], over the first batches

    def squares(self, way: str) -> list[float]:
        """|g - mean g|^2 n / (n - 1) of each of n batches: their mean is the unbiased estimate of tr Cov g."""
        found = torch.stack(self.gradients[way])
        n = len(found)
        return ((found - found.mean(0)).square().sum(1) * (n / (n - 1))).tolist()

    def cosines(self, way: str, other: str) -> list[float]:
        """Cosines between the gradients of two ways on the same rollouts."""
        pairs = zip(self.gradients[way], self.gradients[other], strict=True)
        return [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]


def draw_gradients(setting: Setting, questions: Tensor, stepped: PerStepDropout, *, seed: int, batches: int) -> Draws:
    """Gradients of independent batches, each with one group of 8 per question.

    Args:
        setting: the policy.
        questions: the questions of every batch, [G].
        stepped: the setting's exploration with per-step masks.
        seed: seed of the rollouts.
        batches: number of batches.
    """
    gradients: dict[str, list[Tensor]] = {}
    mixed: dict[str, list[float]] = {"held": [], "per step": []}
    ratios, rewards, squares, right, replay_error = [], [], [], [], 0.0

    def keep(
        way: str, drawn: Rollouts, rule: Callable[[Tensor], Tensor] = group_advantages, **options: Any
    ) -> Replayed:
        found = objective_gradient(setting, drawn, rule, **options)
        gradients.setdefault(way, []).append(found.gradient)
        return found

    for batch in range(batches):
        seeds = rollout_seeds(seed, batch, questions, K)
        drawn = sample(setting, questions, seeds)
        held = keep("held", drawn)
        keep("no baseline", drawn, torch.clone)
        fresh = keep("fresh mask", drawn, update_seeds=seeds + FRESH, **_UNCLIPPED)
        keep("fresh mask, clipped", drawn, update_seeds=seeds + FRESH)
        other = sample(setting, questions, seeds, exploration=stepped)
        keep("per step", other, exploration=stepped)
        replay_error = max(replay_error, float((held.log_ratio.exp() - 1).abs().max()))
        ratios.append(fresh.log_ratio.sum(-1).double().exp())
        rewards.append(float(drawn.rewards.mean()))
        for masks, rollouts in (("held", drawn), ("per step", other)):
            mixed[masks].append(mixed_share(rollouts))
        if batch < _SCORED:
            squares.append(score_squares(setting, drawn))
            right.append(drawn.rewards)
    score, reward = torch.stack(squares), torch.stack(right)
    return Draws(
        gradients=gradients,
        fresh_ratios=torch.cat(ratios),
        replay_error=replay_error,
        mixed=mixed,
        success=fmean(rewards),
        best_baseline=float((reward * score).sum() / score.sum()),
    )


def mixed_share(rollouts: Rollouts) -> float:
    """Share of groups with both right and wrong answers."""
    return float((~zero_variance(rollouts.rewards)).double().mean())


def score_squares(setting: Setting, rollouts: Rollouts) -> Tensor:
    """|grad log pi(a | x, m)|^2 of every rollout, [G, K]."""
    squares = []
    k = rollouts.seeds.shape[1]
    for group in range(
        len(rollouts.questions)
    ):  # one group at a time: the cost of a batched backward pass grows with the square of its rows
        rows = slice(group * k, group * k + k)
        logprobs = replay(
            setting.model,
            setting.prompts.select(rollouts.questions[group : group + 1]),
            rollouts.seeds[group : group + 1],
            rollouts.answers.token_ids[rows],
            setting.exploration,
            temperature=setting.temperature,
        )
        scores = flat_gradients((logprobs * rollouts.answers.mask[rows]).sum(-1), setting.model)
        squares.append(scores.square().sum(-1))
    return torch.stack(squares)
