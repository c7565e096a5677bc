"""Samples the groups of a step: chooses the questions, generates answers under masks, and computes rewards."""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState

from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.rewards import (
    RewardFunction,
    call_rewards,
    combine_rewards,
    completion_of,
    reward_columns,
    reward_statistics,
    try_rewards,
)
from dropout_grpo.distributed import processes
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts, roll_out
from dropout_grpo.rl.data_order import DataOrder
from dropout_grpo.rl.groups import Groups, join, join_answers, rows_of, select_answers, select_groups
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.progress import console

Scores = list[list[float | None]]
"""The rewards of each rollout, one list for each reward function."""


def earlier_occurrences(ids: Sequence[int]) -> Tensor:
    """How often each entry has occurred before it, int64 [N]: [7, 3, 7, 7] gives [0, 0, 1, 2]."""
    seen: Counter[int] = Counter()
    counts = []
    for entry in ids:
        counts.append(seen[entry])
        seen[entry] += 1
    return torch.tensor(counts)


def batch_numbers(step: int, max_gen_batches: int | None) -> range:
    """Numbers of the batches that a step may sample, counted from 1; a single one without dynamic sampling.

    A step that needs fewer batches than it may sample skips the questions of the others, so that later steps do not
    depend on it.
    """
    batches = max_gen_batches or 1
    return range((step - 1) * batches + 1, step * batches + 1)


class RolloutSampler:
    """Samples rollouts of the current policy: a pure function of its weights, the seed and the step.

    Args:
        model: the policy.
        config: options.
        exploration: the noise that makes the rollouts of a question differ.
        reward_funcs: reward functions, as in TRL.
        problems: questions with answers; the sources of a ``Mixture`` are drawn by their weights.
        seed: seed of the data order, masks and samples.
        bf16: compute matrix products in bf16.

    Raises:
        UserError: fewer questions than a step samples, one too long for the model, or answers that its tokenizer cannot
            write.
    """

    def __init__(
        self,
        model: LatentModel,
        config: GRPOOptions,
        exploration: Exploration,
        reward_funcs: Sequence[RewardFunction],
        problems: Sequence[Problem],
        *,
        seed: int,
        bf16: bool,
    ) -> None:
        self.model, self.config, self.exploration = model, config, exploration
        self.reward_funcs, self.seed, self.bf16 = list(reward_funcs), seed, bf16
        rows = model.tokenize_for_training([problem.prompt for problem in problems])
        most = config.max_prompt_length
        short = [i for i, row in enumerate(rows) if most is None or len(row) <= most]
        if len(short) < len(rows):
            console.print(
                f"{len(rows) - len(short)} of {len(rows)} GRPO questions have more than max_prompt_length={most} "
                "tokens and are left out.",
                markup=False,
            )
        self.problems = [problems[i] for i in short]
        self.encoded = [rows[i] for i in short]
        self._require_enough()
        model.check_length(self.encoded, model.latent_steps + 1 + config.max_completion_length)
        model.require_writable(p.answer for p in self.problems if p.answer)
        weights: tuple[float, ...] = (1.0,)
        source_of = [0] * len(rows)
        if isinstance(problems, Mixture):
            weights, source_of = problems.weights, problems.source_of
        sources = [[index for index, i in enumerate(short) if source_of[i] == s] for s in range(len(weights))]
        if [] in sources:
            raise UserError(f"max_prompt_length={most} leaves a source of the GRPO data without a question: raise it.")
        self._order = DataOrder(sources, weights, seed)
        self.batches = MicroBatches(config.named("rollout_batch_size"), config.rollout_batch_size)
        self.trainer_state = TrainerState()
        self._logged: dict[str, list[float]] = {}  # by reward functions, in this step

    def _require_enough(self) -> None:
        config, most = self.config, self.config.questions_per_step
        if most > len(self.problems):
            batches, longest = config.dynamic_sampling_max_gen_batches, config.max_prompt_length
            if not self.problems:
                raise UserError(f"max_prompt_length={longest} leaves no question: raise it.")
            raise UserError(
                f"{config.named('prompts_per_step')}={config.prompts_per_step} lets a step sample {most} questions, "
                f"more than the {len(self.problems)} problems: lower it"
                f"{'' if batches is None else ', or dynamic_sampling_max_gen_batches'}"
                f"{'' if config.SECTION else ' (or per_device_train_batch_size, which sets it)'}"
                f"{'' if longest is None else f', or raise max_prompt_length={longest}'}."
            )

    def prompts(self, indices: Sequence[int]) -> Prompts:
        """The questions of the problems with these indices."""
        return Prompts(*self.model.pad([self.encoded[i] for i in indices]))

    def longest_prompt(self) -> Prompts:
        """The question with the most tokens."""
        return self.prompts([max(range(len(self.encoded)), key=lambda i: len(self.encoded[i]))])

    def sample(self, step: int) -> tuple[Groups, dict[str, float]]:
        """All groups sampled in a step, statistics of each reward function, and what these functions log."""
        self._logged = {}
        parts: list[Groups] = []
        scores: Scores = [[] for _ in self.reward_funcs]
        selected = 0
        numbers = batch_numbers(step, self.config.dynamic_sampling_max_gen_batches)
        batches = [self.indices(number) for number in numbers]
        repeats = earlier_occurrences([self.problems[i].id for batch in batches for i in batch])
        for batch, again in zip(batches, repeats.split(self.config.prompts_per_step), strict=True):
            groups, batch_scores = self._sample_batch(step, batch, again)
            parts.append(groups)
            scores = [every + new for every, new in zip(scores, batch_scores, strict=True)]
            selected += len(self.selected(groups.rewards))
            if selected >= self.config.prompts_per_step:
                break
        logged = {name: fmean(values) for name, values in self._logged.items()}
        return join(parts, self.model.tokens.pad), logged | reward_statistics(self.reward_funcs, scores)

    def selected(self, rewards: Tensor) -> Tensor:
        """Indices of the groups [M] that the update uses, from all rewards [N, K] of a step."""
        config = self.config
        return select_groups(
            rewards,
            mixed=config.dynamic_sampling_max_gen_batches is not None,
            mean_range=config.filter_groups,
            limit=config.prompts_per_step,
        )

    def indices(self, number: int) -> list[int]:
        """Indices of a batch's problems; batches are counted from 1."""
        size = self.config.prompts_per_step
        return self._order.indices(range((number - 1) * size, number * size))

    def _sample_batch(self, step: int, indices: list[int], repeats: Tensor) -> tuple[Groups, Scores]:
        ids = torch.tensor([self.problems[i].id for i in indices])
        seeds = rollout_seeds(self.seed, step, ids, self.config.num_generations, repeats)  # [N, K]
        prompts = self.prompts(indices)
        k = self.config.num_generations
        mine = prompts.longest_first()[processes.rank() :: processes.size()]
        parts = []
        if len(mine):
            parts = [self.batches.fit(len(mine), lambda size: self._roll_out(prompts, seeds, mine.split(size)), rows=k)]
        answers = self._of_all_processes(mine, parts, k)
        # One process calls the reward functions on the whole batch, so that rewards do not depend on the world size.
        total, scores, logged = processes.on_main(lambda: self._rewards([self.problems[i] for i in indices], answers))
        for name, values in logged.items():
            self._logged.setdefault(name, []).extend(values)
        rewards = torch.tensor(total, dtype=torch.float32).view(-1, k)
        return Groups(indices=indices, prompts=prompts, seeds=seeds, rewards=rewards, answers=answers), scores

    def _roll_out(self, prompts: Prompts, seeds: Tensor, batches: Sequence[Tensor]) -> Generation:
        """Rollouts of the groups of each batch, in the order of the batches."""
        parts = []
        with torch.no_grad(), autocast(self.model.device, self.bf16):
            for groups in batches:
                generation = roll_out(
                    self.model,
                    prompts.select(groups),
                    seeds[groups],
                    self.exploration,
                    temperature=self.config.temperature,
                    max_completion_length=self.config.max_completion_length,
                    greedy=self.config.answers == "greedy",
                    top_p=self.config.top_p,
                )
                parts.append(generation)
        return join_answers(parts, self.model.tokens.pad)

    def _of_all_processes(self, mine: Tensor, parts: Sequence[Generation], k: int) -> Generation:
        """Gather the rollouts of all groups, in order, from those of this process's groups ``mine``, K rows each."""
        rows = [[part.token_ids, part.mask, part.logprobs, part.entropy] for part in parts]
        gathered = processes.gather_tensors([mine, *(tensor for part in rows for tensor in part)])
        order = torch.cat([groups for groups, *_ in gathered])
        answers = [
            Generation(token_ids=ids, mask=mask, logprobs=logprobs, entropy=entropy).each(self._on_device)
            for _, ids, mask, logprobs, entropy in (part for part in gathered if len(part) > 1)
        ]
        return select_answers(join_answers(answers, self.model.tokens.pad), rows_of(order.argsort(), k))

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.model.device)

    def _rewards(
        self, batch: Sequence[Problem], answers: Generation
    ) -> tuple[list[float], Scores, dict[str, list[float]]]:
        """Total rewards of N problems with K answers each (NaN if none judged), those of each function, and logs."""
        k = self.config.num_generations
        completions = self.model.decode(answers.token_ids, answers.mask)
        ids = [row[used].tolist() for row, used in zip(answers.token_ids.cpu(), answers.mask.cpu(), strict=True)]
        logged: dict[str, list[float]] = {}
        repeated = [problem for problem in batch for _ in range(k)]
        prompts = [problem.prompt for problem in repeated]
        texts = [completion_of(problem, text) for problem, text in zip(repeated, completions, strict=True)]
        context = self._context(ids, logged)
        scores = call_rewards(self.reward_funcs, prompts, texts, reward_columns(repeated), context)
        weights = self.config.reward_weights or (1.0,) * len(self.reward_funcs)
        total = combine_rewards(weights, scores)
        return [math.nan if value is None else value for value in total], scores, logged

    def _context(self, ids: list[list[int]], logged: dict[str, list[float]]) -> dict[str, Any]:
        def log_metric(name: str, value: float) -> None:
            logged.setdefault(name, []).append(float(value))

        return {"completion_ids": ids, "trainer_state": self.trainer_state, "log_metric": log_metric}

    def try_rewards(self) -> None:
        """Call the reward functions on the right answers of two problems, before anything is trained.

        Raises:
            UserError: one of them fails, or returns something else than rewards.
        """
        weights = self.config.reward_weights or (1.0,) * len(self.reward_funcs)

        def context(completions: Sequence[str]) -> dict[str, Any]:
            return self._context([self.model.tokenizer(text)["input_ids"] for text in completions], {})

        processes.on_main(lambda: try_rewards(self.reward_funcs, weights, self.problems, context))
