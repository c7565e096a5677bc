"""The commands ``sft`` and ``grpo``."""

import time
from collections.abc import Sequence
from typing import Any

from dropout_grpo.commands.shared.context import Context
from dropout_grpo.commands.shared.measure import all_alike, by_source, measure
from dropout_grpo.commands.shared.model_card import describe_measured
from dropout_grpo.commands.shared.models import load_model, refuse_lora_from_scratch, starting_tokenizer
from dropout_grpo.commands.shared.problems import problems_of, require_readable, vocabulary
from dropout_grpo.commands.shared.thoughts import kinds_of, thoughts_of_run
from dropout_grpo.commands.shared.training import train_curriculum, train_grpo
from dropout_grpo.config.recipe import CheckpointOptions, Recipe
from dropout_grpo.data.problem import Problem
from dropout_grpo.distributed.device import default_device
from dropout_grpo.distributed.processes import on_main
from dropout_grpo.evaluation.answering import ModelAnswers
from dropout_grpo.evaluation.measures import sample, summarize
from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.exploration.build import build_exploration
from dropout_grpo.latent.lora.adapter import add_lora
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.report import write_report
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.training.progress import tell

_SAMPLED = 32
"""Validation problems that ``grpo`` answers under masks at the end, for its report."""


def sft(recipe: Recipe) -> dict[str, Any]:
    """Train a model through the curriculum; returns ``results.json``, with pass@1 on the validation problems.

    Raises:
        UserError: bad options or files, before anything is trained.
    """
    device = default_device()
    refuse_lora_from_scratch(recipe)
    problems = problems_of(recipe.data, ("train", "valid"))
    require_readable(starting_tokenizer(recipe.model, vocabulary(recipe.data)), recipe.data, problems)
    context = Context.start("sft", recipe, NoExploration(), device=device, problems=problems)
    start = time.monotonic()
    model = train_curriculum(context, problems["train"], problems["valid"])
    return _finish(context, model, problems["valid"], "sft", start)


def grpo(recipe: Recipe, checkpoint: str, options: CheckpointOptions) -> dict[str, Any]:
    """Post-train a checkpoint with GRPO; returns ``results.json``, with pass@1 on the validation problems.

    Raises:
        UserError: bad options, files or checkpoint, before anything is trained.
    """
    device = default_device()
    exploration = build_exploration(recipe.exploration)
    problems = problems_of(recipe.data, ("grpo", "valid"))
    model = load_model(checkpoint, options, chat_template=recipe.data.chat_template, device=device)
    require_readable(model.tokenizer, recipe.data, problems)
    if recipe.lora.r is not None:
        model = add_lora(model, recipe.lora, seed=recipe.seed)
    record = {"checkpoint": checkpoint, **vars(options)}
    context = Context.start("grpo", recipe, exploration, device=device, options=record, problems=problems)
    start = time.monotonic()
    model = train_grpo(context, model, problems["grpo"], problems["valid"], "grpo")
    return _finish(context, model, problems["valid"], "grpo", start)


def _under_masks(context: Context, model: LatentModel, valid: Sequence[Problem]) -> list[ModelAnswers]:
    """Answers to a few problems, as a rollout gives them; the plain ones alone where all rollouts are the same."""
    return measure(context, model, valid, "samples", plain_only=all_alike(context))


def _finish(context: Context, model: LatentModel, valid: Sequence[Problem], part: str, start: float) -> dict[str, Any]:
    recipe, run = context.recipe, context.run
    answered = measure(context, model, valid, "validation", plain_only=True)
    files = recipe.data.sources("valid") or (f"{recipe.data.task} valid",)
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    for file, part_of in zip(files, by_source(recipe.data, valid).values(), strict=True):
        rows.append({"file": file, **summarize(answered[len(names) : len(names) + len(part_of)])})
        names += [file] * len(part_of)
    if part == "grpo":
        answered[:_SAMPLED] = _under_masks(context, model, valid[:_SAMPLED])
        run.write_thoughts(thoughts_of_run(context, kinds_of(answered[:_SAMPLED]), {"": (model, answered)}))
    run.write_samples([sample(name, a) for name, a in zip(names, answered, strict=True)])
    results = {
        "seed": recipe.seed,
        "evaluations": rows,
        "seconds": {part: round(time.monotonic() - start, 1)},
        **provenance(),
    }
    run.write_results(results)
    on_main(lambda: describe_measured(run.path, part))
    for row in rows:
        (low, high), share = row["ci95"], row["pass@1"]
        tell(f"{row['file']}: pass@1 {100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]; n {row['n']}")
    tell(f"report: {on_main(lambda: str(write_report(run.path)))}")
    return results
