"""The commands and their options. Nothing here imports torch, so that help and error messages appear at once."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser

from dropout_grpo.cli.help import hide_unused, show_defaults, show_first, show_ranges
from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.config.recipe import AskOptions, CheckpointOptions, Recipe, TaskName, VaryOptions
from dropout_grpo.config.recipe_file import recipe_names, recipe_path
from dropout_grpo.config.safe_yaml import guard_yaml
from dropout_grpo.tasks.registry import DEFAULT_TASK, TASKS

_DEFAULT_RECIPE = "word-problems"


def build_parser(help_of: str | None = None) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser of the command line, and the parsers of its commands by name.

    Args:
        help_of: the command whose help is shown, with the defaults that it really has; None to parse options.
    """
    guard_yaml()
    about = "Dropout-GRPO: post-training for language models that reason in continuous latent space."
    parser = ArgumentParser(prog="dropout-grpo", description=about, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"dropout-grpo {version('dropout-grpo')}")
    subcommands = parser.add_subcommands(dest="command", metavar="command")
    made: dict[str, ArgumentParser] = {}

    def command(name: str, what: str, more: str = "") -> ArgumentParser:
        made[name] = ArgumentParser(description=f"{what}. {more}".rstrip(), exit_on_error=False, allow_abbrev=False)
        subcommands.add_subcommand(name, made[name], help=what)
        return made[name]

    def with_options(sub: ArgumentParser, config: type[Any], section: str | None = None) -> None:
        if section is None:
            sub.add_class_arguments(config, as_group=False)
        else:
            sub.add_class_arguments(config, section)
        show_ranges(sub, config, "" if section is None else f"{section}.")

    def with_device(sub: ArgumentParser) -> None:
        where = "cpu, cuda, or a GPU by its number, such as cuda:1; cuda where there is one, if not given"
        sub.add_argument("--device", type=str | None, default=None, help=where)

    def with_recipe(sub: ArgumentParser, command: str) -> None:
        shipped = f"a YAML file, or a shipped recipe: {', '.join(recipe_names())}"
        sub.add_argument("--recipe", action=ActionConfigFile, help=shipped)
        with_options(sub, Recipe)
        small = "try the command in seconds: two steps of everything, offline, with a small stand-in for the model"
        sub.add_argument("--smoke", action="store_true", help=small)
        with_device(sub)
        hide_unused(sub, command)
        show_first(sub, command)

    def with_json(sub: ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print one JSON object on standard output")

    sub = command(
        "demo",
        "make data, train a Coconut, post-train it with Dropout-GRPO, measure, report",
        f"Without --recipe it uses the recipe {_DEFAULT_RECIPE}; the defaults below are those of this recipe.",
    )
    with_json(sub)
    with_recipe(sub, "demo")
    if help_of == "demo":
        show_defaults(sub, recipe_path(_DEFAULT_RECIPE))
    sub = command("data", "write a built-in task's problems, or variations of a file's problems, as Coconut JSON")
    files = "folder to write train, grpo, valid and test .json to, or vary.json"
    sub.add_argument("--out", type=str, required=True, help=files)
    with_options(sub, VaryOptions)
    sub.add_argument("--task", type=TaskName, default=DEFAULT_TASK, help="which built-in task")
    for name, task in TASKS.items():
        with_options(sub, task.config, name)
    with_recipe(command("sft", "train a latent model through Coconut's curriculum"), "sft")
    sub = command("grpo", "post-train a checkpoint with Dropout-GRPO")
    latent = "folder or hub name of a latent model (required, except with --smoke)"
    sub.add_argument("--checkpoint", type=str | None, default=None, help=latent)
    with_options(sub, CheckpointOptions)
    with_recipe(sub, "grpo")
    files = "problem file or hf: dataset, or a list of them: [a.json,b.jsonl]"
    sub = command("eval", "measure a checkpoint: the plain network, samples under masks, and the model average")
    sub.add_argument("--checkpoint", type=str, required=True, help="folder or hub name of a latent model")
    with_options(sub, CheckpointOptions)
    sub.add_argument("--files", type=list[str] | str, required=True, help=files)
    with_json(sub)
    with_recipe(sub, "eval")
    sub = command("compare", "compare two eval runs on the same problems: wins, losses, exact McNemar test, difference")
    sub.add_argument("run_a", type=str, help="run folder of an eval")
    sub.add_argument("run_b", type=str, help="run folder of another eval on the same files")
    with_json(sub)
    sub = command("ask", "answer questions with the plain network, with several masks, and by their vote")
    sub.add_argument("checkpoint", type=str, help="folder or hub name of a latent model")
    lines = "the text; questions are read from standard input, one a line, if not given"
    sub.add_argument("question", type=str | None, nargs="?", help=lines)
    sub.add_argument("--json", action="store_true", help="print one JSON object per question on standard output")
    with_device(sub)
    read = "read each thought through the head: its likeliest tokens, plain and under each mask"
    sub.add_argument("--thoughts", action="store_true", help=read)
    with_options(sub, CheckpointOptions)
    with_options(sub, AskOptions)
    with_options(sub, ExplorationConfig, "exploration")
    sub = command("inspect", "show what is found in a model: sites, masks, latent tokens; and do a dry run")
    sub.add_argument("model", type=str, help="folder or hub name of a model, with latent tokens or without")
    few = "file or hf: dataset: read the thoughts about a few of its problems that are answered right and wrong"
    sub.add_argument("--problems", type=str | None, default=None, help=few)
    with_device(sub)
    with_options(sub, CheckpointOptions)
    with_json(sub)
    sub = command("merge", "add an adapter to its base, which gives a plain checkpoint")
    sub.add_argument("folder", type=str, help="folder or hub name of an adapter, as sft and grpo with lora write it")
    sub.add_argument("--out", type=str, required=True, help="folder to write the checkpoint to")
    sub = command("push", "upload a checkpoint with its model card to the Hugging Face Hub")
    sub.add_argument("checkpoint", type=str, help="folder of a checkpoint")
    sub.add_argument("repo_id", type=str, help="user/name on the Hub")
    sub.add_argument("--eval_run", type=str | None, default=None, help="run folder of an eval, for the card's results")
    sub.add_argument("--private", action="store_true", help="make a new repository private")
    sub.add_argument("--dry_run", action="store_true", help="print the files and the card, and upload nothing")
    sub = command("report", "write report.html from a run folder, or a page that compares several runs")
    sub.add_argument("run_dirs", type=str, nargs="+", help="the run folder; or two and more to compare")
    sub.add_argument("--out", type=str, default="comparison.html", help="the page that compares several runs")
    again = "write the page again while the run goes on; the browser loads it again by itself"
    sub.add_argument("--watch", action="store_true", help=again)
    return parser, made


def with_recipe_paths(argv: Sequence[str]) -> list[str]:
    """Replace the names of shipped recipes by their files, and give the demo its recipe if none is named.

    Recipes are moved before all other options, so that options of the command line override them in any position.
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
