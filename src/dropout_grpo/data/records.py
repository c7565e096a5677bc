"""From records to problems: which columns are read, and which values each may have.

Files, Hugging Face datasets, dicts and problems made in Python all take this way, so that they are read alike. Records
are Coconut's (question, steps, answer), GSM8K's (question, answer with ``####``), ProntoQA's (question, query,
chain_of_thought, answer) or have TRL's names (prompt, solution).
"""

import json
import logging
import math
import numbers
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dropout_grpo.data.answers import MARKER, answers_match, extract_answer
from dropout_grpo.data.formats import (
    COCONUT_COLUMNS,
    Columns,
    from_gsm8k,
    from_prontoqa,
    is_gsm8k,
    is_prontoqa,
    split_marks,
)
from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Message, Problem, with_equal_columns
from dropout_grpo.errors import UserError, at_place

FIELDS = ("question", "steps", "answer")
PROMPT, SOLUTION = "prompt", "solution"
"""What TRL's datasets call question and answer."""
NO_STEPS_NEEDED = (
    "answers alone are enough for GRPO and evaluation (in Python: load_problems(..., require_steps=False))"
)
IN_FILES = (
    "name the right one with data.columns.{field}, which holds for all files (in Python: "
    "columns=Columns({field}=...)), or rename it in this one"
)
IN_ROWS = "rename the right one (datasets have rename_column), or add it"
"""What to do about a column that a file or a row lacks."""
_LOG = logging.getLogger(__name__)


class _MissingField(UserError):
    """A record lacks the column of the field that the message names."""


def problems_of_records(
    records: Iterable[tuple[str, Any]],
    source: str,
    columns: Columns,
    *,
    require_steps: bool,
    require_answers: bool = True,
    remedy: str = IN_FILES,
) -> list[Problem]:
    """The problems of a source's records. A problem's id is its index in it, from 0.

    If any record without steps has an answer with ``####``, all records without steps are GSM8K's: their answers are
    split into steps and answer. TRL's ``prompt`` is the question, also beside a column ``question``, and its
    ``solution`` the answer where there is no column ``answer``. Answers may be numbers; they become text (``18.0``
    becomes ``"18"``). Steps without text are dropped, and a warning says how many. A question may be a conversation, a
    list of ``{"role": ..., "content": ...}`` that ends before the assistant's turn. ``Problem.extra`` holds the other
    columns, and those that were read under another name than ours, as they came; its value is None if a record lacks a
    column that another record has.

    Args:
        records: each with its place, for messages. A record that is a ``Problem`` keeps its id and texts.
        source: name of the source, for messages.
        columns: which columns to read.
        require_steps: True for the curriculum: every record must have a column of steps, and some record must have a
            step. False for training on answers alone: steps may be missing.
        require_answers: False where no record has an answer that is to be read: they become the empty text.
        remedy: what to do about a missing column, for the message.

    Raises:
        UserError: there are no records, or one is malformed or has an answer that no completion can match. The message
            names the place.
    """
    originals = list(records)
    named = [(where, _with_our_names(record, columns)) for where, record in originals]
    if not named:
        raise UserError(f"{source}: no problems in it; expected at least one record with question and answer")
    dicts = [record for _, record in named if isinstance(record, dict)]
    prontoqa = any(map(is_prontoqa, dicts))
    gsm8k = require_answers and not prontoqa and any(is_gsm8k(record, columns) for record in dicts)
    problems = []
    empty_steps = 0
    for index, (where, record) in enumerate(named):
        if isinstance(record, dict):
            if prontoqa:
                record = from_prontoqa(record, where, columns)
            elif gsm8k and record.get(columns.steps) is None:
                record = from_gsm8k(record, where, columns)
            record, dropped = without_empty_steps(record, columns)
            empty_steps += dropped
        if not isinstance(record, Problem):
            original = originals[index][1]
            try:
                record = problem_of(
                    record,
                    index,
                    where,
                    columns,
                    require_steps=require_steps,
                    require_answers=require_answers,
                    original=original,
                )
            except _MissingField as missing:
                found = ", ".join(map(repr, original)) or "none"
                name, advice = getattr(columns, field := str(missing)), remedy.format(field=missing)
                unneeded = f"; {NO_STEPS_NEEDED}" if field == "steps" else ""
                raise UserError(
                    f"{where}: field {name!r} is missing (fields found: {found}); {advice}{unneeded}"
                ) from None
        if require_answers:
            _check_gold(record.answer, where, columns)
        problems.append(record)
    if require_steps and not any(problem.steps for problem in problems):
        raise UserError(
            f"{source}: {columns.steps!r} is empty in every record, so there is no chain of thought to learn from; "
            f"the curriculum needs problems with steps; {NO_STEPS_NEEDED}"
        )
    if empty_steps:
        _LOG.warning("%s: steps without text were dropped: %d", source, empty_steps)
    return with_equal_columns(problems)


def as_problems(
    dataset: Iterable[Any],
    name: str,
    columns: Columns = COCONUT_COLUMNS,
    *,
    require_steps: bool = False,
    require_answers: bool = True,
) -> Sequence[Problem]:
    """The problems of a dataset, read as ``problems_of_records`` says.

    Args:
        dataset: problems, dicts with the columns of a problem file, or a ``datasets.Dataset``. A ``Mixture`` stays one.
        name: name of the dataset, for messages, such as ``train_dataset``.
        columns: names of the columns.
        require_steps: as there.
        require_answers: whether rows must have answers. If not, all are empty text where no row has a column of
            answers, or where ``solution`` is the only one and holds worked solutions, which TRL's rewards read.

    Raises:
        UserError: the dataset is empty or not iterable, or a row is not a problem or has an answer that no completion
            can match; the message names the row.
    """
    if isinstance(dataset, Mixture):
        check_golds(dataset, name, columns)
        return dataset
    if isinstance(dataset, str | Mapping) or not isinstance(dataset, Iterable):
        raise UserError(
            f"{name} is {describe(dataset)}: give a list of problems or dicts, or a datasets.Dataset with one split. "
            "load_problems(FILE) reads a file."
        )
    rows = list(dataset)
    if not rows:
        raise UserError(f"{name} is empty.")
    answered = require_answers or any(_has_answer(row, columns) for row in rows)
    if not require_answers and _are_worked(rows, columns):
        _LOG.warning("%s: %r holds worked solutions, no bare answers: only your rewards read it", name, SOLUTION)
        answered = False
    return problems_of_records(
        ((f"{name}, row {i}", row) for i, row in enumerate(rows)),
        name,
        columns,
        require_steps=require_steps,
        require_answers=answered,
        remedy=IN_ROWS,
    )


def _has_answer(row: Any, columns: Columns) -> bool:
    if isinstance(row, Problem):
        return bool(row.answer)
    return not isinstance(row, Mapping) or columns.answer in row or SOLUTION in row


def _are_worked(rows: Sequence[Any], columns: Columns) -> bool:
    """Whether the only answers are a column ``solution`` with worked solutions, and not GSM8K's."""
    if any(not isinstance(row, Mapping) or columns.answer in row for row in rows):
        return False
    if any(is_gsm8k(_with_our_names(row, columns), columns) for row in rows):
        return False
    texts = [row[SOLUTION] for row in rows if isinstance(row.get(SOLUTION), str)]
    return any(MARKER in text or len(text.strip().splitlines()) > 1 for text in texts)


def as_sets(dataset: Iterable[Any] | Mapping[str, Iterable[Any]], name: str) -> dict[str, Sequence[Problem]]:
    """Validation problems by the name of their set; one set without a name if the dataset is not a dict of sets.

    Raises:
        UserError: see ``as_problems``; or there are no sets.
    """
    if isinstance(dataset, Mapping):
        if not dataset:
            raise UserError(f"{name} has no sets: leave it out, or give problems by name.")
        return {key: as_problems(one, f"{name}[{key!r}]") for key, one in dataset.items()}
    return {"": as_problems(dataset, name)}


def check_golds(problems: Sequence[Problem], source: str, columns: Columns) -> None:
    """Check that every problem's answer can be given.

    Raises:
        UserError: names the row of the first answer that no completion can match.
    """
    for row, problem in enumerate(problems):
        _check_gold(problem.answer, f"{source}, row {row}", columns)


def _check_gold(answer: str, where: str, columns: Columns) -> None:
    if len(answer.strip().splitlines()) > 1:
        fault = "it has several lines"
    elif MARKER in answer:
        fault = f"it holds {MARKER!r}, the marker before an answer"
    elif not answers_match(extract_answer(f"{MARKER} {answer}"), answer):
        fault = "it is empty"
    else:
        return
    raise UserError(
        f"{where}: no completion can match the answer {reprlib.repr(answer)}: {fault}. Put the bare answer, such as "
        f"'72', into field {columns.answer!r}, and a worked solution into {columns.steps!r} or another column"
    )


def _with_our_names(record: Any, columns: Columns) -> Any:
    """A mapping as a dict, with TRL's columns under our default names, not under names that the user has chosen.

    Anything else is returned as it is.
    """
    if not isinstance(record, Mapping):
        return record
    named = dict(record)
    if named.get(PROMPT) is not None and columns.question == COCONUT_COLUMNS.question:
        named[columns.question] = named[PROMPT]  # scripts for TRL map GSM8K's question to a prompt, and keep both
    if SOLUTION in named and columns.answer == COCONUT_COLUMNS.answer:
        named.setdefault(columns.answer, named[SOLUTION])
    return named


def problem_of(
    record: Any,
    index: int,
    where: str,
    columns: Columns,
    *,
    require_steps: bool,
    require_answers: bool = True,
    original: Mapping[str, Any],
) -> Problem:
    """Make a problem from a record in Coconut's layout.

    Columns with other names than the fields of problems become ``Problem.extra``. With ``columns.answer`` "gold", a
    column "gold" is among them and a column "answer" is left out.

    Args:
        record: one record of the file or dataset.
        index: the problem's id.
        where: the record's place, for messages.
        columns: which columns to read.
        require_steps: whether the record must have a column of steps; its list may be empty.
        require_answers: whether it must have an answer; if not, the answer is the empty text.
        original: the record before it was brought into this layout.

    Raises:
        UserError: the record is not an object, or a field is missing or malformed.
    """
    if not isinstance(record, dict):
        raise UserError(
            f'{where}: expected an object {{"{columns.question}": ..., "{columns.answer}": ...}}, '
            f"found {describe(record)}"
        )
    question = _field_of(record, "question", columns)
    messages = None
    if isinstance(question, list | tuple):
        messages = _messages(question, where, columns)
        question = messages[-1]["content"]
    if not isinstance(question, str) or not question.strip():
        raise UserError(
            f"{where}: field {columns.question!r} must be a string that is not empty, found {describe(question)}; "
            "give it one, or drop the record"
        )
    # Before the steps, which GSM8K's answers contain: a missing answer is the clearer message.
    answer = _answer(_field_of(record, "answer", columns), where, columns) if require_answers else ""
    read = (columns.question, columns.steps, columns.answer)
    steps = _steps(record, where, columns, required=require_steps)
    extra = {name: value for name, value in record.items() if name not in (*read, *FIELDS)}
    extra |= {name: original[name] for name in read if name in original and name not in FIELDS}
    with at_place(where):
        return Problem(id=index, question=question, steps=steps, answer=answer, extra=extra, messages=messages)


def _messages(turns: Sequence[Any], where: str, columns: Columns) -> tuple[Message, ...]:
    name = columns.question
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, Mapping) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise UserError(
                f"{where}: field {name!r}, message {number} must be an object with the texts role and content, "
                f"found {describe(turn)}"
            )
    if not turns or turns[-1]["role"] == "assistant":
        raise UserError(
            f"{where}: field {name!r} is a conversation that must end before the assistant's turn, such as "
            f'[{{"role": "user", "content": "..."}}], found {describe(list(turns))}'
        )
    return tuple(dict(turn) for turn in turns)


def _field_of(record: Mapping[str, Any], field: str, columns: Columns) -> Any:
    """The value of a problem's field. Raises _MissingField if the record lacks its column."""
    name = getattr(columns, field)
    if name not in record:
        raise _MissingField(field)
    return record[name]


def without_empty_steps(record: dict[str, Any], columns: Columns) -> tuple[dict[str, Any], int]:
    """Drop steps without text. A double space in a GSM8K-Aug line leaves one in Coconut's JSON of it.

    Returns:
        The record and the number of steps dropped. ``[""]``, as Coconut writes a chain without steps, counts as 0.
    """
    steps = record.get(columns.steps)
    if not isinstance(steps, list | tuple):
        return record, 0
    full = [step for step in steps if not isinstance(step, str) or step.strip()]
    return {**record, columns.steps: full}, 0 if list(steps) == [""] else len(steps) - len(full)


def describe(value: Any) -> str:
    """A JSON value as messages name it: its type and, if short, its text."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    name = names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
    shown = reprlib.repr(value) if isinstance(value, dict | list) else json.dumps(value, default=str)
    return name if value is None or len(shown) > 40 else f"{name}: {shown}"


def _steps(record: Mapping[str, Any], where: str, columns: Columns, *, required: bool) -> tuple[str, ...]:
    name = columns.steps
    if not required and record.get(name) is None:
        return ()
    steps = _field_of(record, "steps", columns)
    if isinstance(steps, str):  # GSM8K-Aug in some datasets
        marks, rest = split_marks(steps)
        if rest:
            raise UserError(
                f"{where}: field {name!r} must be a list of strings, or a text of calculator marks <<..>>, "
                f"found {describe(steps)}; split it into a list of steps"
            )
        return tuple(marks)
    if not isinstance(steps, list | tuple):
        raise UserError(f"{where}: field {name!r} must be a list of strings, found {describe(steps)}")
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, str):
            raise UserError(f"{where}: field {name!r}, step {number} must be a string, found {describe(step)}")
    return tuple(steps)


def _answer(value: Any, where: str, columns: Columns) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):  # NumPy's and pandas' too
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value)).removesuffix(".0")
    raise UserError(
        f"{where}: field {columns.answer!r} must be a string that is not empty, or a number, found {describe(value)}; "
        "give it one, or drop the record"
    )
