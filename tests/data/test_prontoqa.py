"""ProntoQA as its generator writes it, on a made-up 5-hop example, becomes the record Coconut's preprocessing makes."""

import json
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.data.files import load_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError

CHAIN = [
    "Sally is a vumpus.",
    *("Each vumpus is a tumpus.", "Sally is a tumpus."),
    *("Tumpuses are impuses.", "Sally is an impus."),
    *("Every impus is a lempus.", "Sally is a lempus."),
    *("Lempuses are rompuses.", "Sally is a rompus."),
    *("Every rompus is not sour.", "Sally is not sour."),
]
EXAMPLE = {
    "question": "Lempuses are rompuses. Each vumpus is a tumpus. Tumpuses are impuses. Every dumpus is sour. "
    "Every impus is a lempus. Every rompus is not sour. Sally is a vumpus.",
    "query": "True or false: Sally is sour.",
    "chain_of_thought": CHAIN,
    "answer": "False",
}
PROBLEM = Problem(
    id=0,
    question=EXAMPLE["question"] + " True or false: Sally is sour.",
    steps=(
        "Sally is a vumpus. Each vumpus is a tumpus.",
        "Sally is a tumpus. Tumpuses are impuses.",
        "Sally is an impus. Every impus is a lempus.",
        "Sally is a lempus. Lempuses are rompuses.",
        "Sally is a rompus. Every rompus is not sour.",
        "Sally is not sour.",
    ),
    answer="False",
)


def published(*examples: Any) -> dict[str, Any]:
    """The file of run_experiment.py: an object of examples, each with one more for the prompt, which is not read."""
    shown = {**EXAMPLE, "answer": "True"}
    return {f"example{i}": {"in_context_example0": shown, "test_example": e} for i, e in enumerate(examples, start=1)}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_the_published_layout(tmp_path: Path) -> None:
    true = {**EXAMPLE, "query": "True or false: Sally is not sour.", "answer": "True"}
    problems = load_problems(write(tmp_path / "5hop_0shot_random.json", published(EXAMPLE, true)))
    assert problems[0] == PROBLEM
    assert (problems[1].id, problems[1].answer) == (1, "True")
    assert problems[1].question.endswith(" True or false: Sally is not sour.")


def test_examples_one_a_line_and_coconuts_layout_are_the_same_problem(tmp_path: Path) -> None:
    assert load_problems(write(tmp_path / "lines.jsonl", json.dumps(EXAMPLE) + "\n")) == [PROBLEM]
    coconut = {"question": PROBLEM.question, "steps": list(PROBLEM.steps), "answer": "False"}
    assert load_problems(write(tmp_path / "prontoqa_train.json", [coconut])) == [PROBLEM]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"answer": None}, ["field 'answer' must be a string", "'question', 'query'"]),
        ({"query": ""}, ["field 'query' must be a string"]),
        ({"question": 3}, ["field 'question' must be a string"]),
        ({"chain_of_thought": "Sally is sour."}, ["field 'chain_of_thought' must be a list of sentences"]),
        ({"chain_of_thought": ["Sally is sour.", ""]}, ["field 'chain_of_thought' must be a list of sentences"]),
    ],
)
def test_a_malformed_field_is_named_with_its_place(tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    path = write(tmp_path / "a.json", published(EXAMPLE, {**EXAMPLE, **change}))
    with pytest.raises(UserError) as caught:
        load_problems(path)
    for part in [f"{path}, record 2 (example2): ", *parts]:
        assert part in str(caught.value)


def test_an_example_without_its_problem(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", published(EXAMPLE) | {"example2": {}})
    with pytest.raises(UserError, match=r"record 2 \(example2\): expected an object .*, found null"):
        load_problems(path)
