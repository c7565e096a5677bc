"""Options that several commands have, and what ``--help`` shows of them. Nothing here imports torch."""

import argparse
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.needs import within
from dropout_grpo.config.ranges import range_of
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.config.recipe_file import recipe_names

CURRICULUM_ONLY = ("data.train", "model", "curriculum")
GRPO_ONLY = ("data.grpo", "grpo", "reward_funcs")
SAMPLES_ONLY = ("data.test", "evaluation.num_samples", "evaluation.temperature")
"""Sections and options of a recipe, by what uses them."""

_ALL_FIRST = ("seed", "resume", "smoke", "device", "bf16", "json")


def add_config(parser: ArgumentParser, config: type[Any], section: str | None = None) -> None:
    """Add the fields of a dataclass as options, with the ranges of numbers in their help.

    Args:
        parser: the command's.
        config: the dataclass.
        section: what precedes the names of the options, without the dot; nothing if None.
    """
    if section is None:
        parser.add_class_arguments(config, as_group=False)
    else:
        parser.add_class_arguments(config, section)
    _show_ranges(parser, config, "" if section is None else f"{section}.")


def add_dry_run(parser: ArgumentParser) -> None:
    """Add ``--dry_run`` of a training; see ``dry_run.py``."""
    plan = "print the memory that the training needs on this machine's CPUs, without loading weights, and stop"
    parser.add_argument("--dry_run", action="store_true", help=plan)


def add_recipe(parser: ArgumentParser, *, hidden: Collection[str], first: Sequence[str]) -> None:
    """Add all options of a recipe, ``--recipe``, ``--smoke`` and ``--device``; see ``recipe_of``.

    A recipe holds the options of all commands, so every command that reads one accepts them all, here and in the file.

    Args:
        parser: the command's.
        hidden: sections and options that its help does not show.
        first: options that most runs set, which its help shows before all others.
    """
    shipped = f"a YAML file, or a shipped recipe: {', '.join(recipe_names())}"
    parser.add_argument("--recipe", action=ActionConfigFile, help=shipped)
    add_config(parser, Recipe)
    small = "try the command in seconds: two steps of everything, offline, with a small stand-in for the model"
    parser.add_argument("--smoke", action="store_true", help=small)
    add_device(parser)
    for action in parser._actions:
        if within(action.dest, hidden):
            action.help = argparse.SUPPRESS
    _show_first(parser, first)


def add_device(parser: ArgumentParser) -> None:
    """Add ``--device``, which the command line obeys before it runs a command."""
    where = "cpu, cuda, or a GPU by its number, such as cuda:1; cuda where there is one, if not given"
    parser.add_argument("--device", type=str | None, default=None, help=where)


def add_json(parser: ArgumentParser) -> None:
    """Add ``--json``. All else that the command prints then goes to standard error."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")


def recipe_of(options: Namespace) -> Recipe:
    """The recipe in the options of a command."""
    return Recipe(**{option.name: options[option.name] for option in fields(Recipe)})


def checkpoint_options_of(options: Namespace) -> CheckpointOptions:
    """What the user has said of a checkpoint that does not record it."""
    return CheckpointOptions(latent_steps=options.latent_steps, base=options.base)


def _show_first(parser: ArgumentParser, first: Sequence[str]) -> None:
    actions = {action.dest: action for action in parser._actions}
    chosen = [actions[name] for name in dict.fromkeys((*first, *_ALL_FIRST)) if name in actions]
    groups: Any = parser._action_groups
    common = parser.add_argument_group("common options")
    for group in groups:
        group._group_actions = [action for action in group._group_actions if action not in chosen]
    common._group_actions = chosen
    groups.insert(0, groups.pop())


def _show_ranges(parser: ArgumentParser, config: type[Any], section: str) -> None:
    """Append the range of each number to its help."""
    actions = {action.dest: action for action in parser._actions}
    for option in fields(config):
        name = section + option.name
        if is_dataclass(option.default_factory):
            _show_ranges(parser, option.default_factory, f"{name}.")
        elif bounds := range_of(option):
            actions[name].help = f"{(actions[name].help or '').rstrip('.')}; {bounds}."
