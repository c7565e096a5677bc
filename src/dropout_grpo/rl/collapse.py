"""Measures the collapse that motivates the paper: greedy answers without exploration give no gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.rewards import exact_answer
from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import replay
from dropout_grpo.rl.advantage import group_advantages, zero_variance
from dropout_grpo.rl.groups import rows_of
from dropout_grpo.rl.objective import Totals, surrogate
from dropout_grpo.rl.sampler import RolloutSampler
from dropout_grpo.training.memory import MicroBatches


def collapse(model: LatentModel, problems: Sequence[Problem], config: GRPOOptions) -> dict[str, float]:
    """The share of groups of deterministic rollouts without reward variance, and the norm of their gradient.

    The gradient is computed, not assumed to be 0: groups that training would skip are replayed and back-propagated,
    ``config.micro_batch_size`` rollouts at a time.

    Returns:
        ``frac_reward_zero_std`` (1.0 if the theory holds) and ``grad_norm`` (exactly 0.0).
    """
    nothing, k = NoExploration(), max(2, config.num_generations)
    greedy = GRPOOptions(
        answers="greedy",
        prompts_per_step=len(problems),
        num_generations=k,
        max_completion_length=config.max_completion_length,
        micro_batch_size=max(k, config.micro_batch_size),
        rollout_batch_size=max(k, config.rollout_batch_size),
    )
    sampler = RolloutSampler(model, greedy, nothing, [exact_answer], problems, seed=0, bf16=False)
    groups, _ = sampler.sample(1)
    prompts, answers = groups.prompts, groups.answers
    advantages = group_advantages(groups.rewards).flatten()
    totals = Totals(
        rollouts=groups.seeds.numel(),
        tokens=int(answers.mask.sum()),
        max_completion_length=config.max_completion_length,
    )
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(size: int) -> list[Tensor]:
        """The gradient of every parameter, computed from ``size`` groups at a time."""
        total = [torch.zeros_like(p) for p in parameters]
        for some in prompts.longest_first().split(size):
            rows = rows_of(some, k)
            tokens = answers.token_ids[rows]
            logprobs = replay(model, prompts.select(some), groups.seeds[some], tokens, nothing, temperature=1.0)
            gains = advantages[rows].to(logprobs)
            loss = surrogate(logprobs, logprobs.detach(), answers.mask[rows], gains, batch=totals).loss
            part = torch.autograd.grad(loss, parameters, allow_unused=True)
            total = [t if g is None else t.add_(g) for t, g in zip(total, part, strict=True)]
        return total

    batches = MicroBatches(greedy.named("micro_batch_size"), greedy.micro_batch_size)
    squares = sum(float(g.double().square().sum()) for g in batches.fit(len(problems), gradients, rows=k))
    return {
        "frac_reward_zero_std": float(zero_variance(groups.rewards).float().mean()),
        "grad_norm": squares**0.5,
    }
