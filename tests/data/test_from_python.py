"""Datasets given in Python, in all accepted forms, become problems; files with the same rows give the same ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.data.formats import Columns
from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.records import as_problems
from dropout_grpo.errors import UserError

ROWS = [{"question": "2 + 3 ?", "answer": "5", "level": 1}, {"question": "4 + 5 ?", "answer": 9, "level": 2}]
EXPECTED = [
    Problem(id=0, question="2 + 3 ?", steps=(), answer="5", extra={"level": 1}),
    Problem(id=1, question="4 + 5 ?", steps=(), answer="9", extra={"level": 2}),
]


def with_columns(rows: list[dict[str, Any]]) -> list[Problem]:
    """``EXPECTED`` with the columns of the rows as they came."""
    return [replace(problem, extra=row) for problem, row in zip(EXPECTED, rows, strict=True)]


def test_dicts_and_datasets_give_the_same_problems() -> None:
    assert as_problems(ROWS, "train_dataset") == EXPECTED
    with_text = [{**row, "answer": str(row["answer"])} for row in ROWS]
    assert as_problems(datasets.Dataset.from_list(with_text), "train_dataset") == EXPECTED


@pytest.mark.parametrize(("value", "text"), [(np.float64(18), "18"), (np.float64(0.5), "0.5"), (np.int64(7), "7")])
def test_numbers_of_numpy_are_numbers(value: Any, text: str) -> None:
    """Fault: the right answer was the text ``np.float64(18.0)``."""
    (problem,) = as_problems([{"question": "2 + 3 ?", "answer": value}], "train_dataset")
    assert problem.answer == text


def test_problems_stay_as_they_are() -> None:
    problems = [Problem(id=7, question="a", steps=("b",), answer="c")]
    assert as_problems(problems, "train_dataset") == problems


def test_names_of_trl_and_of_ones_own_are_read() -> None:
    theirs = [{"prompt": row["question"], "solution": row["answer"], "level": row["level"]} for row in ROWS]
    assert as_problems(theirs, "train_dataset") == with_columns(theirs)
    own = [{"q": row["question"], "a": row["answer"], "level": row["level"]} for row in ROWS]
    assert as_problems(own, "train_dataset", Columns(question="q", answer="a")) == with_columns(own)


def test_a_column_that_the_user_names_has_no_stand_in() -> None:
    """Fault: a prompt or a solution was read in the place of a mistyped column."""
    row = {"problem": "2 + 3 ?", "final": "5", "prompt": "another", "solution": "x = 7"}
    with pytest.raises(UserError, match="field 'problm' is missing"):
        as_problems([row], "train_dataset", Columns(question="problm", answer="final"))
    with pytest.raises(UserError, match="field 'finl' is missing"):
        as_problems([row], "train_dataset", Columns(question="problem", answer="finl"))
    (problem,) = as_problems([row], "train_dataset", Columns(question="problem", answer="final"))
    assert (problem.question, problem.answer) == ("2 + 3 ?", "5")


def test_problems_need_no_answers_where_none_are_required() -> None:
    """Fault: they were refused, and the same rows as dicts were not."""
    problems = [Problem(id=0, question="Name 3 things that float.", steps=(), answer="")]
    assert as_problems(problems, "train_dataset", require_answers=False) == problems
    with pytest.raises(UserError, match="no completion can match the answer ''"):
        as_problems(problems, "train_dataset")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "eval_dataset is empty"),
        ("problems.json", "load_problems"),
        ({"train": ROWS}, "one split"),
        (5, "eval_dataset is a number: 5"),
        ([*ROWS, {"question": "no answer"}], "eval_dataset, row 2: field 'answer' is missing"),
        (
            [{"prompt": "2 + 3 ?"}],
            r"row 0: field 'answer' is missing \(fields found: 'prompt'\); rename the right one \(.* rename_column\)",
        ),
        ([*ROWS, "text"], "eval_dataset, row 2: expected an object"),
        ([{"prompt": [], "answer": "5"}], "row 0: field 'question' is a conversation that must end before"),
        ([{"prompt": [{"role": "assistant", "content": "5"}], "answer": "5"}], "must end before the assistant's turn"),
        (
            [{"prompt": [{"role": "user", "content": ["2"]}], "answer": "5"}],
            "message 1 must be an object with the text",
        ),
        ([{"prompt": ["2 + 3 ?"], "answer": "5"}], 'message 1 must be an object .* found a string: "2'),
    ],
)
def test_what_is_not_a_dataset_is_refused_by_name(dataset: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_problems(dataset, "eval_dataset")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def from_file(rows: list[dict[str, Any]], folder: Path) -> list[Problem]:
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return load_problems(folder / "rows.json", require_steps=False)


def from_folder_of_parquet(rows: list[dict[str, Any]], folder: Path) -> list[Problem]:
    (folder / "parquet").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(folder / "parquet" / "train.parquet")
    return load_problems(f"hf:{folder / 'parquet'}", require_steps=False)


def from_dicts(rows: list[dict[str, Any]], folder: Path) -> list[Problem]:
    return list(as_problems(rows, "train_dataset"))


def from_dataset(rows: list[dict[str, Any]], folder: Path) -> list[Problem]:
    return list(as_problems(datasets.Dataset.from_list(rows), "train_dataset"))


every_route = pytest.mark.parametrize("route", [from_file, from_folder_of_parquet, from_dicts, from_dataset])

SOLUTION = "She has 3+4 = <<3+4=7>>7 pens.\nAnd <<7*200=1400>>1,400 sheets.\n#### 1,400"
WORKED = Problem(id=0, question="How many?", steps=("<<3+4=7>>", "<<7*200=1400>>"), answer="1400")


@every_route
@pytest.mark.parametrize(
    "row",
    [
        {"question": "How many?", "answer": SOLUTION},
        {"question": "How many?", "answer": SOLUTION, "steps": None},
        {"prompt": "How many?", "solution": SOLUTION},
        {"prompt": "How many?", "question": "This was mapped to the prompt.", "answer": SOLUTION},
    ],
)
def test_every_route_splits_gsm8ks_solutions(route: Any, row: dict[str, Any], tmp_path: Path) -> None:
    came = {name: value for name, value in row.items() if name in ("prompt", "solution")}
    assert route([row], tmp_path) == [replace(WORKED, extra=came)]


@every_route
def test_a_conversation_is_the_prompt_and_its_last_turn_the_question(route: Any, tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3 ?"}]
    (problem,) = route([{"prompt": turns, "solution": "so #### 5", "hint": "add"}], tmp_path)
    assert problem.prompt == turns
    assert (problem.question, problem.answer) == ("2 + 3 ?", "5")
    assert problem.extra == {"prompt": turns, "solution": "so #### 5", "hint": "add"}
    save_problems(tmp_path / "saved.json", [replace(problem, extra={})])
    (saved,) = load_problems(tmp_path / "saved.json", require_steps=False)
    assert saved.prompt == turns


@every_route
def test_gsm8ks_solutions_are_split_where_an_earlier_record_has_steps(route: Any, tmp_path: Path) -> None:
    coconuts = {"question": "2 + 3 ?", "steps": ["<<2+3=5>>"], "answer": "5"}
    rows = [coconuts, {"question": "How many?", "steps": None, "answer": SOLUTION}]
    first, second = route(rows, tmp_path)
    assert (first.steps, first.answer) == (("<<2+3=5>>",), "5")
    assert (second.steps, second.answer) == (WORKED.steps, WORKED.answer)


@every_route
def test_a_record_without_an_answer_after_the_marker_is_named_wherever_it_stands(route: Any, tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "She has 7 pens."}, {"question": "How many?", "answer": SOLUTION}]
    with pytest.raises(UserError, match=r"(record 1|row 0): field 'answer' has no '#### <answer>' at its end, as othe"):
        route(rows, tmp_path)


@every_route
@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("She has 3 + 4 pens.\nThat is 7.", "it has several lines"),
        ("She has 7 pens. ### 7", "it holds '###'"),
        ("### 7", "it holds '###'"),
    ],
)
def test_an_answer_that_no_completion_can_match_is_refused_with_its_row(
    route: Any, answer: str, fault: str, tmp_path: Path
) -> None:
    rows = [{"question": "q", "answer": "5"}, {"question": "q", "answer": answer}]
    with pytest.raises(UserError, match=rf"(record 2|row 1): no completion can match the answer .*: {fault}"):
        route(rows, tmp_path)


@pytest.mark.parametrize("answer", ["", " ", "a\nb", "#### 7"])
def test_problems_and_mixtures_with_such_an_answer_are_refused_too(answer: str) -> None:
    bad = [Problem(id=0, question="q", steps=(), answer="1"), Problem(id=1, question="q", steps=(), answer=answer)]
    for dataset in (bad, Mixture([bad], [1])):
        with pytest.raises(UserError, match="train_dataset, row 1: no completion can match the answer"):
            as_problems(dataset, "train_dataset")


@every_route
def test_a_missing_value_is_none_on_every_route(route: Any, tmp_path: Path) -> None:
    rows = [
        {"question": "a", "answer": "1", "hint": "add", "level": 4},  # from_list takes the columns of the first row
        {"question": "b", "answer": "2", "hint": "add"},
        {"question": "c", "answer": "3", "level": 4},
    ]
    actual = [problem.extra for problem in route(rows, tmp_path)]
    assert actual == [{"hint": "add", "level": 4}, {"hint": "add", "level": None}, {"hint": None, "level": 4}]


def test_problems_with_other_columns_get_none_for_the_missing_ones() -> None:
    first = Problem(id=3, question="a", steps=(), answer="1")
    second = Problem(id=5, question="b", steps=(), answer="2", extra={"hint": "add"})
    problems = as_problems([first, second], "train_dataset")
    assert [(problem.id, problem.extra) for problem in problems] == [(3, {"hint": None}), (5, {"hint": "add"})]


def test_steps_of_python_may_be_a_tuple() -> None:
    (problem,) = as_problems([{"question": "q", "steps": ("a", "", "b"), "answer": "1"}], "train_dataset")
    assert problem.steps == ("a", "b")


def test_worked_solutions_are_no_answers_where_none_are_required() -> None:
    rows = [{"prompt": "q", "solution": "So 7."}, {"prompt": "r", "solution": "### Method\nHence $\\boxed{8}$."}]
    problems = as_problems(rows, "train_dataset", require_answers=False)
    assert [(problem.answer, problem.extra["solution"]) for problem in problems] == [("", r["solution"]) for r in rows]
    with pytest.raises(UserError, match="row 1: no completion can match the answer"):
        as_problems(rows, "eval_dataset")
    with pytest.raises(UserError, match="row 0: no completion can match the answer"):
        as_problems([{"prompt": "q", "answer": "a\nb"}], "train_dataset", require_answers=False)
    empty = {"prompt": "q", "solution": ""}
    assert [problem.answer for problem in as_problems([*rows, empty], "t", require_answers=False)] == ["", "", ""]
    for other in ({"prompt": "q", "answer": "7"}, {"prompt": "q", "solution": SOLUTION}):  # answers are to be read
        with pytest.raises(UserError, match=r"row [12]: "):
            as_problems([other, *rows], "train_dataset", require_answers=False)
    with pytest.raises(UserError, match="row 1: field 'answer' must be a string that is not empty"):
        as_problems([{"prompt": "q", "solution": "7"}, {"prompt": "q", "solution": ""}], "t", require_answers=False)
    (problem,) = as_problems([{"prompt": "q", "solution": SOLUTION}], "train_dataset", require_answers=False)
    assert problem.answer == WORKED.answer
