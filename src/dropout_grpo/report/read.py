"""Reads a run folder. An absent file leaves its field empty; a broken one raises UserError with its place."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from dropout_grpo.errors import UserError

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run folder holds."""

    name: str  # the folder's own name
    provenance: Record  # config.json: command, config, versions, commit
    metrics: list[Record]  # metrics.jsonl: every record has a `part` and an integer `step`
    results: Record  # results.json
    measures: Record  # metrics.json of an evaluation: all measures with intervals
    flips: list[Record]  # flips.jsonl: problems whose plain answer changed between right and wrong


def read_run(folder: Path) -> Run:
    """Load a run folder; UserError if there is none or if one of its files is malformed."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that a run wrote, such as runs/demo")
    metrics_path = folder / "metrics.jsonl"
    metrics = _read_lines(metrics_path)
    for i, record in enumerate(metrics, start=1):
        _check_metrics_record(record, f"{metrics_path}, record {i}")
    return Run(
        name=folder.resolve().name,
        provenance=_read_object(folder / "config.json"),
        metrics=metrics,
        results=_read_object(folder / "results.json"),
        measures=_read_object(folder / "metrics.json"),
        flips=_read_lines(folder / "flips.jsonl"),
    )


def number(record: Record, key: str, place: str) -> float | None:
    """`record[key]` as a float; None if absent, null or not finite. `place` names the record in errors."""
    value = record.get(key)
    if value is None:
        return None
    if not _is_number(value):
        raise UserError(f"{place}: {key!r} is {value!r}, but must be a number")
    return float(value) if isfinite(value) else None


def interval(record: Record, key: str, place: str) -> tuple[float, float] | None:
    """`record[key]` as (lo, hi); None where it is absent or null."""
    value = record.get(key)
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))):
        raise UserError(f"{place}: {key!r} is {value!r}, but must be a pair of numbers [lo, hi]")
    return float(value[0]), float(value[1])


def mapping(record: Record, key: str, place: str) -> Record:
    """`record[key]` as an object; empty where it is absent or null."""
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{place}: {key!r} is {value!r}, but must be an object")
    return value


def objects(record: Record, key: str, place: str) -> list[Record]:
    """`record[key]` as a list of objects; empty where it is absent or null."""
    value = record.get(key)
    if value is None:
        return []
    if not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise UserError(f"{place}: {key!r} is {value!r}, but must be a list of objects")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_metrics_record(record: Record, place: str) -> None:
    part, step = record.get("part"), record.get("step")
    if not isinstance(part, str):
        raise UserError(f"{place}: 'part' is {part!r}, but must name a part of the run, such as 'sft'")
    if isinstance(step, bool) or not isinstance(step, int):
        raise UserError(f"{place}: 'step' is {step!r}, but must be a whole number")


def _read_object(path: Path) -> Record:
    return _parse_object(_read_text(path), str(path)) if path.exists() else {}


def _read_lines(path: Path) -> list[Record]:
    """Records of a JSON-lines file in order; blank lines are skipped."""
    lines = _read_text(path).split("\n") if path.exists() else []
    return [_parse_object(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1) if line.strip()]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): it is damaged; restore it") from error


def _parse_object(text: str, place: str) -> Record:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{place} is not JSON ({error.msg} at column {error.colno}): {text[:60]!r}. "
            "A run that was stopped while it wrote can leave half a line: delete what is broken"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{place} is {text[:60]!r}, but must be a JSON object")
    return value
