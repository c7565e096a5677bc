"""The files of a run folder: their names, and durable writes.

A file is replaced as a whole, and a power failure cannot undo the replacement.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from dropout_grpo.errors import RESUME, UserError, remedy

CONFIG_FILE = "config.json"
"""Command, options, versions and commit, written once when the run starts."""

METRICS_FILE = "metrics.jsonl"
"""One line for each logged step of each part of the run."""

RESULTS_FILE = "results.json"
"""The summary, written at the end."""

MEASURES_FILE = "measures.json"
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


def jsonable(value: Any) -> Any:
    """Convert dataclasses, tuples and paths to dicts, lists and strings, for JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Replace a file with indented JSON; see ``write_text``."""
    write_text(path, json.dumps(jsonable(value), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically, so that a reader never sees part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    if draft.is_symlink():  # never write to where a link points
        draft.unlink()
    try:
        draft.write_text(text, encoding="utf-8")
        sync(draft)
        draft.replace(path)
    except Exception:
        draft.unlink(missing_ok=True)  # a full disk gets its space back
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_RUST_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UserError if the system refuses a write inside the block.

    Args:
        path: the file or folder that is written, for the message.

    Raises:
        UserError: names the path, the reason and the remedy.
    """
    try:
        yield
    except Exception as error:  # safetensors and tokenizers raise their own types for failed writes
        number = error.errno if isinstance(error, OSError) else _rust_error(error)
        if number is None:
            raise
        raise UserError(
            f"cannot write {path}: {os.strerror(number)}. Remedy: {remedy(number)}; a run continues with {RESUME}."
        ) from error


def _rust_error(error: Exception) -> int | None:
    match = _RUST_ERROR.search(str(error))
    return int(match[1]) if match else None
