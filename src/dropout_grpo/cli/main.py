"""``dropout-grpo COMMAND``: parse, run, say what the user can fix."""

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from rich.console import Console
from transformers.utils import logging as transformers_logging

from dropout_grpo.bench.config import BenchConfig
from dropout_grpo.cli import commands
from dropout_grpo.cli.bench import bench
from dropout_grpo.cli.checkpoint import CheckpointOptions
from dropout_grpo.cli.compare import as_text, compare
from dropout_grpo.cli.demo import demo
from dropout_grpo.cli.evaluate import evaluate
from dropout_grpo.cli.inspect import as_text as inspection_as_text
from dropout_grpo.cli.inspect import inspect
from dropout_grpo.cli.merge import merge
from dropout_grpo.cli.messages import explain
from dropout_grpo.cli.parts import settled
from dropout_grpo.cli.recipe import DataConfig, Recipe, Task, recipe_names, recipe_path, require_sections
from dropout_grpo.cli.smoke import stand_ins
from dropout_grpo.errors import UserError
from dropout_grpo.report import write_report
from dropout_grpo.tasks.prosqa import ProsqaConfig
from dropout_grpo.tasks.word_problems import WordProblemsConfig
from dropout_grpo.theory.check import checks_to_json
from dropout_grpo.theory.checks import run as run_checks
from dropout_grpo.theory.plots import save_plots
from dropout_grpo.theory.table import render
from dropout_grpo.training.allocator import keep_freed_memory
from dropout_grpo.training.progress import console

_DEFAULT_RECIPE = "word-problems"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    # Bars and advice that transformers writes would break ours; its warnings and errors stay.
    transformers_logging.disable_progress_bar()
    words = list(sys.argv[1:] if argv is None else argv)
    parser, commands_by_name = build_parser()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jsonargparse's notes to developers
            arguments = parser.parse_args(_with_recipe_paths(words))
            name = arguments.command
            require_sections(arguments[name])
            options = parser.instantiate_classes(arguments)[name]
        if options.get("smoke"):
            _put_stand_ins(options)
        keep_freed_memory()
        _RUN[name](options)
    except UserError as error:
        return _complain(str(error))
    except argparse.ArgumentError as error:
        return _complain(explain(str(error), _options_of(commands_by_name.get("".join(words[:1])))))
    except KeyboardInterrupt:
        console.print("interrupted; a run goes on with --resume true")
        return 130
    return 0


def build_parser() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The whole command line, and the parsers of its commands."""
    about = "Dropout-GRPO: post-training for language models that reason in continuous latent space."
    parser = ArgumentParser(prog="dropout-grpo", description=about, exit_on_error=False, allow_abbrev=False)
    subcommands = parser.add_subcommands(dest="command", metavar="command")
    made: dict[str, ArgumentParser] = {}

    def command(name: str, what: str, more: str = "") -> ArgumentParser:
        made[name] = ArgumentParser(description=f"{what}. {more}".rstrip(), exit_on_error=False, allow_abbrev=False)
        subcommands.add_subcommand(name, made[name], help=what)
        return made[name]

    def with_recipe(sub: ArgumentParser) -> None:
        shipped = f"a YAML file, or a shipped recipe: {', '.join(recipe_names())}"
        sub.add_argument("--recipe", action=ActionConfigFile, help=shipped)
        sub.add_class_arguments(Recipe, as_group=False)
        small = "try the rest of the command line: two steps of everything on a small stand-in, offline, in seconds"
        sub.add_argument("--smoke", action="store_true", help=small)

    def with_checkpoint_options(sub: ArgumentParser) -> None:
        sub.add_class_arguments(CheckpointOptions, as_group=False)

    def with_json(sub: ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print one JSON object on standard output")

    sub = command(
        "demo",
        "make data, train a Coconut, post-train it with Dropout-GRPO, measure, report",
        f"Without --recipe it takes the recipe {_DEFAULT_RECIPE}; the defaults below are of options in no recipe.",
    )
    with_recipe(sub)
    with_json(sub)
    sub = command("data", "write an embedded task's problems as Coconut JSON files")
    sub.add_argument("--out", type=str, required=True, help="folder to write train, grpo, valid and test .json to")
    sub.add_argument("--task", type=Task, default="word_problems", help="which embedded task")
    sub.add_class_arguments(WordProblemsConfig, "word_problems")
    sub.add_class_arguments(ProsqaConfig, "prosqa")
    with_recipe(command("sft", "train a latent model through Coconut's curriculum"))
    sub = command("grpo", "post-train a checkpoint with Dropout-GRPO")
    sub.add_argument("--checkpoint", type=str, required=True, help="folder or hub name of a latent model")
    with_checkpoint_options(sub)
    with_recipe(sub)
    sub = command("eval", "measure a checkpoint: plain, under masks, and the model average")
    sub.add_argument("--checkpoint", type=str, required=True, help="folder or hub name of a latent model")
    with_checkpoint_options(sub)
    sub.add_argument("--files", type=list[str], required=True, help="files or hf: datasets: [a.json,b.jsonl]")
    with_json(sub)
    with_recipe(sub)
    sub = command("compare", "two eval runs on the same problems: wins, losses, exact McNemar test, difference")
    sub.add_argument("run_a", type=str, help="run folder of an eval")
    sub.add_argument("run_b", type=str, help="run folder of another eval on the same files")
    with_json(sub)
    sub = command("ask", "answer one question: the plain network, several masks, their vote")
    sub.add_argument("checkpoint", type=str, help="folder or hub name of a latent model")
    sub.add_argument("question", type=str)
    with_checkpoint_options(sub)
    sub.add_argument("--masks", type=int, default=8, help="how many masks vote")
    sub.add_argument("--seed", type=int, default=0, help="of the masks")
    sub.add_argument("--max_new_tokens", type=int, default=64, help="answer tokens at most")
    sub.add_class_arguments(commands.ExplorationConfig, "exploration")
    sub = command("inspect", "what is found in a model: sites, masks, latent tokens; and a dry run")
    sub.add_argument("model", type=str, help="folder or hub name of a model, with latent tokens or without")
    with_checkpoint_options(sub)
    with_json(sub)
    sub = command("merge", "add an adapter to its base: a plain checkpoint")
    sub.add_argument("folder", type=str, help="folder or hub name of an adapter, as sft and grpo with lora write it")
    sub.add_argument("--out", type=str, required=True, help="folder to write the checkpoint to")
    sub = command("theory", "check the paper's claims numerically and print a table")
    sub.add_argument("--seed", type=int, default=0, help="of the Monte-Carlo checks and of the small model they train")
    sub.add_argument("--plots", type=str | None, default=None, help="folder to write the figures to, as SVG")
    with_json(sub)
    sub = command("bench", "measure the engine beside plain, published and chain-of-thought ways; see benchmarks/")
    sub.add_class_arguments(BenchConfig, as_group=False)
    sub.add_argument("--sweep", action="store_true", help="vary one axis at a time at the largest K, and fit lines")
    with_json(sub)
    sub = command("report", "write report.html from a run folder")
    sub.add_argument("run_dir", type=str, help="the run folder")
    return parser, made


def _demo(options: Namespace) -> None:
    results = demo(_recipe(options))
    if options.json:
        print(json.dumps(results))


def _data(options: Namespace) -> None:
    made = DataConfig(task=options.task, word_problems=options.word_problems, prosqa=options.prosqa)
    commands.data(Path(options.out), made)


def _eval(options: Namespace) -> None:
    results = evaluate(_recipe(options), options.checkpoint, options.files, _checkpoint_options(options))
    if options.json:
        print(json.dumps(results))


def _compare(options: Namespace) -> None:
    comparison = compare(options.run_a, options.run_b)
    print(json.dumps(comparison) if options.json else as_text(comparison))


def _ask(options: Namespace) -> None:
    commands.ask(
        options.checkpoint,
        options.question,
        options.exploration,
        masks=options.masks,
        seed=options.seed,
        max_new_tokens=options.max_new_tokens,
        how=_checkpoint_options(options),
    )


def _inspect(options: Namespace) -> None:
    found = inspect(options.model, _checkpoint_options(options))
    print(json.dumps(found) if options.json else inspection_as_text(found))


def _bench(options: Namespace) -> None:
    config = BenchConfig(**{name: getattr(options, name) for name in BenchConfig.__dataclass_fields__})
    bench(config, sweep=options.sweep, as_json=options.json)


def _theory(options: Namespace) -> None:
    checks = run_checks(options.seed)
    if options.plots is not None:
        save_plots(checks, Path(options.plots))
    if options.json:
        print(checks_to_json(checks), end="")
    else:
        Console().print(render(checks))
    if failed := [check.id for check in checks if check.verdict == "fails"]:
        raise UserError(f"these checks fail: {', '.join(failed)}.")


_RUN: dict[str, Callable[[Namespace], Any]] = {
    "demo": _demo,
    "data": _data,
    "sft": lambda options: commands.sft(_recipe(options)),
    "grpo": lambda options: commands.grpo(_recipe(options), options.checkpoint, _checkpoint_options(options)),
    "eval": _eval,
    "compare": _compare,
    "ask": _ask,
    "inspect": _inspect,
    "merge": lambda options: merge(options.folder, Path(options.out)),
    "theory": _theory,
    "bench": _bench,
    "report": lambda options: print(write_report(Path(options.run_dir))),
}


def _recipe(options: Namespace) -> Recipe:
    return settled(Recipe(**{name: getattr(options, name) for name in Recipe.__dataclass_fields__}))


def _checkpoint_options(options: Namespace) -> CheckpointOptions:
    return CheckpointOptions(latent_steps=options.latent_steps, base=options.base)


def _put_stand_ins(options: Namespace) -> None:
    named = options.get("base") or options.get("checkpoint")
    recipe, checkpoint, files = stand_ins(_recipe(options), named, options.get("files") or [])
    stand_in = {"checkpoint": checkpoint, "latent_steps": None, "base": None, "files": files}
    for name, value in {**vars(recipe), **stand_in}.items():
        options[name] = value


def _with_recipe_paths(argv: Sequence[str]) -> list[str]:
    """Names of shipped recipes become their files; the demo has a recipe of its own where none is given.

    Recipes go before all other options: what stands on the command line counts, wherever it stands.
    """
    recipes, others = [], []
    words = iter(argv)
    for word in words:
        name = next(words, None) if word == "--recipe" else word.removeprefix("--recipe=")
        if name is None or name == word:
            others.append(word)
        else:
            recipes.append(f"--recipe={recipe_path(name)}")
    if others[:1] == ["demo"] and not recipes and "--recipe" not in others:
        recipes = [f"--recipe={recipe_path(_DEFAULT_RECIPE)}"]
    return [*others[:1], *recipes, *others[1:]]


def _options_of(parser: ArgumentParser | None) -> list[str]:
    """Names of a command's options, without dashes."""
    actions = [] if parser is None else parser._actions
    return [option.lstrip("-") for action in actions for option in action.option_strings]


def _complain(message: str) -> int:
    console.print(f"dropout-grpo: error: {message}", markup=False)
    return 2


if __name__ == "__main__":
    sys.exit(main())
