"""``dropout-grpo eval``: measure a checkpoint on files. A resumed run continues after the last file it finished."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.commands.shared.options import (
    CURRICULUM_ONLY,
    GRPO_ONLY,
    add_config,
    add_json,
    add_recipe,
    checkpoint_options_of,
)
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.data.files import load_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError, at_place, reading
from dropout_grpo.runs.files import MEASURES_FILE
from dropout_grpo.runs.read import objects, read_measures, read_samples
from dropout_grpo.tasks.registry import TASKS
from dropout_grpo.training.progress import console, tell

HELP = "measure a checkpoint: the plain network, samples under masks, and the model average"
UNUSED = (
    *(*CURRICULUM_ONLY, *GRPO_ONLY, "lora", "report_to", "param_dtype", "fsdp"),
    *("data.test", "data.max_valid", "data.task"),
    *(f"data.{task}" for task in TASKS),
)

_FIRST = ("checkpoint", "files", "run_dir", "evaluation.num_samples", "evaluation.max_new_tokens", "latent_steps")


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=str, required=True, help="folder or hub name of a latent model")
    add_config(parser, CheckpointOptions)
    files = "problem file or hf: dataset, or a list of them: [a.json,b.jsonl]"
    parser.add_argument("--files", type=list[str] | str, required=True, help=files)
    add_json(parser)
    add_recipe(parser, hidden=(*UNUSED, "evaluation.latent_steps"), first=_FIRST)  # the last is also --latent_steps


def run(options: Namespace) -> None:
    from dropout_grpo.commands.shared.context import started
    from dropout_grpo.distributed.processes import is_main

    with started(options, UNUSED, ()) as recipe:
        files = [options.files] if isinstance(options.files, str) else options.files
        given = options.given.get("exploration", {})
        results = evaluate(recipe, options.checkpoint, files, checkpoint_options_of(options), given)
        if options.json and is_main():
            print(json.dumps(results))


def evaluate(
    recipe: Recipe,
    checkpoint: str,
    files: Sequence[str],
    options: CheckpointOptions,
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint; returns ``results.json``.

    Args:
        recipe: the options.
        checkpoint: folder, hub name or Coconut ``state_dict`` file.
        files: problem files.
        options: what the checkpoint does not record.
        told: the options of the exploration that the user has given; the others are those that the checkpoint was
            trained with. The recipe's exploration if None.

    Writes to the run folder ``measures.json`` (all measures with intervals, one object per file), ``samples.jsonl``
    (every answer, one line per problem), ``thoughts.jsonl`` (thoughts about a few problems of the first file),
    ``results.json`` (the summary) and the report.

    Raises:
        UserError: before any question is asked: no file, a file named twice, a bad file, checkpoint or option, a
            question too long or with unknown words, samples without randomness, an existing run folder.
    """
    from dropout_grpo.commands.shared.context import Context
    from dropout_grpo.commands.shared.measure import measure
    from dropout_grpo.commands.shared.models import exploration_for, load_model
    from dropout_grpo.commands.shared.problems import require_known_words
    from dropout_grpo.commands.shared.thoughts import kinds_of, thoughts_of_run
    from dropout_grpo.distributed.device import default_device
    from dropout_grpo.distributed.processes import on_main
    from dropout_grpo.evaluation.answering import check_evaluation
    from dropout_grpo.evaluation.measures import in_a_line, measure_answers, sample, summary
    from dropout_grpo.evaluation.statistics import CI95
    from dropout_grpo.exploration.build import build_exploration
    from dropout_grpo.report import write_report
    from dropout_grpo.runs.provenance import provenance
    from dropout_grpo.runs.record import code_digest, weights_digest

    if not files:
        raise UserError("--files is empty: name at least one problem file.")
    if twice := sorted({file for file in files if files.count(file) > 1}):
        raise UserError(f"--files names {twice[0]} twice.")
    build_exploration(recipe.exploration)  # what is wrong with it is told before the model loads
    data = recipe.data
    sets = {
        file: load_problems(file, columns=data.columns, require_steps=False, max_problems=data.max_problems)
        for file in files
    }
    _warn_of_validation_problems(recipe, sets)
    device = default_device()
    model = load_model(checkpoint, options, data=recipe.data, device=device)
    if recipe.evaluation.num_samples == 0:
        recipe = replace(recipe, exploration=ExplorationConfig(kind="none"))
    elif told is not None:
        recipe = replace(recipe, exploration=exploration_for(model, told))
    exploration = build_exploration(recipe.exploration)
    for file, problems in sets.items():
        require_known_words(model.tokenizer, problems, file)
        with at_place(file):
            check_evaluation(model, problems, recipe.evaluation, exploration)
            model.require_writable(problem.answer for problem in problems)
    answers = max(map(len, sets.values())) * max(1, recipe.evaluation.num_samples)
    largest = min(recipe.evaluation.batch_size, answers)
    record = {"checkpoint": checkpoint, **vars(options), "files": list(files)}
    digests = {"checkpoint": weights_digest(model), "exploration.kind": code_digest(exploration)}
    context = Context.start(
        "eval", recipe, exploration, device=device, options=record, report_to=(), digests=digests, rows=largest
    )
    run = context.run
    evaluations, samples = _finished(run.path, sets, recipe.evaluation.num_samples)
    for file in files[len(evaluations) :]:
        start = time.monotonic()
        with at_place(file):
            answered = measure(context, model, sets[file], Path(file).name)
        seconds = time.monotonic() - start
        speed = {"seconds": round(seconds, 3), "problems_per_second": round(len(answered) / seconds, 3)}
        evaluations.append({"file": file, **measure_answers(answered), **speed})
        samples += [sample(file, a) for a in answered]
        run.write_samples(samples)
        if file == files[0]:
            run.write_thoughts(thoughts_of_run(context, kinds_of(answered), {"": (model, answered)}))
        run.write_measures({"ci95": CI95, "evaluations": evaluations})
    rows = [{"file": e["file"], **summary(e)} for e in evaluations]
    results = {"checkpoint": checkpoint, "seed": recipe.seed, "evaluations": rows, **provenance()}
    run.write_results(results)
    for row in rows:
        tell(in_a_line(row))
    tell(f"report: {on_main(lambda: str(write_report(run.path)))}")
    return results


def _warn_of_validation_problems(recipe: Recipe, sets: dict[str, list[Problem]]) -> None:
    """Print a warning for each file that shares questions with the recipe's validation file, if that is here."""
    from dropout_grpo.commands.shared.problems import warn_of_overlap

    for valid in recipe.data.sources("valid"):
        if not Path(valid).is_file() or valid in sets:
            continue
        try:
            seen = load_problems(valid, columns=recipe.data.columns, require_steps=False)
        except UserError as error:  # it may have other columns, and is not what is measured
            console.print(f"warning: data.valid is not compared with the files: {error}", markup=False)
            continue
        for file, problems in sets.items():
            warn_of_overlap(problems, file, seen, f"data.valid {valid}")


def _finished(
    run: Path, sets: dict[str, list[Problem]], num_samples: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measures and samples of the files that a stopped run has finished, always the first ones; empty for a new run.

    Raises:
        UserError: the problems of a file have changed, or a file of the run is damaged.
    """
    from dropout_grpo.evaluation.measures import in_a_line, summary

    measures = read_measures(run)
    evaluations = [dict(one) for one in objects(measures, "evaluations", str(run / MEASURES_FILE))]
    if not evaluations:
        return [], []
    with reading(run / MEASURES_FILE):
        done = [evaluation["file"] for evaluation in evaluations]
        if done != list(sets)[: len(done)]:
            raise ValueError(f"it has the files {done}, and not the first ones of {list(sets)}")
        for evaluation in evaluations:
            if (evaluation["n"], evaluation["num_samples"]) != (len(sets[evaluation["file"]]), num_samples):
                raise ValueError(f"n or num_samples of {evaluation['file']} is wrong")
            in_a_line({"file": evaluation["file"], **summary(evaluation)})  # has all that will be needed
    samples = [line for line in read_samples(run) if line["file"] in done]
    for file in done:
        then = [(line["question"], line["answer"]) for line in samples if line["file"] == file]
        if then != [(problem.question, problem.answer) for problem in sets[file]]:
            raise UserError(f"{file} has changed since {run} was measured on it: choose another --run_dir.")
        console.print(f"{file}: already measured", markup=False)
    return evaluations, samples
