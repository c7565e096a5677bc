"""Calls the job of each command with the options of the command line, and prints what it returns."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from transformers.utils import logging as transformers_logging

from dropout_grpo.cli.help import UNUSED
from dropout_grpo.commands.ask import as_text as answers_as_text, ask_each
from dropout_grpo.commands.compare import as_text as comparison_as_text, compare
from dropout_grpo.commands.data import write_data, write_variations
from dropout_grpo.commands.demo import demo
from dropout_grpo.commands.evaluate import evaluate
from dropout_grpo.commands.inspect import as_text as inspection_as_text, inspect
from dropout_grpo.commands.merge import merge
from dropout_grpo.commands.push import push
from dropout_grpo.commands.shared.smoke import stand_ins
from dropout_grpo.commands.train import grpo, sft
from dropout_grpo.config.needs import WithoutEffect, without_effect
from dropout_grpo.config.recipe import AskOptions, CheckpointOptions, DataConfig, Recipe, VaryOptions
from dropout_grpo.distributed.device import choose_device
from dropout_grpo.distributed.processes import connected, is_main
from dropout_grpo.errors import UserError
from dropout_grpo.report import watch_report, write_comparison, write_report
from dropout_grpo.runs.files import REPORT_FILE
from dropout_grpo.tasks.registry import TASKS
from dropout_grpo.training.progress import console, results_are_json, tell

_IN_SEVERAL_PROCESSES = ("demo", "sft", "grpo", "eval")


def run(name: str, options: Namespace) -> None:
    """Run a command.

    Raises:
        UserError: the command refuses its options or files.
    """
    # Progress bars and advice of transformers would break ours; its warnings and errors stay.
    transformers_logging.disable_progress_bar()
    results_are_json(bool(options.get("json")))
    if options.get("device") is not None:
        choose_device(options.device)
    warnings.simplefilter("ignore", WithoutEffect)  # told below, once, with the options' names
    if name not in _IN_SEVERAL_PROCESSES:
        if os.environ.get("RANK", "0") == "0":
            _RUN[name](options)
        return
    try:
        with connected():
            console.quiet = not is_main()
            for line in without_effect(_recipe(options), unused=UNUSED[name]):
                console.print(line, markup=False)
            if options.get("smoke"):
                _put_stand_ins(options)
            _RUN[name](options)
    except Exception:
        console.quiet = False  # each process tells its own error; that it was asked to stop, rank 0 tells for all
        raise


def _demo(options: Namespace) -> None:
    results = demo(_recipe(options))
    if options.json and is_main():
        print(json.dumps(results))


def _data(options: Namespace) -> None:
    out = Path(options.out)
    varied = VaryOptions(**{option.name: options[option.name] for option in fields(VaryOptions)})
    made = DataConfig(task=options.task, **{name: options[name] for name in TASKS})
    written = write_data(out, made) if varied.vary is None else write_variations(out, varied)
    for file, count in written.items():
        tell(f"{file}: {count} problems")


def _eval(options: Namespace) -> None:
    results = evaluate(_recipe(options), options.checkpoint, options.files, _checkpoint_options(options), options.told)
    if options.json and is_main():
        print(json.dumps(results))


def _compare(options: Namespace) -> None:
    comparison = compare(options.run_a, options.run_b)
    print(json.dumps(comparison) if options.json else comparison_as_text(comparison))


def _ask(options: Namespace) -> None:
    asked = AskOptions(masks=options.masks, seed=options.seed, max_new_tokens=options.max_new_tokens)
    questions = [options.question] if options.question is not None else [line.strip() for line in sys.stdin]
    questions = [question for question in questions if question or options.question is not None]
    if not questions:
        raise UserError("there is no question: give one, or one on each line of standard input.")
    given = (options.exploration, asked, _checkpoint_options(options))
    found = ask_each(options.checkpoint, questions, *given, thoughts=options.thoughts, told=options.told)
    for question, answers in zip(questions, found, strict=True):
        if options.json:
            print(json.dumps({"question": question, **answers}))
        else:
            print(answers_as_text(answers) if len(questions) == 1 else f"{question}\n{answers_as_text(answers)}\n")


def _inspect(options: Namespace) -> None:
    found = inspect(options.model, _checkpoint_options(options), options.problems)
    print(json.dumps(found) if options.json else inspection_as_text(found))


def _push(options: Namespace) -> None:
    eval_run = None if options.eval_run is None else Path(options.eval_run)
    where = {"private": options.private, "dry_run": options.dry_run}
    print(push(Path(options.checkpoint), options.repo_id, eval_run=eval_run, **where))


def _report(options: Namespace) -> None:
    folders = [Path(folder) for folder in options.run_dirs]
    if options.watch:
        if len(folders) > 1:
            raise UserError("--watch writes the page of one run: give one folder.")
        console.print(f"{folders[0] / REPORT_FILE}: open it in a browser; Ctrl-C ends the watch", markup=False)
        print(watch_report(folders[0]))
        return
    print(write_report(folders[0]) if len(folders) == 1 else write_comparison(folders, Path(options.out)))


_RUN: dict[str, Callable[[Namespace], Any]] = {
    "demo": _demo,
    "data": _data,
    "sft": lambda options: sft(_recipe(options)),
    "grpo": lambda options: grpo(_recipe(options), options.checkpoint, _checkpoint_options(options)),
    "eval": _eval,
    "compare": _compare,
    "ask": _ask,
    "inspect": _inspect,
    "merge": lambda options: merge(options.folder, Path(options.out)),
    "push": _push,
    "report": _report,
}


def _recipe(options: Namespace) -> Recipe:
    return Recipe(**{option.name: options[option.name] for option in fields(Recipe)})


def _checkpoint_options(options: Namespace) -> CheckpointOptions:
    return CheckpointOptions(latent_steps=options.latent_steps, base=options.base)


def _put_stand_ins(options: Namespace) -> None:
    named = options.get("base") or options.get("checkpoint")
    recipe, checkpoint, files = stand_ins(_recipe(options), named, options.get("files") or [])
    stand_in = {"checkpoint": checkpoint, "latent_steps": None, "base": None, "files": files}
    for name, value in {**vars(recipe), **stand_in}.items():
        options[name] = value
