"""What ``--help`` of a command shows: only the options that the command uses, with the ranges of numbers.

A recipe holds the options of all commands, so every command that reads one accepts them all, here and in the file.
"""

import argparse
from dataclasses import fields, is_dataclass
from typing import Any

from jsonargparse import ArgumentParser

from dropout_grpo.needs import within
from dropout_grpo.ranges import range_of
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


def hide_unused(parser: ArgumentParser, command: str) -> None:
    """Leave the options that the command ignores out of its help."""
    unused = UNUSED[command]
    for action in parser._actions:
        if within(action.dest, unused):
            action.help = argparse.SUPPRESS


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
