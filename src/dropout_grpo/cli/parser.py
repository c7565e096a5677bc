"""The parsers of the commands. Nothing here imports torch, so that help and error messages appear at once."""

import pkgutil
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

import yaml
from jsonargparse import ArgumentParser

import dropout_grpo.commands
from dropout_grpo.config.recipe_file import recipe_path
from dropout_grpo.config.safe_yaml import guard_yaml
from dropout_grpo.runs.files import flat_options

_ORDER = ("demo", "data", "sft", "grpo", "eval", "compare", "ask", "inspect", "merge", "push", "report")
"""The order of the help, that of a project's work. A command that is not named here comes last."""


@cache
def commands() -> dict[str, Any]:
    """The modules of the commands by name; ``commands/__init__.py`` says what they have."""
    names = [module.name for module in pkgutil.iter_modules(dropout_grpo.commands.__path__) if not module.ispkg]
    names.sort(key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: import_module(f"{dropout_grpo.commands.__name__}.{name}") for name in names}


def build_parser(only: str | None = None, shows_help: bool = False) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """The parser of the command line, and the parsers of its commands by name.

    Args:
        only: the command that gets its options, which take most of the time; all get them if None.
        shows_help: whether the parser only prints help, which has the defaults that the command really has.
    """
    guard_yaml()
    about = "Dropout-GRPO: post-training for language models that reason in continuous latent space."
    parser = ArgumentParser(prog="dropout-grpo", description=about, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"dropout-grpo {version('dropout-grpo')}")
    subcommands = parser.add_subcommands(dest="command", metavar="command", required=False)
    parsers = {}
    for name, command in commands().items():
        sub = ArgumentParser(description=f"{command.HELP}.", exit_on_error=False, allow_abbrev=False)
        subcommands.add_subcommand(name, sub, help=command.HELP)
        if only in (None, name):
            command.add_options(sub)
        if hasattr(command, "UNUSED"):
            sub.usage = f"dropout-grpo {name} [options]"  # not a list of all of them
        if shows_help and hasattr(command, "DEFAULT_RECIPE"):
            _show_defaults(sub, command.DEFAULT_RECIPE)
        parsers[name] = sub
    return parser, parsers


def _show_defaults(parser: ArgumentParser, recipe: str) -> None:
    """Show the values of a recipe as the defaults. For a parser that only prints its help."""
    values = flat_options(yaml.safe_load(recipe_path(recipe).read_text(encoding="utf-8")))
    for action in parser._actions:
        action.default = values.get(action.dest, action.default)


def with_recipe_paths(argv: Sequence[str]) -> list[str]:
    """Replace the names of shipped recipes by their files, and give a command its recipe if none is named.

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
    own = getattr(commands().get("".join(others[:1])), "DEFAULT_RECIPE", None)
    if own is not None and not recipes and "--recipe" not in others:
        recipes = [f"--recipe={recipe_path(own)}"]
    return [*others[:1], *recipes, *others[1:]]
