"""The commands of ``evidence/studies/prosqa.py`` made small, what it records of them, and the page made of that."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.data.files import save_problems
from dropout_grpo.tasks.prosqa import ProsqaConfig, make_splits
from evidence.places import ROOT
from evidence.studies import prosqa, prosqa_tables
from evidence.studies.results_page import block
from evidence.studies.side_by_side import finished

STEPS = ["--grpo.prompts_per_step", "2", "--grpo.num_generations", "2", "--grpo.eval_steps", "1"]
SMALL = {
    "data": ["--prosqa.n_test", "6"],
    "words": ["--data.prosqa.n_train", "8", "--curriculum.batch_size", "8", "--curriculum.cot_epochs", "1"],
    "sft": ["--data.prosqa.n_train", "8", "--curriculum.batch_size", "8", "--curriculum.final_epochs", "2"],
    "masks": ["--data.prosqa.n_grpo", "8", "--grpo.max_steps", "2", *STEPS],
    "eval": ["--evaluation.num_samples", "2"],
}
SMALL |= {"pause": SMALL["sft"], "weaker": SMALL["sft"], "temperature": SMALL["masks"]}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("prosqa")
    valid, out = folder / "valid.json", str(folder / "runs" / "prosqa")
    save_problems(valid, make_splits(ProsqaConfig(n_valid=5), ("valid",))["valid"])
    lines = {name: words for each in prosqa.rounds(str(valid), out) for name, words in each.items()}
    for name, words in lines.items():
        assert main([*words[1:], *SMALL[name.split("-")[0]]]) in (0, None)
        assert finished(out, name), name
    measured: dict[str, Any] = prosqa.measured(out)
    return {"commands": {name: " ".join(words) for name, words in lines.items()}, **measured}


def test_what_is_recorded(record: dict[str, Any]) -> None:
    curves = {n: [(point["step"], point.get("stage")) for point in points] for n, points in record["curves"].items()}
    assert curves["words"] == [(1, 0)]  # 8 problems are a batch
    assert curves["sft"] == curves["pause"] == curves["weaker"] == [(2, 7)]
    assert [step for step, _ in curves["masks"]] == [1, 2]
    assert [[e["n"] for e in record["evaluations"][name]] for name in record["evaluations"]] == [[5, 6]] * 5
    for names, comparisons in record["pairs"].items():
        a, b = (record["evaluations"][name] for name in names.split())
        for c, of_a, of_b in zip(comparisons, a, b, strict=True):
            assert c["pass@1"] == {"a": of_a["pass@1"]["value"], "b": of_b["pass@1"]["value"]}
    assert record["runs"]["masks"]["mixed_groups"][0] >= 0


def test_the_tables_and_the_figure(record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "prosqa.json").write_text(json.dumps(record), encoding="utf-8")
    prosqa_tables.draw(tmp_path)
    assert (tmp_path / "prosqa.svg").read_text(encoding="utf-8").count("pause tokens") > 0
    found = record["evaluations"]["pause"][0]["pass@1"]["value"]
    assert f"| pause tokens | valid.json | 5 | {100 * found:.1f} |" in block(tmp_path, "prosqa.measures")
    commands = block(tmp_path, "prosqa.commands")
    assert all(f"$ {line}" in commands for line in record["commands"].values())


def test_help_needs_no_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evidence.studies.prosqa", "--help"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0
