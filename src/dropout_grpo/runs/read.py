"""Reads a run folder. An absent file leaves its field empty; a damaged one raises UserError with its location."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from dropout_grpo.errors import UserError, reading
from dropout_grpo.runs.files import (
    CONFIG_FILE,
    FLIPS_FILE,
    MEASURES_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    SAMPLES_FILE,
    THOUGHTS_FILE,
)

JsonObject = Mapping[str, Any]

_LARGEST_STEP = 2**53  # the whole numbers that a float holds exactly
_DEEPEST = 100  # levels of JSON; a run's own files have fewer than ten

_SAMPLE_TYPES = {"file": str, "id": int, "question": str, "answer": str, "plain": str, "plain_correct": bool}


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run folder holds."""

    name: str  # name of the folder
    provenance: JsonObject  # config.json: command, config, versions, commit
    metrics: list[JsonObject]  # metrics.jsonl: every record has a `part` and an integer `step`
    results: JsonObject  # results.json
    measures: JsonObject  # measures.json of an evaluation: all measures with intervals
    flips: list[JsonObject]  # flips.jsonl: problems whose plain answer changed between right and wrong
    thoughts: list[JsonObject]  # thoughts.jsonl: the thoughts about some problems, read through the head


def read_run(folder: Path, *, whole_lines: bool = False) -> Run:
    """Load a run folder.

    Args:
        folder: the run folder.
        whole_lines: leave out a last line of metrics.jsonl that is not finished, as while the run goes on.

    Raises:
        UserError: there is no such folder, or one of its files is malformed.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder that a run wrote, such as runs/demo")
    return Run(
        name=folder.resolve().name,
        provenance=_read_object(folder / CONFIG_FILE),
        metrics=read_metrics(folder, whole_lines=whole_lines),
        results=read_results(folder),
        measures=read_measures(folder),
        flips=_read_lines(folder / FLIPS_FILE),
        thoughts=_read_lines(folder / THOUGHTS_FILE),
    )


def read_metrics(run: Path, *, whole_lines: bool = False) -> list[JsonObject]:
    """The lines of metrics.jsonl in order; empty without the file.

    Args:
        run: the run folder.
        whole_lines: leave out a last line without a newline, which a killed run had not finished.

    Raises:
        UserError: a line is malformed.
    """
    path = run / METRICS_FILE
    metrics = _read_lines(path, whole_lines=whole_lines)
    for i, record in enumerate(metrics, start=1):
        _check_metrics_record(record, f"{path}, record {i}")
    return metrics


def read_results(run: Path) -> JsonObject:
    """results.json; empty without the file."""
    return _read_object(run / RESULTS_FILE)


def read_measures(run: Path) -> JsonObject:
    """measures.json of an evaluation; empty without the file. Older versions called it metrics.json."""
    return _read_object(run / MEASURES_FILE) or _read_object(run / "metrics.json")


def read_config(run: Path) -> dict[str, Any]:
    """The content of config.json: ``command``, ``config``, ``digests`` and where the run comes from.

    Raises:
        UserError: the file is damaged.
    """
    with reading(run / CONFIG_FILE):
        record = json.loads((run / CONFIG_FILE).read_text(encoding="utf-8"))
        splits = dict(record.get("data") or {})  # of an older version, which has no digests
        digests = dict(record.get("digests") or {f"data.{split}": digest for split, digest in splits.items()})
        return {**record, "command": record["command"], "config": dict(record["config"]), "digests": digests}


def read_samples(run: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl; see ``evaluation/measures.py``.

    Raises:
        UserError: there is no such file, or a line is malformed.
    """
    path = run / SAMPLES_FILE
    if not path.exists():
        raise UserError(f"{run} holds no {SAMPLES_FILE}: give the folder of a `dropout-grpo eval` run.")
    lines = _read_text(path).split("\n")
    return [_sample(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line]


def number(record: JsonObject, key: str, where: str) -> float | None:
    """`record[key]` as a float; None if absent, null or not finite. `where` names the record in errors."""
    value = record.get(key)
    if value is None:
        return None
    if not _is_number(value):
        raise UserError(f"{where}: {key!r} is {value!r}, but must be a number")
    measure = _float(value, key, where)
    return measure if isfinite(measure) else None


def interval(record: JsonObject, key: str, where: str) -> tuple[float, float] | None:
    """`record[key]` as (lo, hi); None if it is absent or null."""
    value = record.get(key)
    if value is None:
        return None
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))):
        raise UserError(f"{where}: {key!r} is {value!r}, but must be a pair of numbers [lo, hi]")
    return _float(value[0], key, where), _float(value[1], key, where)


def mapping(record: JsonObject, key: str, where: str) -> JsonObject:
    """`record[key]` as an object; empty if it is absent or null."""
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: {key!r} is {value!r}, but must be an object")
    return value


def objects(record: JsonObject, key: str, where: str) -> list[JsonObject]:
    """`record[key]` as a list of objects; empty if it is absent or null."""
    value = record.get(key)
    if value is None:
        return []
    if not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise UserError(f"{where}: {key!r} is {value!r}, but must be a list of objects")
    return value


def _sample(line: str, where: str) -> dict[str, Any]:
    record = _parse_object(line, where)
    for name, kind in _SAMPLE_TYPES.items():
        if not isinstance(record.get(name), kind):
            raise UserError(f"{where}: {name!r} is not as `dropout-grpo eval` writes it; run the evaluation again.")
    return dict(record)


def _float(value: float, key: str, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(f"{where}: {key!r} has {len(str(value))} digits and cannot be a measured value") from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_metrics_record(record: JsonObject, where: str) -> None:
    part, step = record.get("part"), record.get("step")
    if not isinstance(part, str):
        raise UserError(f"{where}: 'part' is {part!r}, but must name a part of the run, such as 'sft'")
    if isinstance(step, bool) or not isinstance(step, int) or abs(step) > _LARGEST_STEP:
        raise UserError(f"{where}: 'step' is {step!r}, but must be a whole number")


def _read_object(path: Path) -> JsonObject:
    return _parse_object(_read_text(path), str(path)) if path.exists() else {}


def _read_lines(path: Path, *, whole_lines: bool = False) -> list[JsonObject]:
    """Records of a JSON-lines file in order; blank lines are skipped."""
    lines = _read_text(path, whole_lines=whole_lines).split("\n") if path.exists() else []
    return [_parse_object(line, f"{path}, line {i}") for i, line in enumerate(lines, start=1) if line.strip()]


def _read_text(path: Path, *, whole_lines: bool = False) -> str:
    with reading(path):
        content = path.read_bytes()
    try:
        return (content[: content.rfind(b"\n") + 1] if whole_lines else content).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): it is damaged; restore it") from error


def _parse_object(text: str, where: str) -> JsonObject:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not JSON ({error.msg} at column {error.colno}): {text[:60]!r}. "
            "A run that was killed while writing can leave an incomplete line: delete that line"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; too many brackets
        raise UserError(f"{where} is not readable as JSON ({error}): it is damaged; restore it") from error
    if r"\ud" in text.lower() and not _is_encodable(value):
        raise UserError(f"{where} has half of a character (a lone surrogate): it is damaged; restore it")
    if _is_deep(value):
        raise UserError(f"{where} has more than {_DEEPEST} levels of brackets: it is damaged; restore it")
    if not isinstance(value, dict):
        raise UserError(f"{where} is {text[:60]!r}, but must be a JSON object")
    return value


def _is_encodable(value: Any) -> bool:
    try:
        return bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def _is_deep(value: Any) -> bool:
    """Whether a JSON value has more than ``_DEEPEST`` levels."""
    level = [value]
    for _ in range(_DEEPEST):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return False
    return True
