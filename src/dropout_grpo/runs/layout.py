"""The files of a run folder. Every reader and writer takes their names from here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.json"
"""Command, options, versions and commit, written once when the run starts."""

METRICS_FILE = "metrics.jsonl"
"""One line for each logged step of each part of the run."""

RESULTS_FILE = "results.json"
"""The summary, written at the end."""

MEASURES_FILE = "metrics.json"
"""All measures of an evaluation, with intervals."""

SAMPLES_FILE = "samples.jsonl"
"""Every answer of an evaluation, one line for each problem."""

FLIPS_FILE = "flips.jsonl"
"""Problems whose plain answer changed between right and wrong."""

THOUGHTS_FILE = "thoughts.jsonl"
"""Thoughts about some problems, read through the head."""

REPORT_FILE = "report.html"
CHECKPOINTS_FOLDER = "checkpoints"
DATA_FOLDER = "data"


def checkpoint_folder(run: Path, name: str) -> Path:
    """The folder of a checkpoint with this name."""
    return run / CHECKPOINTS_FOLDER / name


def flat_options(config: Mapping[str, Any], section: str = "") -> dict[str, Any]:
    """Nested options by their names on the command line: ``{"grpo": {"beta": 0.0}}`` gives ``{"grpo.beta": 0.0}``.

    Args:
        config: nested options.
        section: prefix of the names, for example ``"grpo."``.
    """
    options: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            options |= flat_options(value, f"{section}{name}.")
        else:
            options[section + name] = value
    return options
