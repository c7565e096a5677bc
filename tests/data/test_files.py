"""Problem files: Coconut's JSON and its line-by-line form, and the message for each way they can be wrong.

GSM8K, ProntoQA and Hugging Face datasets have test files of their own.
"""

import json
import re
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.data.formats import Columns
from dropout_grpo.data.problem import Problem, problem_fingerprint
from dropout_grpo.errors import UserError

RECORDS = [
    {"question": "tom has 7 apples .", "steps": ["<<7+6=13>>", "<<13-4=9>>"], "answer": "9", "root": 1},
    {"question": "wie viele Äpfel ?", "steps": [], "answer": "0", "root": 2},
]
PROBLEMS = [
    Problem(id=0, question="tom has 7 apples .", steps=("<<7+6=13>>", "<<13-4=9>>"), answer="9", extra={"root": 1}),
    Problem(id=1, question="wie viele Äpfel ?", steps=(), answer="0", extra={"root": 2}),
]


def write(tmp_path: Path, content: Any, name: str = "problems.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def error(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_problems(path, **options)
    return str(caught.value)


def test_load_jsonl_skips_blank_lines_and_reads_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeff" + "\n\n".join(json.dumps(record) for record in RECORDS) + "\n"
    assert load_problems(write(tmp_path, text, "problems.jsonl")) == PROBLEMS


def test_jsonl_lines_end_at_newlines_only(tmp_path: Path) -> None:
    """U+2028 may stand unescaped inside a JSON string, so it must not split a line."""
    text = '{"question": "a\u2028b", "steps": ["s"], "answer": "1"}\n'
    assert load_problems(write(tmp_path, text, "problems.jsonl"))[0].question == "a\u2028b"


def test_saved_files_load_again_and_are_what_coconut_reads(tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    save_problems(path, PROBLEMS)
    assert load_problems(path) == PROBLEMS
    # As facebookresearch/coconut's get_dataset does: one JSON list, columns named by the first record.
    data = json.loads(path.read_text(encoding="utf-8"))
    assert {key: [record[key] for record in data] for key in data[0]} == {
        key: [record[key] for record in RECORDS] for key in RECORDS[0]
    }


def test_answers_that_are_numbers_become_text(tmp_path: Path) -> None:
    answers = [18, -3, 18.0, 0.5, "1,080", 10**30]
    records = [{"question": "q", "steps": ["s"], "answer": answer} for answer in answers]
    loaded = load_problems(write(tmp_path, records))
    assert [problem.answer for problem in loaded] == ["18", "-3", "18", "0.5", "1,080", "1" + "0" * 30]


def test_steps_without_text_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [{"question": "q", "steps": steps, "answer": "1"} for steps in (["a", "", "b"], [" ", "c", "\n"], [""])]
    path = write(tmp_path, records)
    assert [problem.steps for problem in load_problems(path)] == [("a", "b"), ("c",), ()]
    assert caplog.messages == [f"{path}: steps without text were dropped: 3"]


def test_answers_alone_are_enough_where_steps_are_not_required(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "q", "answer": "1"}, {"question": "q", "answer": "1", "steps": None}])
    assert [problem.steps for problem in load_problems(path, require_steps=False)] == [(), ()]
    message = error(path)
    assert "record 1" in message
    assert "'steps' is missing" in message
    assert "question, answer" in message.replace("'", "")
    assert "require_steps=False" in message


def test_the_curriculum_refuses_a_file_in_which_no_record_has_steps(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "q", "answer": "1", "steps": []}] * 2)
    message = error(path)
    assert "'steps' is empty in every record" in message
    assert "require_steps=False" in message
    assert len(load_problems(path, require_steps=False)) == 2


GOOD = {"question": "q", "steps": ["s"], "answer": "1"}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"question": None}, ["'question' must be a string", "found null"]),
        ({"question": " \n"}, ["'question' must be a string", "not empty"]),
        ({"question": 7}, ["'question' must be a string", "found a number: 7"]),
        ({"answer": ""}, ["'answer' must be a string", "not empty"]),
        ({"answer": None}, ["'answer' must be", "found null"]),
        ({"answer": True}, ["'answer' must be", "found a boolean: true"]),
        ({"answer": ["1"]}, ["'answer' must be", "found a list"]),
        ({"answer": float("nan")}, ["'answer' must be", "found a number: NaN"]),
        (
            {"steps": "<<1+1=2>> so 2"},
            ["'steps' must be a list of strings, or a text of calculator marks", "found a string"],
        ),
        ({"steps": 2}, ["'steps' must be a list of strings", "found a number: 2"]),
        ({"steps": ["s", 2]}, ["'steps', step 2 must be a string", "found a number: 2"]),
        ({"steps": ["s", None]}, ["'steps', step 2 must be a string", "found null"]),
        (
            {"question": "tom \ud83d has"},
            ["the question has a lone surrogate, '\\ud83d', at character 4 ('tom"],
        ),
        ({"answer": "\udc00"}, ["the answer has a lone surrogate, '\\udc00', at character 0"]),
        ({"steps": ["s", "a\ud800"]}, ["step 2 has a lone surrogate, '\\ud800', at character 1"]),
        ({"question": "x" * 1_000_001}, ["the question has 1,000,001 characters ('xxxx", "at most 1,000,000 are read"]),
    ],
)
def test_a_malformed_field_is_named_with_its_place(tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    path = write(tmp_path, [GOOD, GOOD | change])
    message = error(path)
    assert error(path, require_steps=False) == message
    for part in [f"{path}, record 2:", *parts]:
        assert part in message
    lines = write(tmp_path, f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD | change)}", "problems.jsonl")
    assert f"{lines}, record 2 (line 3):" in error(lines)


def test_a_wrong_name_of_a_column_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    path = write(tmp_path, [GOOD])
    message = error(path, columns=Columns(question="prompt"))
    assert f"{path}, record 1: field 'prompt' is missing (fields found: 'question', 'steps', 'answer')" in message
    assert "data.columns.question, which holds for all files (in Python: columns=Columns(question=...))" in message
    assert "data.columns.steps" in error(path, columns=Columns(steps="chain"))
    assert load_problems(path, columns=Columns(steps="chain"), require_steps=False)[0].steps == ()
    with pytest.raises(UserError, match=r"three different columns"):
        Columns(question="answer")
    published = write(tmp_path, [{"question": "q", "answer": "<<1+1=2>> #### 2"}])  # whose steps are in the answer
    assert "field 'solution' is missing" in error(published, columns=Columns(answer="solution"))


def test_steps_that_are_one_text_of_calculator_marks(tmp_path: Path) -> None:
    """As in some copies of GSM8K-Aug; an empty text means no steps."""
    records = [GOOD | {"steps": steps} for steps in ("<<1+1=2>> <<2*2=4>>", "")]
    assert [p.steps for p in load_problems(write(tmp_path, records))] == [("<<1+1=2>>", "<<2*2=4>>"), ()]


@pytest.mark.parametrize("field", ["question", "answer", "steps"])
def test_a_missing_field_is_named_with_those_found(tmp_path: Path, field: str) -> None:
    record = {key: value for key, value in GOOD.items() if key != field} | {"Prompt": "x"}
    message = error(write(tmp_path, [record]))
    assert f"record 1: field '{field}' is missing" in message
    assert "'Prompt'" in message


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.json", '[{"question": "q",\n  "answer" 1}]', ["line 2, column 12", "not valid JSON"]),
        ("a.jsonl", f'{json.dumps(GOOD)}\n{{"question":}}', ["line 2, column 13", "not valid JSON"]),
        ("a.json", f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}", ["line 2, column 1", ".jsonl"]),
        ("a.json", '{"data": []}', ["expected a list of records, found an object"]),
        ("a.json", "", ["no problems"]),
        ("a.json", "[]", ["no problems"]),
        ("a.jsonl", "\n \n", ["no problems"]),
        ("a.json", "[" * 100_000, ["not readable as JSON"]),
        (
            "a.json",
            '[{"question": "q", "steps": ["s"], "answer": ' + "9" * 5000 + "}]",
            ["not readable as JSON"],
        ),
        ("a.csv", "question,answer", [".json, .jsonl, .txt", "hf:FOLDER"]),
        ("a", "[]", [".json, .jsonl, .txt"]),
    ],
)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str, content: str, parts: list[str]) -> None:
    path = write(tmp_path, content, name)
    message = error(path)
    for part in [str(path), *parts]:
        assert part in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "no such file" in error(tmp_path / "none.json")
    (tmp_path / "folder").mkdir()
    assert f"is a folder: give a file in it, or read it as a dataset with hf:{tmp_path}/folder@SPLIT" in error(
        tmp_path / "folder"
    )
    assert "File name too long; check the path" in error(tmp_path / ("x" * 300 + ".json"))
    assert "\\x00b.json': cannot be read: " in error(tmp_path / "a\0b.json")
    (tmp_path / "latin.json").write_bytes(b'[{"question": "\xc4pfel"}]')
    assert "not UTF-8 at byte 15" in error(tmp_path / "latin.json")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"answer": 5}, "the answer must be a string, found 5 of type int"),
        ({"question": None}, "the question must be a string, found None of type NoneType"),
        ({"steps": (7,)}, "step 1 must be a string, found 7 of type int"),
        ({"steps": "<<1+1=2>>"}, "steps is one string ('<<1+1=2>>'): give a tuple, with one string for each step."),
    ],
)
def test_a_problem_has_texts(field: dict[str, Any], message: str) -> None:
    """Fault: a text for the steps was one step for each of its characters."""
    with pytest.raises(UserError, match=re.escape(message)):
        Problem(**{"id": 0, "question": "q", "steps": (), "answer": "1", **field})


@pytest.mark.parametrize(
    ("name", "extras", "part"),
    [
        ("a.jsonl", [{}], "end the name with .json"),
        ("a.json", [{"a": 1}, {"b": 1}], "problem 2: it has the extra columns ['b'], problem 1 has ['a']"),
        ("a.json", [{"answer": 1}], "'answer'"),
        ("missing/a.json", [{}], "cannot be written"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, name: str, extras: list[dict[str, Any]], part: str) -> None:
    problems = [
        Problem(id=index, question="q", steps=(), answer="1", extra=extra) for index, extra in enumerate(extras)
    ]
    with pytest.raises(UserError) as caught:
        save_problems(tmp_path / name, problems)
    assert part in str(caught.value)
    assert not (tmp_path / name).exists()


def test_columns_that_json_lacks_are_written_as_text_or_null(tmp_path: Path) -> None:
    """Fault: a column that no reward reads stopped the demo."""
    extra = {"when": date(2026, 1, 2), "score": float("nan"), "kept": [1]}
    save_problems(tmp_path / "a.json", [Problem(id=0, question="q", steps=(), answer="1", extra=extra)])
    (problem,) = load_problems(tmp_path / "a.json", require_steps=False)
    assert problem.extra == {"when": "2026-01-02", "score": None, "kept": [1]}


def test_fingerprints_of_objects_are_the_same_everywhere() -> None:
    def made() -> str:
        extra, said = {"image": object(), "when": date(2026, 1, 2)}, {"role": "user", "content": "q", "at": date.min}
        problem = Problem(id=0, question="q", steps=(), answer="1", extra=extra, messages=(said,))
        return problem_fingerprint([problem])

    kept = object()  # so that addresses differ
    assert made() == made()
    del kept


def test_a_file_of_another_kind_is_refused_at_once_with_what_works(tmp_path: Path) -> None:
    """Fault: a pointer to hf:, which then asks the Hub for a dataset of the file's name."""
    (tmp_path / "a.csv").write_text("question,answer\nq,1\n")
    assert f"{tmp_path}/a.csv: the name must end in .json" in error(tmp_path / "a.csv")
    assert f"hf:{tmp_path}/a.csv: {tmp_path}/a.csv is a file, and hf: reads a folder" in error(f"hf:{tmp_path}/a.csv")
    for source in (tmp_path / "a.csv", f"hf:{tmp_path}/a.csv"):
        assert "convert it to .jsonl, or put it into a folder of its own and give hf:FOLDER" in error(source)
