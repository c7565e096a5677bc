"""Samples a step's groups: which questions, under which masks, what was answered, what it earned."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from dropout_grpo.exploration.base import Exploration
from dropout_grpo.exploration.seeds import fold, rollout_seeds
from dropout_grpo.latent.generation import Generation
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.problems.problem import Problem
from dropout_grpo.problems.rewards import (
    RewardFunction,
    call_rewards,
    combine_rewards,
    reward_columns,
    reward_statistics,
)
from dropout_grpo.rl.config import GRPOConfig
from dropout_grpo.rl.dynamic_sampling import batch_numbers, mixed_groups
from dropout_grpo.rl.groups import Groups, join, join_answers, rows_of, select_answers
from dropout_grpo.rl.rollout import Prompts, roll_out
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.precision import autocast

Scores = list[list[float | None]]
"""What each reward function gave each rollout."""


def earlier_occurrences(ids: Sequence[int]) -> Tensor:
    """How often each entry has occurred before, int64 [N]: [7, 3, 7, 7] gives [0, 0, 1, 2]."""
    seen: Counter[int] = Counter()
    counts = []
    for entry in ids:
        counts.append(seen[entry])
        seen[entry] += 1
    return torch.tensor(counts)


class Sampler:
    """Rollouts of the current policy, a pure function of its weights, the seed and the step.

    Args:
        model: the policy.
        config: options.
        exploration: where the randomness of the latent phase comes from.
        reward_funcs: as in TRL.
        problems: questions with answers.
        seed: order of the data, masks and samples.
        bf16: matrix products in bf16.

    Raises:
        UserError: a question too long for the model.
    """

    def __init__(
        self,
        model: LatentModel,
        config: GRPOConfig,
        exploration: Exploration,
        reward_funcs: Sequence[RewardFunction],
        problems: Sequence[Problem],
        *,
        seed: int,
        bf16: bool,
    ) -> None:
        self.model, self.config, self.exploration = model, config, exploration
        self.reward_funcs, self.problems = list(reward_funcs), problems
        self.seed, self.bf16 = seed, bf16
        self._prompts = model.encode_rows([p.question for p in problems], room=config.max_completion_length)
        self._batches = MicroBatches("rollout_batch_size", config.rollout_batch_size)

    def prompts(self, places: Sequence[int]) -> Prompts:
        """The questions of the problems at these places."""
        return Prompts(*self.model.pad([self._prompts[i] for i in places]))

    def sample(self, step: int) -> tuple[Groups, dict[str, float]]:
        """All groups sampled in a step, and what each reward function gave; see also ``dynamic_sampling.py``."""
        parts: list[Groups] = []
        scores: Scores = [[] for _ in self.reward_funcs]
        mixed = 0
        numbers = batch_numbers(step, self.config.dynamic_sampling_max_gen_batches)
        batches = [self.places(number) for number in numbers]
        repeats = earlier_occurrences([self.problems[i].id for batch in batches for i in batch])
        for batch, again in zip(batches, repeats.split(self.config.prompts_per_step), strict=True):
            groups, given = self._sample_batch(step, batch, again)
            parts.append(groups)
            scores = [every + new for every, new in zip(scores, given, strict=True)]
            mixed += len(mixed_groups(groups.rewards))
            if mixed >= self.config.prompts_per_step:
                break
        return join(parts, self.model.tokens.pad), reward_statistics(self.reward_funcs, scores)

    def places(self, number: int) -> list[int]:
        """Places of a batch's problems: passes over all of them, each in its own order, a batch after the other."""
        n, size = len(self.problems), self.config.prompts_per_step
        places = range((number - 1) * size, number * size)
        orders: dict[int, list[int]] = {}
        for epoch in {place // n for place in places}:
            generator = torch.Generator().manual_seed(int(fold(torch.tensor(self.seed), epoch)))
            orders[epoch] = torch.randperm(n, generator=generator).tolist()
        return [orders[place // n][place % n] for place in places]

    def _sample_batch(self, step: int, places: list[int], repeats: Tensor) -> tuple[Groups, Scores]:
        ids = torch.tensor([self.problems[i].id for i in places])
        seeds = rollout_seeds(self.seed, step, ids, self.config.num_generations, repeats)  # [N, K]
        prompts = self.prompts(places)
        k = self.config.num_generations
        answers = self._batches.fit(len(places), lambda size: self._roll_out(prompts, seeds, size), rows=k)
        completions = self.model.decode(answers.token_ids, answers.mask)
        rewards, scores = self._rewards([self.problems[i] for i in places], completions)
        return Groups(places=places, seeds=seeds, rewards=rewards, answers=answers), scores

    def _roll_out(self, prompts: Prompts, seeds: Tensor, size: int) -> Generation:
        """Rollouts of all groups, ``size`` groups of about the same length at a time, returned in their own order."""
        parts, order = [], prompts.longest_first()
        with torch.no_grad(), autocast(self.model.device, self.bf16):
            for groups in order.split(size):
                generation = roll_out(
                    self.model,
                    prompts.select(groups),
                    seeds[groups],
                    self.exploration,
                    temperature=self.config.temperature,
                    max_completion_length=self.config.max_completion_length,
                    greedy=self.config.answers == "greedy",
                )
                parts.append(generation)
        return select_answers(join_answers(parts, self.model.tokens.pad), rows_of(order.argsort(), seeds.shape[1]))

    def _rewards(self, batch: Sequence[Problem], completions: list[str]) -> tuple[Tensor, Scores]:
        """Rewards [N, K], and the scores that they are made of."""
        k = self.config.num_generations
        repeated = [problem for problem in batch for _ in range(k)]
        questions = [problem.question for problem in repeated]
        scores = call_rewards(self.reward_funcs, questions, completions, reward_columns(repeated))
        weights = self.config.reward_weights or (1.0,) * len(self.reward_funcs)
        total = combine_rewards(self.reward_funcs, weights, questions, scores)
        return torch.tensor(total, dtype=torch.float32).view(-1, k), scores
