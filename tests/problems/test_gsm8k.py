"""GSM8K's two published forms, on made-up lines."""

import json
from pathlib import Path

import pytest

from dropout_grpo.errors import UserError
from dropout_grpo.problems.columns import Columns
from dropout_grpo.problems.files import load_problems, save_problems
from dropout_grpo.problems.problem import Problem

RECORDS = [
    {
        "question": "A pen costs $0.50. What do 3 dozen cost?",
        "answer": "There are 3*12 = <<3*12=36>>36 pens.\nThat is $<<36*0.50=18>>18.\n#### 18",
    },
    {"question": "A city has 1,080 people. How many people?", "answer": "As said.\n#### 1,080"},
    {"question": "What is 2 - 5?", "answer": "2 - 5 = <<2-5=-3>>-3\n#### -3"},
]
PROBLEMS = [
    Problem(
        id=0,
        question="A pen costs $0.50. What do 3 dozen cost?",
        steps=("<<3*12=36>>", "<<36*0.50=18>>"),
        answer="18",
    ),
    Problem(id=1, question="A city has 1,080 people. How many people?", steps=(), answer="1080"),
    Problem(id=2, question="What is 2 - 5?", steps=("<<2-5=-3>>",), answer="-3"),
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_gsm8k_as_published(tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", "\n".join(json.dumps(record) for record in RECORDS) + "\n")
    assert load_problems(path) == PROBLEMS


def test_it_becomes_coconuts_format(tmp_path: Path) -> None:
    save_problems(tmp_path / "train.json", PROBLEMS)
    assert load_problems(tmp_path / "train.json") == PROBLEMS


@pytest.mark.parametrize("answer", ["18", "#### 18 is it ####", "####"])
def test_a_file_of_another_kind(tmp_path: Path, answer: str) -> None:
    record = {"question": "q", "answer": answer}
    path = write(tmp_path / "train.jsonl", "\n".join([json.dumps(RECORDS[0]), json.dumps(record)]))
    with pytest.raises(UserError, match=r"train.jsonl, record 2 \(line 2\): field 'answer' has no '#### <answer>'"):
        load_problems(path)


def test_other_columns_are_kept_and_their_names_may_differ(tmp_path: Path) -> None:
    record = {"problem": "q", "solution": "1 + 1 = <<1+1=2>>2\n#### 2", "level": 3}
    path = write(tmp_path / "train.json", json.dumps([record]))
    expected = [Problem(id=0, question="q", steps=("<<1+1=2>>",), answer="2", extra={"level": 3})]
    assert load_problems(path, columns=Columns(question="problem", answer="solution")) == expected


def test_a_record_with_steps_is_coconuts(tmp_path: Path) -> None:
    record = {"question": "q", "steps": ["<<1+1=2>>"], "answer": "so #### 2"}
    path = write(tmp_path / "train.json", json.dumps([record]))
    assert load_problems(path)[0].answer == "so #### 2"


def test_gsm8k_aug(tmp_path: Path) -> None:
    lines = [
        "A pen costs $0.50. What do 3 dozen cost?||<<3*12=36>> <<36*0.50=18>> #### 18",
        "",
        "A city has 1,080 people. How many people?|| #### 1,080",
        "What is 2 - 5?||<<2-5=-3>> #### -3",
    ]
    path = write(tmp_path / "train.txt", "\n".join(lines) + "\n")
    assert load_problems(path) == PROBLEMS
    assert load_problems(path, columns=Columns(question="prompt")) == PROBLEMS, "its columns have no names"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("A question|<<1+1=2>> #### 2", "no '||'"),
        ("A question||<<1+1=2>> 2", "no '#### <answer>'"),
        ("A question||<<1+1=2>> ####", "no '#### <answer>'"),
        ("||<<1+1=2>> #### 2", "the question is empty"),
        ("A question||First, 1 + 1 = <<1+1=2>> #### 2", "words besides calculator marks: 'First, 1 + 1 ='"),
        ("A question||<<1+1=2> #### 2", "words besides calculator marks"),
    ],
)
def test_a_line_of_another_form(tmp_path: Path, line: str, fault: str) -> None:
    path = write(tmp_path / "train.txt", "q||<<1+1=2>> #### 2\n\n" + line)
    with pytest.raises(UserError, match=r"train.txt, line 3: expected 'question\|\|") as caught:
        load_problems(path)
    assert repr(line) in str(caught.value)
    assert fault in str(caught.value)


def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_problems(tmp_path / "none.txt")
    with pytest.raises(UserError, match="no problems"):
        load_problems(write(tmp_path / "empty.txt", "\n"))
