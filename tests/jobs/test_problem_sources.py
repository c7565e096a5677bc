"""Problems from files, and GRPO problems from several of them with weights."""

from pathlib import Path

import pytest

from dropout_grpo.cli import dispatch
from dropout_grpo.cli.main import main
from dropout_grpo.errors import UserError
from dropout_grpo.jobs.problem_sources import problems_of
from dropout_grpo.jobs.recipe import DataConfig, Recipe, WeightedSource
from dropout_grpo.problems.columns import Columns
from dropout_grpo.problems.mixture import Mixture


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text('{"question": "a0", "answer": "1"}\n{"question": "a1", "answer": "2"}\n', encoding="utf-8")
    b.write_text('{"problem": "b0", "target": "3"}\n', encoding="utf-8")
    return a, b


def test_several_sources_each_with_its_columns(files: tuple[Path, Path]) -> None:
    a, b = map(str, files)
    columns = Columns(question="problem", answer="target")
    sources = (WeightedSource(source=a, weight=4), WeightedSource(source=b, weight=1, columns=columns))
    data = DataConfig(grpo=sources, valid=a)
    mixed = problems_of(data, ["grpo"])["grpo"]
    assert isinstance(mixed, Mixture)
    assert [(p.id, p.question, p.answer) for p in mixed] == [(0, "a0", "1"), (1, "a1", "2"), (2, "b0", "3")]
    assert mixed.weights == (0.8, 0.2)
    assert data.sources("grpo") == (a, b)
    assert (data.sources("valid"), data.sources("train")) == ((a,), ())


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"data\.grpo\.weight=0 must be above 0"):
        WeightedSource(source="a.json", weight=0)
    with pytest.raises(UserError, match=r"data\.grpo is an empty list"):
        DataConfig(grpo=())


def test_on_the_command_line(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Recipe] = []
    monkeypatch.setattr(dispatch, "sft", given.append)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data:\n  grpo:\n    - source: a.json\n      weight: 3\n    - source: b.json\n", encoding="utf-8")
    assert main(["sft", "--recipe", str(recipe)]) == 0
    assert main(["sft", "--recipe", str(recipe), "--data.grpo", "one.json"]) == 0
    expected = (WeightedSource(source="a.json", weight=3.0), WeightedSource(source="b.json"))
    assert [recipe.data.grpo for recipe in given] == [expected, "one.json"]
