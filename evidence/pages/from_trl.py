"""The tables of ``docs/from-trl.md``, made from the trainer's own names."""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from dropout_grpo.config.from_trl import ELSEWHERE
from dropout_grpo.config.grpo_config import GRPOConfig
from evidence.pages.blocks import fill_file, unknown_block
from evidence.pages.markdown import table

THEIR_DEFAULTS: Mapping[str, Any] = {
    "max_completion_length": 512,
    "learning_rate": 1e-6,
    "scale_rewards": "group",
    "loss_type": "dapo",
    "logging_steps": 10,
    "save_steps": 500,
    "num_completions_to_print": None,
    "gradient_checkpointing": True,
    "save_total_limit": None,
    "num_generations_eval": None,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "per_device_train_batch_size": 8,
    "seed": 42,
    "bf16": True,
}
"""Options that TRL (1.16) or transformers has too, with another default."""

_WHAT_NONE_IS = {
    "gradient_checkpointing": "where memory needs it",
    "num_train_epochs": "`max_steps` counts",
    "per_device_train_batch_size": "128 questions a step, each with `num_generations` answers",
    "seed": "`0`",
    "bf16": "on a GPU that has it, else `False`",
}


def _documented(config: type[Any]) -> dict[str, str]:
    """The options of a config with their lines of its docstring."""
    text = re.sub(r"\n {12}", " ", config.__doc__ or "")
    return dict(re.findall(r"^ {8}(\w+): (.*)$", text, re.MULTILINE))


def _defaults() -> str:
    ours = {option.name: option.default for option in fields(GRPOConfig)}
    shown = []
    for name, theirs in THEIR_DEFAULTS.items():
        assert (ours[name] is None) == (name in _WHAT_NONE_IS), name
        shown.append([f"`{name}`", f"`{theirs}`", _WHAT_NONE_IS.get(name, f"`{ours[name]}`")])
    return table(("option", "default in TRL", "default here"), shown)


def _accepted() -> str:
    rows = [[f"`{name}`", what.replace("``", "`")] for name, what in _documented(GRPOConfig).items()]
    return table(("name in TRL", "here"), rows)


def _elsewhere() -> str:
    rows = []
    for name, elsewhere in ELSEWHERE.items():
        without = [value for value in elsewhere.accepted if value is not None]
        rows.append([f"`{name}`", elsewhere.here, ", ".join(f"`{value!r}`" for value in without)])
    return table(("name in TRL", "here", "values that are accepted"), rows)


_BLOCKS = {"defaults": _defaults, "accepted": _accepted, "elsewhere": _elsewhere}


def block(name: str) -> str:
    """The Markdown of one block.

    Raises:
        UserError: there is no such block.
    """
    if name not in _BLOCKS:
        raise unknown_block(name, list(_BLOCKS))
    return _BLOCKS[name]()


def write_page(page: Path) -> None:
    """Fills the page."""
    fill_file(page, block)
