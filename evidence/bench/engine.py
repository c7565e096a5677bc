"""The engine's arms, made of the library's own calls, and the plain way: the same calls with one rollout per group."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.exploration.base import Exploration, NoExploration
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.graphs import step_by_step
from dropout_grpo.latent.rollout import Prompts, roll_out
from evidence.bench.workload import TEMPERATURE, Workload


def rollouts(work: Workload) -> Generation:
    """N questions, K rollouts each."""
    return _roll_out(work, work.prompts, work.seeds, work.exploration)


def unmasked_rollouts(work: Workload) -> Generation:
    """The same without masks. The difference is the cost of exploration."""
    return _roll_out(work, work.prompts, work.seeds, NoExploration())


def plain_rollouts(work: Workload) -> Generation:
    """N * K groups of one rollout; each rollout reads its own prompt."""
    return _roll_out(work, work.each_its_own, work.seeds.view(-1, 1), work.exploration)


def update(work: Workload) -> float:
    """Replay, surrogate and backward pass of all groups; returns the loss."""
    return _loss(work.trainer.update.backward(work.groups, work.advantages))


def plain_update(work: Workload) -> float:
    """The same update in groups of one rollout."""
    groups = replace(
        work.groups, prompts=work.each_its_own, seeds=work.seeds.view(-1, 1), rewards=work.advantages.view(-1, 1)
    )
    return _loss(work.plain_trainer.update.backward(groups, work.advantages.view(-1, 1)))


def curriculum(work: Workload) -> float:
    """Loss and backward pass of a batch in the last stage; returns the loss."""
    trainer = work.curriculum
    return trainer.backward(trainer.stages[-1], list(range(work.setting.problems)), 0)


def evaluation(work: Workload) -> list[str]:
    """Greedy answers of the plain network, including tokenisation and decoding to text."""
    setting = work.setting
    config = EvaluationConfig(num_samples=0, max_new_tokens=setting.answer_tokens, batch_size=setting.problems)
    return [a.plain for a in answer_problems(work.model, work.problems[: setting.problems], config, bf16=setting.bf16)]


def without_graphs(job: Callable[[Workload], object], work: Workload) -> object:
    """Runs a job without CUDA graphs."""
    with step_by_step():
        return job(work)


def _roll_out(work: Workload, prompts: Prompts, seeds: Tensor, exploration: Exploration) -> Generation:
    with torch.no_grad(), autocast(work.model.device, work.setting.bf16):
        return roll_out(
            work.model,
            prompts,
            seeds,
            exploration,
            temperature=TEMPERATURE,
            max_completion_length=work.setting.answer_tokens,
        )


def _loss(seen: Mapping[str, float] | None) -> float:
    assert seen is not None, "no group is mixed"
    return seen["loss"]
