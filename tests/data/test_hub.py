"""Hugging Face datasets: local folders in the layouts of published ones, offline, and what can go wrong with them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from dropout_grpo.data.files import load_problems
from dropout_grpo.data.formats import Columns
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def folder(path: Path, **splits: Sequence[dict[str, Any]]) -> Path:
    """A dataset of jsonl files, one per split."""
    path.mkdir(parents=True)
    for split, rows in splits.items():
        (path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def error(source: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_problems(source, **options)
    return str(caught.value)


GSM8K = [
    {"question": "2 pens at 3?", "answer": "2*3 = <<2*3=6>>6\n#### 6"},
    {"question": "6 + 994?", "answer": "<<6+994=1000>>\n#### 1,000"},
]
AUG = [
    {"question": "q0", "cot": "<<2*3=6>> <<6+1=7>>", "answer": "7"},
    {"question": "q1", "cot": "<<1+1=2>>", "answer": "2"},
    {"question": "q2", "cot": "", "answer": "4"},
]


def test_gsm8k_as_on_the_hub_parquet_with_configurations(tmp_path: Path) -> None:
    """openai/gsm8k has a folder of parquet files per configuration, named in the README's front matter."""
    for config, rows in (("main", GSM8K), ("socratic", [{"question": "?", "answer": "#### 1"}])):
        (tmp_path / "gsm8k" / config).mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "gsm8k" / config / "train-00000-of-00001.parquet")
    lines = ["---", "configs:"]
    for config in ("main", "socratic"):
        lines += [f"- config_name: {config}", "  data_files:", "  - split: train", f"    path: {config}/train-*"]
    (tmp_path / "gsm8k" / "README.md").write_text("\n".join([*lines, "---", ""]))
    expected = [
        Problem(id=0, question="2 pens at 3?", steps=("<<2*3=6>>",), answer="6"),
        Problem(id=1, question="6 + 994?", steps=("<<6+994=1000>>",), answer="1000"),
    ]
    assert load_problems(f"hf:{tmp_path}/gsm8k:main@train") == expected
    assert load_problems(f"hf:{tmp_path}/gsm8k:main@train[1:]")[0].question == "6 + 994?"
    assert load_problems(f"hf:{tmp_path}/gsm8k:socratic", require_steps=False)[0].answer == "1"
    message = error(f"hf:{tmp_path}/gsm8k:other@train")
    assert "cannot be loaded" in message
    assert "'main', 'socratic'" in message


def test_columns_by_other_names_in_a_folder_of_jsonl(tmp_path: Path) -> None:
    source = f"hf:{folder(tmp_path / 'aug', train=AUG, test=AUG[:1])}"
    problems = load_problems(f"{source}@train", columns=Columns(steps="cot"))
    assert [p.steps for p in problems] == [("<<2*3=6>>", "<<6+1=7>>"), ("<<1+1=2>>",), ()]
    assert [p.id for p in problems] == [0, 1, 2]
    assert problems[0].extra == {"cot": "<<2*3=6>> <<6+1=7>>"}, "as it came"
    (tested,) = load_problems(f"{source}@test", require_steps=False)
    assert (tested.steps, tested.extra) == ((), {"cot": "<<2*3=6>> <<6+1=7>>"}), "not named, so an extra column"


def test_splits_must_be_named_where_there_are_several(tmp_path: Path) -> None:
    source = f"hf:{folder(tmp_path / 'aug', train=AUG, test=AUG)}"
    message = error(source)
    assert "train, test" in message
    assert f"{source}@train" in message
    message = error(f"{source}@dev")
    assert '"dev"' in message
    assert "'train', 'test'" in message


def test_what_is_not_there(tmp_path: Path) -> None:
    assert f"Couldn't find any data file at {tmp_path}/none" in error(f"hf:{tmp_path}/none@train")
    assert "hf:nobody/nothing@train: the dataset cannot be loaded" in error("hf:nobody/nothing@train")
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded" in error(f"hf:{tmp_path}/empty@train")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"question": \n')
    assert "cannot be loaded" in error(f"hf:{tmp_path}/broken@train")


@pytest.mark.parametrize("source", ["hf:", "hf:@train", "hf:a:b:c", "hf:a@", "hf::main"])
def test_another_form(source: str) -> None:
    assert "expected hf:NAME_OR_FOLDER[:CONFIG][@SPLIT], for example hf:openai/gsm8k:main@train" in error(source)


def test_the_package_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'dropout-grpo[data]'" in error("hf:openai/gsm8k:main@train")
