"""The same small training in any number of processes."""

import os
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import TrainerCallback

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.config.lora import LoRAConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.distributed import processes
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import head
from dropout_grpo.latent.lora.adapter import add_lora
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.training.interrupt import Interrupted, handled_signals
from helpers.grpo_run import digits
from helpers.tiny_latent import tiny_latent, tiny_problems

GRPO = {
    "max_steps": 3,
    "prompts_per_step": 3,
    "num_generations": 4,
    "max_completion_length": 3,
    "learning_rate": 1e-2,
    "micro_batch_size": 4,
    "rollout_batch_size": 8,
    "save_steps": 3,
}
SFT = {
    "c_thought": 1,
    "max_latent_stage": 2,
    "cot_epochs": 1,
    "epochs_per_stage": 1,
    "final_epochs": 0,
    "uniform_prob": 0.3,
    "batch_size": 3,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "reset_optimizer": False,
}


def first_group_alone(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """Only the first group of a step is mixed: the other processes have nothing to replay."""
    return [float(i % 3 == 0) if i < 4 else 0.0 for i in range(len(completions))]


def nobody(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    """No group is mixed: no process has anything to replay."""
    return [0.0] * len(completions)


REWARDS = {reward.__name__: reward for reward in (digits, first_group_alone, nobody)}


def train(run: Path, case: dict[str, Any], *, resume: bool = False, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Trains as the case says; the run folder holds metrics and the checkpoint with the optimiser's state.

    Args:
        run: the run folder.
        case: ``part`` (sft or grpo), ``kind`` of model, ``dtype``, ``fsdp``, ``reward``, ``lora``, ``bf16``, ``p``,
            ``seed``, ``weights`` (their seed), ``pieces`` (words of a piece of the head); the rest are options of the
            config.
        resume: continue the run in the folder.
        callbacks: callbacks of GRPO.
    """
    case = dict(case)
    if words := case.pop("pieces", None):
        with patch.multiple(head, PIECE=0, _LEAST_WORDS=words):
            train(run, case, resume=resume)
        return
    part, kind, dtype = case.pop("part"), case.pop("kind", "gpt2"), getattr(torch, case.pop("dtype", "float64"))
    fsdp, bf16, reward = case.pop("fsdp", False), case.pop("bf16", False), REWARDS[case.pop("reward", "digits")]
    base, p, seed = case.pop("lora", None), case.pop("p", 0.2), case.pop("seed", 2)
    model = tiny_latent(kind, dtype, std=0.2, seed=case.pop("weights", 0))
    if base is not None:
        model = add_lora(type(model).from_pretrained(base, dtype=dtype), LoRAConfig(r=2), seed=0)
    folder = RunFolder(run, part, {}, resume=resume)
    if part == "sft":
        config = CurriculumConfig(**{**SFT, **case})
        problems = tiny_problems(7, steps=2)
        CurriculumTrainer(model, config, problems, folder, seed=1, fsdp=fsdp, bf16=bf16).train(
            resume_from_checkpoint=resume
        )
        return
    trainer = GRPOTrainer(
        model,
        reward,
        GRPOConfig(**{**GRPO, **case}),
        tiny_problems(7),
        exploration=SharedDropout(p),
        run=folder,
        seed=seed,
        fsdp=fsdp,
        bf16=bf16,
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)


def refused(folder: Path, cases: Sequence[dict[str, Any]]) -> list[str]:
    """The error message of training each case."""
    messages = []
    for i, case in enumerate(cases):
        try:
            train(folder / str(i), case)
            messages.append("trained")
        except UserError as error:
            messages.append(str(error))
    return messages


def differing(folder: Path, changes: Sequence[dict[str, Any]]) -> list[str]:
    """The error messages of trainings whose rank 1 has another option each time."""
    return refused(folder, [{"part": "grpo", **(change if processes.rank() == 1 else {})} for change in changes])


def answers() -> list[dict[str, Any]]:
    """The answers of a model to problems: plain, under masks and on average."""
    model, config = tiny_latent(dtype=torch.float64), EvaluationConfig(num_samples=3, max_new_tokens=4, batch_size=6)
    answered = answer_problems(model, tiny_problems(7), config, exploration=SharedDropout(0.3), seed=5)
    return [asdict(each) for each in answered]


def train_all(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Trains every case in a folder of its name."""
    for name, case in cases.items():
        train(folder / name, case)


def train_until(run: Path, case: dict[str, Any], number: int) -> int:
    """Trains with GRPO until rank 1 gets a signal in its second step; the exit status of a process that was stopped."""
    step_of = GRPOTrainer.step

    def step(trainer: GRPOTrainer, count: int, *args: Any) -> dict[str, float]:
        if count == 2 and processes.rank() == 1:
            os.kill(os.getpid(), number)
        return step_of(trainer, count, *args)

    try:
        with patch.object(GRPOTrainer, "step", step), handled_signals():
            train(run, case)
    except Interrupted as stopped:
        return stopped.status
    return 0


def killed(run: Path, case: dict[str, Any]) -> int:
    """Rank 1 is killed in its second step."""
    return train_until(run, case, signal.SIGKILL)


def asked_to_stop(run: Path, case: dict[str, Any]) -> int:
    """Only rank 1 gets SIGTERM, in its second step."""
    return train_until(run, case, signal.SIGTERM)


class StopsInOneProcess(TrainerCallback):
    """Rank 1 alone asks for a checkpoint after the first step, and to stop after the second."""

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if processes.rank() == 1:
            control.should_save |= state.global_step == 1
            control.should_training_stop |= state.global_step == 2


def stopped_by_callbacks(run: Path, case: dict[str, Any]) -> list[str]:
    """Trains with a callback that decides in one process; returns the names of the checkpoints."""
    train(run, case, callbacks=[StopsInOneProcess()])
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def averaged(folder: Path, case: dict[str, Any]) -> None:
    """Trains with a fault: gradients are averaged over the processes, as DDP does, though the loss has all totals."""
    from dropout_grpo.distributed import gradients, sharding

    def average(parameters: Sequence[torch.nn.Parameter]) -> None:
        gradients.add_up_gradients(parameters)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= processes.size()

    with patch.object(sharding, "add_up_gradients", average):
        train(folder, case)


def by_rank(folder: Path, case: dict[str, Any]) -> None:
    """Trains with a fault: the seeds of the rollouts depend on the rank that makes them."""
    from dropout_grpo.rl import sampler

    seeds_of = sampler.rollout_seeds

    def seeds(*args: Any) -> torch.Tensor:
        return seeds_of(*args) + processes.rank()

    with patch.object(sampler, "rollout_seeds", seeds):
        train(folder, case)


def with_faults(folder: Path, case: dict[str, Any]) -> None:
    """Trains once with each fault, in folders of their names."""
    for fault in (averaged, by_rank):
        fault(folder / fault.__name__, case)
