"""The problem files of ``make gsm8k``: nothing that is measured on is trained on."""

import json
from pathlib import Path

import pytest

from dropout_grpo.data.files import load_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from evidence.studies import gsm8k_data
from evidence.studies.gsm8k_data import SPLIT_NAMES, key, main, split, write_files

NAMES = ("Ann", "Bob", "Cid", "Dee", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon", "Kay", "Lee")


def problem(name: str, steps: int, thing: str = "pens") -> Problem:
    """A problem with ``steps`` additions of other numbers."""
    numbers = [11, 13, 17, 19, 23, 29, 31][: steps + 1]
    marks, total = [], numbers[0]
    for number in numbers[1:]:
        marks.append(f"<<{total}+{number}={total + number}>>")
        total += number
    question = f"{name} has {', '.join(map(str, numbers))} {thing}. How many?"
    return Problem(id=0, question=question, steps=tuple(marks), answer=str(total), extra={"x": 1})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Problem]]:
    for name, value in {"_SHORT_VALID": 2, "_SHORT_TEST": 3}.items():
        monkeypatch.setattr(gsm8k_data, name, value)
    gsm8k = [problem(name, 1 + i % 6) for i, name in enumerate(NAMES)]
    short = [problem(name, 1, "cups") for name in (*NAMES, "Ann")]  # Ann's twice
    return split(gsm8k, [gsm8k[0], gsm8k[1]], short, seed=0)


def test_no_question_is_in_two_files_that_must_differ(made: dict[str, list[Problem]]) -> None:
    keys = {name: {key(p) for p in problems} for name, problems in made.items()}
    for one, other in (("train", "valid"), ("train", "short-test"), ("grpo", "valid"), ("grpo", "short-test")):
        assert not keys[one] & keys[other], (one, other)
    assert not keys["train"] & keys["grpo"]
    held_out = {p.question.split()[0] for p in made["valid"] if "pens" in p.question}
    assert held_out == {"Ann", "Bob"}
    for name in ("train", "grpo"):  # variations of what is held out are held out too
        assert not held_out & {p.question.split()[0] for p in made[name] if "pens" in p.question}


def test_sizes_steps_and_ids(made: dict[str, list[Problem]]) -> None:
    assert [len(made[name]) for name in ("valid", "short-test")] == [2 + 2, 3]
    cups, pens = ([p for p in made["train"] if thing in p.question] for thing in ("cups", "pens"))
    assert len(cups) == 12 - 5
    assert [len(p.steps) for p in pens] == [1, 2]  # 3 to 6 steps are too many
    assert len(made["grpo"]) == len(made["train"])  # a variation of each
    for problems in made.values():
        assert [p.id for p in problems] == list(range(len(problems)))
        assert not any(p.extra for p in problems)


def test_a_larger_plan_takes_longer_problems() -> None:
    gsm8k = [problem(name, 1 + i % 6) for i, name in enumerate(NAMES)]
    questions = [p.question for p in split(gsm8k, [], [], seed=0, most=(3, len(gsm8k[2].question)))["train"]]
    assert questions == [p.question for p in (*gsm8k[:3], *gsm8k[6:9])]  # 1, 2 and 3 steps
    assert not split(gsm8k, [], [], seed=0, most=(3, 20))["train"]


def test_files_are_written_once_and_missing_ones_named(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    with pytest.raises(UserError, match=r"gsm8k_train.jsonl is missing: give the folder"):
        write_files(data, out)
    with pytest.raises(SystemExit, match=r"gsm8k_train.jsonl is missing"):
        main([str(data), "--out", str(out)])
    lines = [
        {"question": p.question, "answer": "".join(p.steps) + "\n#### " + p.answer}
        for p in (problem(name, 2) for name in NAMES)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (data / "gsm8k_train.jsonl").write_text(text, encoding="utf-8")
    (data / "gsm8k_test.jsonl").write_text(text, encoding="utf-8")
    (data / "gsm8k_aug_valid.json").write_text(json.dumps([{**lines[0], "steps": [], "answer": "41"}]))
    main([str(data), "--out", str(out), "--most", "2", "180"])
    assert {file.stem for file in out.glob("*.json")} == set(SPLIT_NAMES) - {"short-test"}  # no short problems
    assert len(load_problems(out / "train.json")) == 11
    (data / "gsm8k_train.jsonl").unlink()
    write_files(data, out)  # nothing is made again
