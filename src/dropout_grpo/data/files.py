"""Reads problems from files and datasets of every supported format, and writes Coconut's JSON.

The file's suffix says how it is parsed:

    .json   a list of records, or ProntoQA's object of examples
    .jsonl  one record per line
    .txt    GSM8K-Aug, one problem per line: question||<<..>> <<..>> #### answer
    hf:...  a Hugging Face dataset, see `hub.dataset_records`

What the columns of the records mean is decided in ``records``, for files, datasets and rows of Python alike.
"""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from dropout_grpo.data.formats import COCONUT_COLUMNS, TEST_EXAMPLE, Columns, from_gsm8k_aug
from dropout_grpo.data.hub import ANOTHER_FILE, HUB_PREFIX, SOURCE_FORM, dataset_records
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.records import FIELDS, describe, problems_of_records
from dropout_grpo.errors import UserError

_SUFFIXES = (".json", ".jsonl", ".txt")


def load_problems(
    source: str | Path,
    *,
    columns: Columns = COCONUT_COLUMNS,
    require_steps: bool = True,
    max_problems: int | None = None,
) -> list[Problem]:
    """Read all problems of a file or dataset. A problem's id is its index in it, from 0.

    Its records are read as `records.problems_of_records` says.

    Args:
        source: a path that ends in ``.json``, ``.jsonl`` or ``.txt``, or ``hf:NAME_OR_FOLDER[:CONFIG][@SPLIT]``.
        columns: what the records call question, steps and answer.
        require_steps: True for the curriculum: every record must have a column of steps, and some record must have a
            step. False for training on answers alone: steps may be missing.
        max_problems: number of problems to read at most, the first ones; all if None.

    Raises:
        UserError: the source cannot be read, holds no problem, or a record is malformed or has an answer that no
            completion can match. The message names the place.
    """
    if Path(source).suffix == ".txt":
        columns = COCONUT_COLUMNS  # its lines have no names
    records = islice(_records(source, columns), max_problems)
    return problems_of_records(records, str(source), columns, require_steps=require_steps)


def save_problems(path: str | Path, problems: Sequence[Problem]) -> None:
    """Write Coconut's JSON, one record per line. An existing file is replaced.

    Coconut takes the columns from the first record, so all problems must have the same extra columns.

    Raises:
        UserError: the name does not end in ``.json``, the columns differ or clash, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise UserError(f"{path}: problems are written as Coconut's JSON; end the name with .json")
    columns = problems[0].extra.keys() if problems else set()
    if clash := sorted(columns & set(FIELDS)):
        raise UserError(f"{path}: extra column {clash[0]!r} has the name of a field of problems; rename it")
    lines = []
    for number, problem in enumerate(problems, start=1):
        if problem.extra.keys() != columns:
            raise UserError(
                f"{path}, problem {number}: it has the extra columns {sorted(problem.extra)}, problem 1 "
                f"has {sorted(columns)}; give every problem the same columns (None where there is no value)"
            )
        record = {
            "question": problem.prompt,
            "steps": list(problem.steps),
            "answer": problem.answer,
            **problem.extra,
        }
        lines.append(json.dumps({name: _as_json(value) for name, value in record.items()}, default=str))
    try:
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; give another place") from error


def _as_json(value: Any) -> Any:
    """A column's value, null for numbers that JSON lacks. Other values that it lacks, such as dates, become text."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _records(source: str | Path, columns: Columns) -> Iterator[tuple[str, Any]]:
    """Yield (place for messages, record)."""
    if str(source).startswith(HUB_PREFIX):
        return dataset_records(str(source))
    path = Path(source)
    text = _read_text(path)
    if path.suffix == ".json":
        return _json_records(path, text)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if path.suffix == ".txt":
        return ((where := f"{path}, line {number}", from_gsm8k_aug(line, where, columns)) for number, line in lines)
    return (
        (f"{path}, record {record} (line {number})", _parse(line, path, first_line=number))
        for record, (number, line) in enumerate(lines, start=1)
    )


def _json_records(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    records = _parse(text, path, first_line=1) if text.strip() else []
    if isinstance(records, dict) and any(
        isinstance(value, dict) and TEST_EXAMPLE in value for value in records.values()
    ):
        for number, (name, value) in enumerate(records.items(), start=1):
            yield f"{path}, record {number} ({name})", value.get(TEST_EXAMPLE) if isinstance(value, dict) else value
    elif isinstance(records, list):
        for number, record in enumerate(records, start=1):
            yield f"{path}, record {number}", record
    else:
        raise UserError(f"{path}: expected a list of records, found {describe(records)}; put the records in [...]")


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give a file in it, or read it as a dataset with hf:{path}@SPLIT")
        if path.suffix not in _SUFFIXES:
            other = ANOTHER_FILE if path.is_file() else f"a Hugging Face dataset is written {SOURCE_FORM}"
            raise UserError(f"{path}: the name must end in {', '.join(_SUFFIXES)}, which says how it is read; {other}")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; check the path") from error
    except UserError:
        raise
    except ValueError as error:  # a NUL character in the path
        raise UserError(f"{str(path)!r}: cannot be read: {error}; check the path") from error


def _parse(text: str, path: Path, *, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno + first_line - 1}, column {error.colno}"
        remedy = (
            "a file with one record per line must be named .jsonl" if error.msg == "Extra data" else "correct the file"
        )
        raise UserError(f"{where}: not valid JSON: {error.msg}; {remedy}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, too many brackets
        raise UserError(f"{path}, line {first_line} or below: not readable as JSON: {error}") from error
