"""The two trainings that commands are made of, the curriculum and a GRPO run from a model, and what follows them."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from dropout_grpo.commands.shared.context import Context
from dropout_grpo.commands.shared.measure import by_source, measure, require_askable, validation_sets
from dropout_grpo.commands.shared.model_card import describe_measured
from dropout_grpo.commands.shared.models import fresh_model, load_model
from dropout_grpo.commands.shared.problems import place_of
from dropout_grpo.commands.shared.thoughts import kinds_of, thoughts_of_run
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.rewards import load_reward
from dropout_grpo.distributed.processes import on_main
from dropout_grpo.errors import QuestionTooLong, at_place
from dropout_grpo.evaluation.answering import all_alike
from dropout_grpo.evaluation.measures import in_a_line, sample, summarize
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.latent.lora.adapter import add_lora
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.read import read_metrics
from dropout_grpo.training.checkpoint import save_checkpoint
from dropout_grpo.training.progress import console, tell

_SAMPLED = 32
"""Validation problems that are answered under masks after GRPO, for the report."""


def curriculum_trainer(
    recipe: Recipe,
    run: RunFolder | str,
    device: torch.device,
    train: Sequence[Problem],
    valid: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
) -> CurriculumTrainer:
    """A trainer of the curriculum with a new model, whose options and problems have been checked.

    Args:
        recipe: the options; ``bf16`` is decided.
        run: the run folder.
        device: where the model computes; on ``meta`` it has no weights, for a dry run.
        train: problems with steps.
        valid: problems to validate on.
        tokenizer: the ``starting_tokenizer`` of the recipe.

    Raises:
        UserError: names the option or the problem.
    """
    curriculum = recipe.curriculum
    model = fresh_model(
        recipe.model,
        tokenizer,
        curriculum.latent_steps,
        curriculum.thought,
        recipe.seed,
        chat_template=recipe.data.chat_template,
        device=device,
    )
    if recipe.lora.r is not None:
        model = add_lora(model, recipe.lora, seed=recipe.seed)
    require_askable(model, valid, "valid", recipe)
    with at_place(place_of(recipe.data, "train"), QuestionTooLong):
        return CurriculumTrainer(
            model,
            curriculum,
            train,
            run,
            validation_sets(recipe.data, valid),
            seed=recipe.seed,
            bf16=bool(recipe.bf16),
            param_dtype=recipe.param_dtype,
            fsdp=recipe.fsdp,
            evaluation=recipe.evaluation,
        )


def train_curriculum(
    context: Context,
    train: Sequence[Problem],
    valid: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    check: Callable[[LatentModel], None] = lambda model: None,
) -> LatentModel:
    """Train a model through the whole curriculum and save it as the checkpoint ``coconut``.

    The arguments are those of ``curriculum_trainer``. ``check`` is called with the untrained model, and raises
    UserError for what would fail after the curriculum.
    """
    trainer = curriculum_trainer(context.recipe, context.run, context.device, train, valid, tokenizer)
    model = trainer.model
    check(model)
    trainer.train(resume_from_checkpoint=context.recipe.resume)
    del trainer
    gc.collect()  # its callback holds it: what follows has the memory of the optimiser's state
    save_checkpoint(context.run.checkpoint("coconut"), model)
    return model


def grpo_trainer(
    recipe: Recipe,
    run: RunFolder | str,
    exploration: Exploration,
    model: LatentModel,
    problems: Sequence[Problem],
    valid: Sequence[Problem],
    part: str,
) -> GRPOTrainer:
    """A GRPO trainer whose options, problems and reward functions have been checked.

    Args:
        recipe: the options; ``bf16`` is decided.
        run: the run folder.
        exploration: the noise that makes the rollouts of a question differ.
        model: the policy.
        problems: questions with answers.
        valid: problems to validate on.
        part: name of this part of the run in its metrics and checkpoints.

    Raises:
        UserError: names the option, the problem or the reward function.
    """
    rewards = [load_reward(path) for path in recipe.reward_funcs]
    require_askable(model, valid, "valid", recipe)
    with at_place(place_of(recipe.data, "grpo"), QuestionTooLong):
        trainer = GRPOTrainer(
            model,
            rewards,
            recipe.grpo,
            problems,
            validation_sets(recipe.data, valid),
            exploration=exploration,
            run=run,
            seed=recipe.seed,
            bf16=bool(recipe.bf16),
            param_dtype=recipe.param_dtype,
            fsdp=recipe.fsdp,
            evaluation=recipe.evaluation,
            part=part,
        )
    trainer.sampler.try_rewards()
    return trainer


def train_grpo(
    context: Context, model: LatentModel, problems: Sequence[Problem], valid: Sequence[Problem], part: str
) -> LatentModel:
    """Post-train a model and save it as the checkpoint named like the part; the arguments of ``grpo_trainer``."""
    recipe, finished = context.recipe, context.run.checkpoint(part)
    if recipe.resume and recipe.grpo.save_steps == 0 and on_main(finished.is_dir):  # it has no steps to go on from
        console.print(f"{part} is finished: {finished}", markup=False)
        return load_model(finished, device=context.device)
    grpo_trainer(recipe, context.run, context.exploration, model, problems, valid, part).train(
        resume_from_checkpoint=recipe.resume
    )
    gc.collect()  # as after the curriculum
    save_checkpoint(finished, model)
    on_main(lambda: _warn_of_collapse(context, part))
    return model


def finish(context: Context, model: LatentModel, valid: Sequence[Problem], part: str, start: float) -> dict[str, Any]:
    """Measure the trained model on the validation problems, and write results, samples, thoughts, card and report.

    Args:
        context: the command.
        model: what was trained.
        valid: problems to validate on.
        part: ``sft`` or ``grpo``.
        start: ``time.monotonic()`` when the training began.

    Returns:
        What ``results.json`` has.
    """
    from dropout_grpo.report import write_report  # imports matplotlib, which a start need not wait for

    recipe, run = context.recipe, context.run
    answered = measure(context, model, valid, "validation", plain_only=True)
    files = recipe.data.sources("valid") or (f"{recipe.data.task} valid",)
    rows: list[dict[str, Any]] = []
    names: list[str] = []
    for file, part_of in zip(files, by_source(recipe.data, valid).values(), strict=True):
        rows.append({"file": file, **summarize(answered[len(names) : len(names) + len(part_of)])})
        names += [file] * len(part_of)
    if part == "grpo":
        plain_only = all_alike(model, recipe.evaluation, context.exploration)
        answered[:_SAMPLED] = measure(context, model, valid[:_SAMPLED], "samples", plain_only=plain_only)
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
        tell(in_a_line(row))
    tell(f"report: {on_main(lambda: str(write_report(run.path)))}")
    tell(f"model: {run.checkpoint('coconut' if part == 'sft' else part)}")
    return results


def _warn_of_collapse(context: Context, part: str) -> None:
    lines = [line for line in read_metrics(context.run.path, whole_lines=True) if line.get("part") == part]
    if has_collapsed(lines):
        console.print(
            f"warning: {part} has collapsed: at the end no token is in doubt, answers are wrong, and no update has a "
            f"gradient. Lower grpo.learning_rate ({context.recipe.grpo.learning_rate}), or set grpo.warmup_steps.",
            markup=False,
        )


def has_collapsed(metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a GRPO run is certain of wrong answers and learns no more, as at a much too high learning rate.

    Args:
        metrics: the lines of one part of metrics.jsonl, in order.

    Returns:
        True if the first update had a gradient, the last quarter of them had none, and the entropy of the tokens has
        fallen below a hundredth while some answers are wrong.
    """
    lines = [line for line in metrics if "reward" in line]
    last = lines[-max(1, len(lines) // 4) :]
    if len(lines) < 2 or lines[0]["grad_norm"] == 0 or any(line["grad_norm"] > 0 for line in last):
        return False
    fell = all(line["entropy"] < lines[0]["entropy"] / 100 for line in last)
    return fell and sum(line["reward"] for line in last) / len(last) < max(1.0, lines[0]["reward"])
