"""GSM8K as published, and GSM8K-Aug: from their records and lines to a record with steps and a bare answer."""

import re
from collections.abc import Mapping
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.problems.columns import Columns

_MARK = re.compile(r"<<[^<>]*>>")
_ANSWER = "####"


def split_marks(text: str) -> tuple[list[str], str]:
    """The calculator marks ``<<48/2=24>>`` of a text, and what else it holds, without white space around it."""
    return _MARK.findall(text), _MARK.sub("", text).strip()


def is_gsm8k(record: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a record is GSM8K's own: no column of steps, and an answer with ``####`` in it."""
    return columns.steps not in record and _ANSWER in str(record.get(columns.answer))


def from_gsm8k(record: Mapping[str, Any], where: str, columns: Columns) -> dict[str, Any]:
    """Take the worked solution apart (Cobbe et al. 2021, arXiv 2110.14168).

    Its calculator marks become the steps; what follows ``####`` is the answer, without the commas of ``1,080``. A
    solution without marks gives a record without steps; 95 of the 7,473 training problems are such.

    Raises:
        UserError: there is no ``####`` with an answer after it.
    """
    solution, marker, answer = str(record.get(columns.answer)).rpartition(_ANSWER)
    if not marker or not answer.strip():
        raise UserError(
            f"{where}: field {columns.answer!r} has no '#### <answer>' at its end, as the first record's has; "
            "expected GSM8K as published"
        )
    return {**record, columns.steps: split_marks(solution)[0], columns.answer: _plain(answer)}


def from_gsm8k_aug(line: str, where: str, columns: Columns) -> dict[str, Any]:
    """Read a line ``question||<<..>> <<..>> #### answer`` (GSM8K-Aug, Deng et al. 2023, arXiv 2311.01460).

    Raises:
        UserError: the line has another form.
    """
    question, bars, rest = line.partition("||")
    chain, marker, answer = rest.rpartition(_ANSWER)
    steps, other = split_marks(chain)
    if not (bars and marker and question.strip() and answer.strip()) or other:
        raise UserError(
            f"{where}: expected 'question||<<..>> <<..>> #### answer', found {line[:80]!r}; {_fault(line, other)}"
        )
    return {columns.question: question.strip(), columns.steps: steps, columns.answer: _plain(answer)}


def _fault(line: str, other: str) -> str:
    question, bars, rest = line.partition("||")
    if not bars:
        return "there is no '||' after the question"
    if not question.strip():
        return "the question is empty"
    if not rest.rpartition(_ANSWER)[2].strip() or _ANSWER not in rest:
        return "there is no '#### <answer>' at the end"
    return f"the steps hold words besides calculator marks: {other[:40]!r}"


def _plain(answer: str) -> str:
    return answer.strip().replace(",", "")
