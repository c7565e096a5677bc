"""The formats of problems: Coconut's columns, GSM8K as published, GSM8K-Aug and ProntoQA.

Each is brought into a record with Coconut's fields, a question, a list of steps and a bare answer.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dropout_grpo.errors import UserError

_MARK = re.compile(r"<<[^<>]*>>")
_ANSWER = "####"
_AUG_ANSWER = "##"  # what Coconut's preprocessing splits a line at, so that "####" and "##" both work
TEST_EXAMPLE = "test_example"
"""The key of the problem in each example of the published files. The other keys hold examples for a prompt."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns that are read. The defaults are Coconut's.

    Args:
        question: the column of the question.
        steps: the column of the steps: a list of texts per problem, or one text of calculator marks <<..>>.
        answer: the column of the answer.
    """

    question: str = "question"
    steps: str = "steps"
    answer: str = "answer"

    def __post_init__(self) -> None:
        names = [self.question, self.steps, self.answer]
        if len(set(names)) < len(names) or not all(names):
            raise UserError(f"data.columns: question, steps and answer are {names}; name three different columns")


COCONUT_COLUMNS = Columns()


def split_marks(text: str) -> tuple[list[str], str]:
    """The calculator marks ``<<48/2=24>>`` of a text, and the rest of the text, stripped."""
    return _MARK.findall(text), _MARK.sub("", text).strip()


def is_gsm8k(record: Mapping[str, Any], columns: Columns) -> bool:
    """Whether a record is GSM8K's own: no steps, and an answer that is a text with ``####`` in it."""
    answer = record.get(columns.answer)
    return record.get(columns.steps) is None and isinstance(answer, str) and _ANSWER in answer


def from_gsm8k(record: Mapping[str, Any], where: str, columns: Columns) -> dict[str, Any]:
    """Split a worked solution into steps and answer (Cobbe et al. 2021, arXiv 2110.14168).

    Its calculator marks become the steps. The text after ``####`` becomes the answer, without the commas of ``1,080``.
    A solution without marks gives a record without steps; 95 of the 7,473 training problems are such.

    Raises:
        UserError: there is no ``####`` with an answer after it.
    """
    text = record.get(columns.answer)
    solution, marker, answer = text.rpartition(_ANSWER) if isinstance(text, str) else ("", "", "")
    if not marker or not answer.strip():
        raise UserError(
            f"{where}: field {columns.answer!r} has no '#### <answer>' at its end, as other records have; "
            "expected GSM8K as published, or steps and a bare answer"
        )
    answer = answer.strip().replace(",", "")
    return {**record, columns.steps: split_marks(solution)[0], columns.answer: answer}


def from_gsm8k_aug(line: str, where: str, columns: Columns) -> dict[str, Any]:
    """Read a line ``question||<<..>> <<..>> #### answer`` (GSM8K-Aug, Deng et al. 2023, arXiv 2311.01460).

    Question and answer are those of Coconut's JSON of the same line: the answer keeps the comma of ``1,080``.

    Raises:
        UserError: the line has another form.
    """
    question, bars, rest = line.partition("||")
    chain, marker, answer = rest.rpartition(_AUG_ANSWER)
    steps, other = split_marks(chain.rstrip("# "))
    if not (bars and marker and question.strip() and answer.strip()) or other:
        raise UserError(
            f"{where}: expected 'question||<<..>> <<..>> #### answer', found {line[:80]!r}; {_fault(line, other)}"
        )
    return {columns.question: question, columns.steps: steps, columns.answer: answer.strip()}


def _fault(line: str, other: str) -> str:
    question, bars, rest = line.partition("||")
    if not bars:
        return "there is no '||' after the question"
    if not question.strip():
        return "the question is empty"
    if not rest.rpartition(_AUG_ANSWER)[2].strip() or _AUG_ANSWER not in rest:
        return "there is no '#### <answer>' at the end"
    return (
        f"the steps hold words besides calculator marks: {other[:40]!r}; write each step as <<..>>, or put the problem "
        "into a .json file with a list of steps"
    )


def is_prontoqa(record: Mapping[str, Any]) -> bool:
    """Whether a record is an example of ProntoQA (Saparov and He 2023, arXiv 2210.01240)."""
    return "query" in record and "chain_of_thought" in record


def from_prontoqa(record: Mapping[str, Any], where: str, columns: Columns) -> dict[str, Any]:
    """Coconut's record of an example: the query is appended to the question, and a step is two sentences of the chain.

    In ``Sally is a vumpus. | Every vumpus is a lorpus. | Sally is a lorpus. | ...`` the first step is a fact with the
    rule that applies to it. With an odd number of sentences, the last one is a step by itself. The answer is ``True``
    or ``False``.

    Raises:
        UserError: a field is missing or malformed.
    """
    for name in ("question", "query", "answer"):
        value = record.get(name)
        if not isinstance(value, str) or not value.strip():
            raise UserError(
                f"{where}: field {name!r} must be a string that is not empty, as in ProntoQA's question, query, "
                f"chain_of_thought and answer (fields found: {', '.join(map(repr, record))})"
            )
    chain = record.get("chain_of_thought")
    if not isinstance(chain, list) or not all(isinstance(sentence, str) and sentence.strip() for sentence in chain):
        raise UserError(f"{where}: field 'chain_of_thought' must be a list of sentences")
    return {
        columns.question: f"{record['question']} {record['query']}",
        columns.steps: [" ".join(chain[i : i + 2]) for i in range(0, len(chain), 2)],
        columns.answer: record["answer"],
    }
