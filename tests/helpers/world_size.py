"""The same small training in any number of processes: what it ends with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dropout_grpo.curriculum.config import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent.config import LoRAConfig
from dropout_grpo.latent.lora.adapter import add_lora
from dropout_grpo.rl.config import GRPOConfig
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
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


def train(run: Path, case: dict[str, Any], *, resume: bool = False) -> None:
    """Trains as the case says; the run folder holds metrics and the checkpoint with the optimiser's state.

    Args:
        run: the run folder.
        case: ``part`` (sft or grpo), ``kind`` of model, ``dtype``, ``fsdp``, ``reward``, ``lora``, ``bf16``; the rest
            are options of the config.
        resume: continue the run in the folder.
    """
    case = dict(case)
    part, kind, dtype = case.pop("part"), case.pop("kind", "gpt2"), getattr(torch, case.pop("dtype", "float64"))
    fsdp, bf16, reward = case.pop("fsdp", False), case.pop("bf16", False), REWARDS[case.pop("reward", "digits")]
    base = case.pop("lora", None)
    model = tiny_latent(kind, dtype, std=0.2)
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
        exploration=SharedDropout(0.2),
        run=folder,
        seed=2,
        fsdp=fsdp,
        bf16=bf16,
    )
    trainer.train(resume_from_checkpoint=resume)


def train_all(folder: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Trains every case in a folder of its name."""
    for name, case in cases.items():
        train(folder / name, case)
