"""Evaluations that take a fraction of a second, run through the command line as a user does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dropout_grpo.cli.main import main
from dropout_grpo.data.files import save_problems
from dropout_grpo.data.problem import Problem
from helpers.tiny_latent import tiny_latent, tiny_problems

MASKS = ("--exploration.p", "0.4", "--exploration.phases", "[latent,answer]")
OPTIONS = (
    *("--evaluation.num_samples", "3", "--evaluation.max_new_tokens", "5", "--evaluation.batch_size", "6"),
    *("--bf16", "false", *MASKS),
)
SEED = 59  # of a random model that says ### now and then, and ends an answer now and then
ANSWERS = ("9", "4", "9 9", "9", "9", ". 9 9", "1", "2 2 0 0")
"""Right answers to the tiny problems: some are what that model says, some what it says under a mask, some neither."""


def problems() -> list[Problem]:
    """Eight, some of which the model of ``SEED`` solves."""
    return [replace(problem, answer=answer) for problem, answer in zip(tiny_problems(8), ANSWERS, strict=True)]


def save_checkpoint(folder: Path, seed: int = SEED) -> Path:
    """A tiny latent model as a checkpoint folder."""
    tiny_latent(seed=seed).save_pretrained(folder)
    return folder


def save_files(folder: Path) -> list[Path]:
    """a.json with the first five of ``problems``, b.json with the others."""
    paths, whole = [folder / "a.json", folder / "b.json"], problems()
    save_problems(paths[0], whole[:5])
    save_problems(paths[1], whole[5:])
    return paths


def evaluate(checkpoint: Path, files: Sequence[Path], run: Path, *options: str) -> int:
    """``dropout-grpo eval``; its exit status."""
    listed = str(files[0]) if len(files) == 1 else f"[{','.join(map(str, files))}]"
    given = ["--checkpoint", str(checkpoint), "--files", listed, "--run_dir", str(run)]
    return main(["eval", *given, *(options or OPTIONS)])
