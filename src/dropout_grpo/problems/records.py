"""From a record to a problem: which columns are read, and which values each may have."""

import json
import math
import reprlib
from collections.abc import Mapping
from typing import Any

from dropout_grpo.errors import UserError, at_place
from dropout_grpo.problems.columns import Columns
from dropout_grpo.problems.gsm8k import split_marks
from dropout_grpo.problems.problem import Problem

FIELDS = ("question", "steps", "answer")


def problem_of(record: Any, index: int, where: str, columns: Columns, *, require_steps: bool) -> Problem:
    """Make a problem from a record in Coconut's layout.

    Columns that are not read become ``Problem.extra``, except for a column named like a field that is read from
    another column: with ``columns.answer`` "gold", a column "answer" is left out.

    Args:
        record: one record of the file or dataset.
        index: the problem's id.
        where: the record's place, for messages.
        columns: which columns to read.
        require_steps: whether the record must have a column of steps; its list may be empty.

    Raises:
        UserError: the record is not an object, or a field is missing or malformed.
    """
    if not isinstance(record, dict):
        raise UserError(
            f'{where}: expected an object {{"{columns.question}": ..., "{columns.answer}": ...}}, '
            f"found {described(record)}"
        )
    question = field_of(record, "question", where, columns)
    if not isinstance(question, str) or not question.strip():
        raise UserError(
            f"{where}: field {columns.question!r} must be a string that is not empty, found {described(question)}"
        )
    # Before the steps, which GSM8K's answers contain: a missing answer is the clearer message.
    answer = _answer(field_of(record, "answer", where, columns), where, columns)
    read = {columns.question, columns.steps, columns.answer, *FIELDS}
    steps = _steps(record, where, columns, required=require_steps)
    extra = {name: value for name, value in record.items() if name not in read}
    with at_place(where):
        return Problem(id=index, question=question, steps=steps, answer=answer, extra=extra)


def field_of(record: Mapping[str, Any], field: str, where: str, columns: Columns) -> Any:
    """The value of a problem's field. Raises UserError if the record lacks its column."""
    name = getattr(columns, field)
    if name not in record:
        found = ", ".join(repr(key) for key in record) or "none"
        raise UserError(
            f"{where}: field {name!r} is missing (fields found: {found}); "
            f"name the right one with data.columns.{field}, or add it"
        )
    return record[name]


def without_empty_steps(record: dict[str, Any], columns: Columns) -> tuple[dict[str, Any], int]:
    """Drop steps without text. A double space in a GSM8K-Aug line leaves one in Coconut's JSON of it.

    Returns:
        The record and the number of steps dropped. ``[""]``, as Coconut writes a chain without steps, counts as 0.
    """
    steps = record.get(columns.steps)
    if not isinstance(steps, list):
        return record, 0
    kept = [step for step in steps if not isinstance(step, str) or step.strip()]
    return {**record, columns.steps: kept}, 0 if steps == [""] else len(steps) - len(kept)


def described(value: Any) -> str:
    """A JSON value as messages name it: its type and, if short, its text."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    name = names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
    shown = reprlib.repr(value) if isinstance(value, dict | list) else json.dumps(value, default=str)
    return name if value is None or len(shown) > 40 else f"{name}: {shown}"


def _steps(record: Mapping[str, Any], where: str, columns: Columns, *, required: bool) -> tuple[str, ...]:
    name = columns.steps
    if not required and record.get(name) is None:
        return ()
    steps = field_of(record, "steps", where, columns)
    if isinstance(steps, str):  # GSM8K-Aug in some datasets
        marks, rest = split_marks(steps)
        if rest:
            raise UserError(
                f"{where}: field {name!r} must be a list of strings, or a text of calculator marks <<..>>, "
                f"found {described(steps)}"
            )
        return tuple(marks)
    if not isinstance(steps, list):
        raise UserError(f"{where}: field {name!r} must be a list of strings, found {described(steps)}")
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, str):
            raise UserError(f"{where}: field {name!r}, step {number} must be a string, found {described(step)}")
    return tuple(steps)


def _answer(value: Any, where: str, columns: Columns) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value).removesuffix(".0")
    raise UserError(
        f"{where}: field {columns.answer!r} must be a string that is not empty, or a number, found {described(value)}"
    )
