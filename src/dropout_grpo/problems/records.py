"""Records to problems: which columns are read, and what each must hold."""

import json
import math
from collections.abc import Mapping
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.problems.columns import Columns
from dropout_grpo.problems.gsm8k import split_marks
from dropout_grpo.problems.problem import Problem

FIELDS = ("question", "steps", "answer")


def problem_of(record: Any, index: int, where: str, columns: Columns, *, require_steps: bool) -> Problem:
    """One problem of a record in Coconut's layout.

    Columns that are not read become ``Problem.extra``, except one with the name of a field that another column is read
    as: ``columns.answer`` says which column is the answer.

    Args:
        record: what the file or dataset holds.
        index: the problem's id.
        where: the record's place, for messages.
        columns: which columns to read.
        require_steps: whether the record must have steps; a list without entries is one.

    Raises:
        UserError: the record is no object, or a field is missing or malformed.
    """
    if not isinstance(record, dict):
        raise UserError(
            f'{where}: expected an object {{"{columns.question}": ..., "{columns.answer}": ...}}, found {kind(record)}'
        )
    question = field_of(record, "question", where, columns)
    if not isinstance(question, str) or not question.strip():
        raise UserError(
            f"{where}: field {columns.question!r} must be a string that is not empty, found {kind(question)}"
        )
    answer = _answer(field_of(record, "answer", where, columns), where, columns)  # before the steps, which may be in it
    read = {columns.question, columns.steps, columns.answer, *FIELDS}
    return Problem(
        id=index,
        question=question,
        steps=_steps(record, where, columns, required=require_steps),
        answer=answer,
        extra={name: value for name, value in record.items() if name not in read},
    )


def field_of(record: Mapping[str, Any], field: str, where: str, columns: Columns) -> Any:
    """The value of a problem's field; UserError where the record lacks its column."""
    name = getattr(columns, field)
    if name not in record:
        found = ", ".join(repr(key) for key in record) or "none"
        raise UserError(
            f"{where}: field {name!r} is missing (fields found: {found}); "
            f"name the right one with data.columns.{field}, or add it"
        )
    return record[name]


def kind(value: Any) -> str:
    """A JSON value in the words of a message: its type and, where short, its text."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    name = names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
    shown = json.dumps(value, default=str)
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
                f"{where}: field {name!r} must be a list of strings, or calculator marks <<..>> alone, "
                f"found {kind(steps)}"
            )
        return tuple(marks)
    if not isinstance(steps, list):
        raise UserError(f"{where}: field {name!r} must be a list of strings, found {kind(steps)}")
    if steps == [""]:  # how Coconut's own GSM8K-Aug files write that there are none
        return ()
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, str) or not step.strip():
            raise UserError(
                f"{where}: field {name!r}, step {number} must be a string, not an empty one, found {kind(step)}"
            )
    return tuple(steps)


def _answer(value: Any, where: str, columns: Columns) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return repr(value).removesuffix(".0")
    raise UserError(
        f"{where}: field {columns.answer!r} must be a string that is not empty, or a number, found {kind(value)}"
    )
