"""What ``--help`` of a command shows: only the options that the command uses, with the ranges of numbers.

A recipe holds the options of all commands, so every command that reads one accepts them all, here and in the file.
"""

import argparse
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from dropout_grpo.config.needs import within
from dropout_grpo.config.ranges import range_of
from dropout_grpo.runs.files import flat_options
from dropout_grpo.tasks.registry import TASKS

_CURRICULUM_ONLY = ("data.train", "model", "curriculum")
_GRPO_ONLY = ("data.grpo", "grpo", "reward_funcs")
_SAMPLES_ONLY = ("data.test", "evaluation.num_samples", "evaluation.temperature")

UNUSED: dict[str, tuple[str, ...]] = {
    "demo": (),
    "sft": (*_GRPO_ONLY, *_SAMPLES_ONLY, "exploration"),
    "grpo": (*_CURRICULUM_ONLY, "data.test"),
    "eval": (
        *(*_CURRICULUM_ONLY, *_GRPO_ONLY, "lora", "report_to"),
        *("data.test", "data.max_valid", "data.task"),
        *(f"data.{task}" for task in TASKS),
    ),
}
"""Sections and options of a recipe that a command ignores."""


_DOUBLE = {"eval": ("evaluation.latent_steps",)}
"""Options that a command has under a shorter name."""


def hide_unused(parser: ArgumentParser, command: str) -> None:
    """Leave the options that the command ignores out of its help."""
    unused = (*UNUSED[command], *_DOUBLE.get(command, ()))
    for action in parser._actions:
        if within(action.dest, unused):
            action.help = argparse.SUPPRESS


_FIRST = {
    "demo": ("recipe", "run_dir", "seed", "smoke", "resume", "device", "json", "exploration.p", "grpo.max_steps"),
    "sft": (
        "recipe",
        "run_dir",
        "data.train",
        "data.valid",
        "model.name_or_path",
        "lora.r",
        "curriculum.learning_rate",
    ),
    "grpo": (
        *("checkpoint", "recipe", "run_dir", "data.grpo", "data.valid", "reward_funcs", "exploration.kind"),
        *("exploration.p", "grpo.max_steps", "grpo.prompts_per_step", "grpo.num_generations", "grpo.learning_rate"),
        *("grpo.max_completion_length", "grpo.micro_batch_size", "grpo.beta"),
    ),
    "eval": ("checkpoint", "files", "run_dir", "evaluation.num_samples", "evaluation.max_new_tokens", "latent_steps"),
}
_ALL_FIRST = ("seed", "resume", "smoke", "device", "bf16", "json")


def show_first(parser: ArgumentParser, command: str) -> None:
    """Show the options that most runs set before all others."""
    actions = {action.dest: action for action in parser._actions}
    names = dict.fromkeys((*_FIRST[command], *_ALL_FIRST))
    chosen = [actions[name] for name in names if name in actions]
    groups: Any = parser._action_groups
    common = parser.add_argument_group("common options")
    for group in groups:
        group._group_actions = [action for action in group._group_actions if action not in chosen]
    common._group_actions = chosen
    groups.insert(0, groups.pop())
    parser.usage = f"dropout-grpo {command} [options]"  # not a list of all of them


def show_defaults(parser: ArgumentParser, recipe: Path) -> None:
    """Show the values of a recipe as the defaults. For a parser that only prints its help."""
    values = flat_options(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    for action in parser._actions:
        action.default = values.get(action.dest, action.default)


def show_ranges(parser: ArgumentParser, config: type[Any], section: str = "") -> None:
    """Append the range of each number to its help.

    Args:
        parser: has the options of the config.
        config: a dataclass.
        section: what precedes the names of its options, for example ``grpo.``.
    """
    actions = {action.dest: action for action in parser._actions}
    for option in fields(config):
        name = section + option.name
        if is_dataclass(option.default_factory):
            show_ranges(parser, option.default_factory, f"{name}.")
        elif bounds := range_of(option):
            actions[name].help = f"{(actions[name].help or '').rstrip('.')}; {bounds}."
