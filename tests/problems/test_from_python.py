"""Datasets given in Python, in all accepted forms, become problems."""

from typing import Any

import datasets
import pytest

from dropout_grpo.errors import UserError
from dropout_grpo.problems.columns import Columns
from dropout_grpo.problems.from_python import as_problems
from dropout_grpo.problems.problem import Problem

ROWS = [{"question": "2 + 3 ?", "answer": "5", "level": 1}, {"question": "4 + 5 ?", "answer": 9, "level": 2}]
EXPECTED = [
    Problem(id=0, question="2 + 3 ?", steps=(), answer="5", extra={"level": 1}),
    Problem(id=1, question="4 + 5 ?", steps=(), answer="9", extra={"level": 2}),
]


def test_dicts_and_datasets_give_the_same_problems() -> None:
    assert as_problems(ROWS, "train_dataset") == EXPECTED
    with_text = [{**row, "answer": str(row["answer"])} for row in ROWS]
    assert as_problems(datasets.Dataset.from_list(with_text), "train_dataset") == EXPECTED


def test_problems_stay_as_they_are() -> None:
    given = [Problem(id=7, question="a", steps=("b",), answer="c")]
    assert as_problems(given, "train_dataset") == given


def test_names_of_trl_and_of_ones_own_are_read() -> None:
    theirs = [{"prompt": row["question"], "solution": row["answer"], "level": row["level"]} for row in ROWS]
    assert as_problems(theirs, "train_dataset") == EXPECTED
    own = [{"q": row["question"], "a": row["answer"], "level": row["level"]} for row in ROWS]
    assert as_problems(own, "train_dataset", Columns(question="q", answer="a")) == EXPECTED


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "eval_dataset is empty"),
        ("problems.json", "load_problems"),
        ({"train": ROWS}, "one split"),
        (5, "eval_dataset is a number: 5"),
        ([*ROWS, {"question": "no answer"}], "eval_dataset, row 2: field 'answer' is missing"),
        ([*ROWS, "text"], "eval_dataset, row 2: expected an object"),
        ([{"prompt": [{"role": "user", "content": "2 + 3 ?"}], "answer": "5"}], "row 0: field 'question' must be a s"),
    ],
)
def test_what_is_not_a_dataset_is_refused_by_name(dataset: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_problems(dataset, "eval_dataset")
