"""Measures the collapse that motivates the paper: greedy answers without exploration give no gradient."""

from collections.abc import Sequence

from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.rewards import exact_answer
from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.rl.advantage import group_advantages, zero_variance
from dropout_grpo.rl.objective import Totals
from dropout_grpo.rl.sampler import RolloutSampler
from dropout_grpo.rl.update import PolicyUpdate


def collapse(model: LatentModel, problems: Sequence[Problem], config: GRPOOptions) -> dict[str, float]:
    """The share of groups of deterministic rollouts without reward variance, and the norm of their gradient.

    The gradient is computed, not assumed to be 0: groups that training would skip are replayed and back-propagated,
    ``config.micro_batch_size`` rollouts at a time.

    Returns:
        ``frac_reward_zero_std`` (1.0 if the theory holds) and ``grad_norm`` (exactly 0.0).
    """
    k, length = max(2, config.num_generations), config.max_completion_length
    greedy = GRPOOptions(
        answers="greedy",
        prompts_per_step=len(problems),
        num_generations=k,
        max_completion_length=length,
        micro_batch_size=max(k, config.micro_batch_size),
        rollout_batch_size=max(k, config.rollout_batch_size),
    )
    sampler = RolloutSampler(model, greedy, NoExploration(), [exact_answer], problems, seed=0, bf16=False)
    groups, _ = sampler.sample(1)
    advantages = group_advantages(groups.rewards)
    totals = Totals(rollouts=groups.seeds.numel(), tokens=int(groups.answers.mask.sum()), max_completion_length=length)
    update = PolicyUpdate(model, greedy, NoExploration(), None, bf16=False)
    order = groups.prompts.longest_first()

    def clear() -> None:
        model.zero_grad(set_to_none=True)

    update.batches.fit(
        len(order),
        lambda size: update.accumulate(groups, advantages, order.split(size), totals, beta=0.0),
        rows=k,
        clear=clear,
    )
    squares = sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None)
    clear()
    return {
        "frac_reward_zero_std": float(zero_variance(groups.rewards).float().mean()),
        "grad_norm": squares**0.5,
    }
