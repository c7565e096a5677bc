"""The collapse that the paper starts from, measured: no exploration and greedy decoding teach nothing."""

from collections.abc import Sequence

import torch

from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.problems.problem import Problem
from dropout_grpo.problems.rewards import exact_answer
from dropout_grpo.rl.advantage import group_advantages, zero_variance
from dropout_grpo.rl.config import GRPOConfig
from dropout_grpo.rl.objective import Batch, surrogate
from dropout_grpo.rl.rollout import Prompts, replay, roll_out


def collapse(model: LatentModel, problems: Sequence[Problem], config: GRPOConfig) -> dict[str, float]:
    """Groups of deterministic rollouts: the share without reward variance and the norm of their gradient.

    The gradient is really computed: the groups that training would skip are replayed and back-propagated.

    Returns:
        ``frac_reward_zero_std`` (1.0 if the theory holds) and ``grad_norm`` (0.0 exactly).
    """
    k = config.num_generations
    prompts = Prompts(*model.encode([p.question for p in problems], room=config.max_completion_length))
    seeds = rollout_seeds(0, 0, torch.tensor([p.id for p in problems]), k)  # [N, K]
    nothing = NoExploration()
    with torch.no_grad():
        generation = roll_out(
            model, prompts, seeds, nothing, temperature=0, max_completion_length=config.max_completion_length
        )
    completions = model.decode(generation.token_ids, generation.mask)
    repeated = [p for p in problems for _ in range(k)]
    scored = exact_answer([p.question for p in repeated], completions, [p.answer for p in repeated])
    rewards = torch.tensor(scored, dtype=torch.float32, device=model.device).view(-1, k)
    advantages = group_advantages(rewards)
    logprobs = replay(model, prompts, seeds, generation.token_ids, nothing, temperature=1.0)
    totals = Batch(
        rollouts=seeds.numel(),
        tokens=int(generation.mask.sum()),
        max_completion_length=config.max_completion_length,
    )
    loss = surrogate(logprobs, logprobs.detach(), generation.mask, advantages.flatten().to(logprobs), batch=totals).loss
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    squares = sum(float(g.double().pow(2).sum()) for g in gradients if g is not None)
    return {
        "frac_reward_zero_std": float(zero_variance(rewards).float().mean()),
        "grad_norm": squares**0.5,
    }
