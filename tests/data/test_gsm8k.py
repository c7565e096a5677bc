"""The two published forms of GSM8K, on made-up lines."""

import json
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.data.files import load_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError

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


def coconuts_json(lines: list[str]) -> list[dict[str, Any]]:
    """What Coconut's preprocessing makes of the lines of a .txt file."""
    return [
        {
            "question": line.split("||")[0],
            "steps": line.split("||")[1].split("##")[0].strip().split(" "),
            "answer": line.split("##")[-1].strip(),
        }
        for line in lines
    ]


def test_both_routes_to_gsm8k_aug_give_the_same_problems(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Commas, a leading space, a double space in the chain, no steps, two signs before the answer, CRLF, a BOM."""
    lines = [
        "How many?||<<5*1000=5000>> #### 5,000",
        " A pen costs $2. And two?||<<2*2=4>>  <<4+0=4>> #### 4",
        "None?|| #### 0",
        "Eighteen?||<<9*2=18>> ## 18",
    ]
    text = write(tmp_path / "train.txt", "\ufeff" + "\r\n".join(lines) + "\r\n")
    json_file = write(tmp_path / "train.json", json.dumps(coconuts_json(lines)))
    problems = load_problems(text)
    assert [problem.answer for problem in problems] == ["5,000", "4", "0", "18"]
    assert [problem.steps for problem in problems] == [
        ("<<5*1000=5000>>",),
        ("<<2*2=4>>", "<<4+0=4>>"),
        (),
        ("<<9*2=18>>",),
    ]
    assert problems[1].question.startswith(" A")
    assert not caplog.messages
    assert load_problems(json_file) == problems
    assert caplog.messages == [f"{json_file}: steps without text were dropped: 1"]


@pytest.mark.parametrize("answer", [["#### 2"], {"text": "#### 2"}, [["####", 2]]])
def test_an_answer_that_is_not_a_text_is_not_gsm8ks(tmp_path: Path, answer: Any) -> None:
    path = write(tmp_path / "train.json", json.dumps([{"question": "q", "answer": answer}]))
    with pytest.raises(UserError, match=r"record 1: field 'answer' must be a string that is not empty, or a number"):
        load_problems(path, require_steps=False)
    path = write(tmp_path / "mixed.json", json.dumps([RECORDS[0], {"question": "q", "answer": answer}]))
    with pytest.raises(UserError, match=r"record 2: field 'answer' has no '#### <answer>'"):
        load_problems(path)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("A question|<<1+1=2>> #### 2", "no '||'"),
        ("A question||<<1+1=2>> 2", "no '#### <answer>'"),
        ("A question||<<1+1=2>> ####", "no '#### <answer>'"),
        ("||<<1+1=2>> #### 2", "the question is empty"),
        (
            "A question||First, 1 + 1 = <<1+1=2>> #### 2",
            "besides calculator marks: 'First, 1 + 1 ='; write each step",
        ),
        ("A question||<<1+1=2> #### 2", "words besides calculator marks"),
    ],
)
def test_a_line_of_another_form(tmp_path: Path, line: str, fault: str) -> None:
    path = write(tmp_path / "train.txt", "q||<<1+1=2>> #### 2\n\n" + line)
    with pytest.raises(UserError, match=r"train.txt, line 3: expected 'question\|\|") as caught:
        load_problems(path)
    assert repr(line) in str(caught.value)
    assert fault in str(caught.value)
