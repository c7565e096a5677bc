"""The commands that are a few lines each; the demo has a file of its own."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import answer_problems, vote, vote_table
from dropout_grpo.evaluation.config import EvaluationConfig
from dropout_grpo.evaluation.measures import summarize
from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.exploration.build import build_exploration
from dropout_grpo.exploration.config import ExplorationConfig
from dropout_grpo.jobs.checkpoint import CheckpointOptions, load_checkpoint
from dropout_grpo.jobs.parts import (
    SPLITS,
    measure,
    problems_of,
    refuse_lora_from_scratch,
    require_readable,
    starting_tokenizer,
    train_curriculum,
    train_grpo,
    vocabulary,
)
from dropout_grpo.jobs.recipe import DataConfig, Recipe
from dropout_grpo.latent.lora.adapter import add_lora
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.problems.files import save_problems
from dropout_grpo.problems.problem import Problem
from dropout_grpo.report import write_report
from dropout_grpo.runs.folder import RunFolder, plain, provenance
from dropout_grpo.training.progress import console


def data(out: Path, config: DataConfig) -> None:
    """Write an embedded task's splits; existing files are not replaced.

    Raises:
        UserError: a file is there already, or the task's settings leave too few problems.
    """
    targets = {name: out / f"{name}.json" for name in SPLITS}
    for target in targets.values():
        if target.exists():
            raise UserError(f"{target} exists already: choose another --out, or remove it.")
    made = problems_of(config, SPLITS)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}; choose another.") from error
    for name, problems in made.items():
        save_problems(targets[name], problems)
        console.print(f"{targets[name]}: {len(problems)} problems", markup=False)


def sft(recipe: Recipe) -> None:
    """Curriculum alone; results.json holds pass@1 on the validation problems."""
    refuse_lora_from_scratch(recipe)
    problems = problems_of(recipe.data, ("train", "valid"))
    require_readable(starting_tokenizer(recipe.model, vocabulary(recipe.data)), recipe.data, problems)
    run = RunFolder(recipe.run_dir, "sft", recipe, resume=recipe.resume, report_to=recipe.report_to)
    start = time.monotonic()
    model = train_curriculum(recipe, run, problems["train"], problems["valid"])
    _finish(recipe, run, model, problems["valid"], "sft", start)


def grpo(recipe: Recipe, checkpoint: str, how: CheckpointOptions) -> None:
    """GRPO alone, from a checkpoint; results.json holds pass@1 on the validation problems before and after."""
    exploration = build_exploration(recipe.exploration)
    problems = problems_of(recipe.data, ("grpo", "valid"))
    model = load_checkpoint(checkpoint, how)
    require_readable(model.tokenizer, recipe.data, problems)
    if recipe.lora.r is not None:
        model = add_lora(model, recipe.lora, seed=recipe.seed)
    options = {"checkpoint": checkpoint, **plain(how), **plain(recipe)}
    run = RunFolder(recipe.run_dir, "grpo", options, resume=recipe.resume, report_to=recipe.report_to)
    start = time.monotonic()
    model = train_grpo(recipe, run, model, exploration, problems["grpo"], problems["valid"], "grpo")
    _finish(recipe, run, model, problems["valid"], "grpo", start)


def _finish(
    recipe: Recipe, run: RunFolder, model: LatentModel, valid: Sequence[Problem], part: str, start: float
) -> None:
    metrics = summarize(measure(recipe, model, valid, None, "validation"))
    seconds = {part: round(time.monotonic() - start, 1)}
    evaluations = [{"file": recipe.data.valid or f"{recipe.data.task} valid", **metrics}]
    run.write_results({"seed": recipe.seed, "evaluations": evaluations, "seconds": seconds, **provenance()})
    console.print(f"pass@1 {metrics['pass@1']:.4f}; report: {write_report(run.path)}", markup=False)


def ask(
    checkpoint: str,
    question: str,
    config: ExplorationConfig,
    *,
    masks: int,
    seed: int,
    max_new_tokens: int,
    how: CheckpointOptions,
) -> None:
    """Print the plain network's answer, each mask's, and the vote."""
    if not question.strip():
        raise UserError("the question is empty.")
    if masks < 0 or max_new_tokens < 1:
        raise UserError(f"--masks {masks} must be at least 0, and --max_new_tokens {max_new_tokens} at least 1.")
    exploration = build_exploration(config)
    if masks > 1 and isinstance(exploration, NoExploration):
        raise UserError("exploration.kind none gives every mask the same answer: use --masks 0.")
    model = load_checkpoint(checkpoint, how)
    model.encode([question], room=max_new_tokens)
    problem = Problem(id=0, question=question, steps=(), answer="?")
    settings = EvaluationConfig(num_samples=masks, max_new_tokens=max_new_tokens)
    with torch.no_grad():
        (said,) = answer_problems(model, [problem], settings, exploration=exploration, seed=seed)
    print(f"plain    {said.plain.strip()}")
    for i, sample in enumerate(said.samples):
        print(f"mask {i:<3} {sample.strip()}")
    if said.average is not None:
        print(f"average  {said.average.strip()}")
    if said.samples:
        counts = ", ".join(f"{name} x{count}" for name, count in vote_table(said).items())
        print(f"vote     {vote(said) or 'none'}  ({counts})")
