"""Problems from files, and GRPO problems from several of them with weights."""

import json
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared.measure import by_source
from dropout_grpo.commands.shared.problems import problems_of
from dropout_grpo.config.data import DataConfig, WeightedSource
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.data.files import save_problems
from dropout_grpo.data.formats import Columns
from dropout_grpo.data.mixture import Mixture
from dropout_grpo.errors import UserError
from helpers.eval_run import OPTIONS, evaluate, save_checkpoint
from helpers.tiny_latent import read_metrics, tiny_problems


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
    alike = problems_of(DataConfig(grpo=(a, a), valid=a), ["grpo"])["grpo"]
    assert isinstance(alike, Mixture)
    assert alike.weights == (0.5, 0.5)


def test_validation_from_several_files(files: tuple[Path, Path], tmp_path: Path) -> None:
    a = str(files[0])
    b_read = tmp_path / "c.json"
    b_read.write_text('[{"question": "c0", "answer": "3"}]', encoding="utf-8")
    data = DataConfig(grpo=a, valid=(a, str(b_read)), max_problems=1)
    assert data.valid_names == ("a", "c")
    problems = problems_of(data, ["grpo", "valid"])
    assert [p.question for p in problems["grpo"]] == ["a0"], "the first of each file"
    found = by_source(data, problems["valid"])
    assert {name: [p.question for p in part] for name, part in found.items()} == {"a": ["a0"], "c": ["c0"]}
    alone = problems_of(DataConfig(grpo=a, valid=a), ["valid"])["valid"]
    assert by_source(DataConfig(valid=a), alone) == {"": alone}
    with pytest.raises(UserError, match=r"metrics are named by file, and two are named alike \(a, a\)"):
        DataConfig(valid=("one/a.json", "hf:two/a"))
    versions = DataConfig(valid=("hf:org/data.v2@valid", "hf:org/data.v2@test"))
    assert versions.valid_names == ("data.v2@valid", "data.v2@test")
    with pytest.raises(UserError, match=r"data\.grpo is an empty list"):
        DataConfig(grpo=())


def test_a_run_with_several_validation_files(tmp_path: Path) -> None:
    """On the command line: metrics by file and under masks, all files at the end, and the same in eval."""
    folder = tmp_path / "data"
    folder.mkdir()
    save_problems(folder / "few.json", tiny_problems(2))
    save_problems(folder / "more.json", tiny_problems(5))
    checkpoint = save_checkpoint(tmp_path / "checkpoint")
    few, more = folder / "few.json", folder / "more.json"
    small = ["max_steps=2", "prompts_per_step=2", "num_generations=2", "max_completion_length=3", "eval_steps=1"]
    words = [f"--checkpoint={checkpoint}", f"--data.grpo={more}", f"--data.valid=[{few},{more}]", "--bf16=false"]
    options = [
        *(f"--grpo.{option}" for option in small),
        "--grpo.num_generations_eval=2",
        f"--run_dir={tmp_path / 'r'}",
    ]
    assert main(["grpo", *words, *options]) == 0
    lines = [line for line in read_metrics(tmp_path / "r") if "eval/pass@1" in line]
    assert [line["step"] for line in lines] == [1, 2]
    names = {name for name in lines[0] if name.startswith("eval/")}
    measures = ("pass@1", "masked_pass@1", "pass@2")
    assert names == {f"eval/{name}{measure}" for name in ("", "few/", "more/") for measure in measures}
    results = json.loads((tmp_path / "r/results.json").read_text(encoding="utf-8"))["evaluations"]
    assert [(row["file"], row["n"]) for row in results] == [(str(few), 2), (str(more), 5)]
    assert [row["pass@1"] for row in results] == [lines[-1]["eval/few/pass@1"], lines[-1]["eval/more/pass@1"]]
    run = tmp_path / "e"
    assert evaluate(checkpoint, [more], run, *OPTIONS, "--data.max_problems", "3") == 0
    (row,) = json.loads((run / "results.json").read_text(encoding="utf-8"))["evaluations"]
    assert row["n"] == 3


def test_on_the_command_line(files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Recipe] = []
    monkeypatch.setattr("dropout_grpo.commands.sft.sft", given.append)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data:\n  grpo:\n    - source: a.json\n      weight: 3\n    - source: b.json\n", encoding="utf-8")
    assert main(["sft", "--recipe", str(recipe)]) == 0
    assert main(["sft", "--recipe", str(recipe), "--data.grpo", "one.json"]) == 0
    assert main(["sft", "--data.grpo", "[a.json,b.json]"]) == 0
    with pytest.raises(
        UserError, match=r"data\.grpo \[\{sourc: a\}\]: a list has the form \[\{source: a.json,weight: 2\}"
    ):
        DataConfig(grpo="[{sourc: a}]")
    expected = (WeightedSource(source="a.json", weight=3.0), WeightedSource(source="b.json"))
    assert [recipe.data.grpo for recipe in given] == [expected, "one.json", ("a.json", "b.json")]
