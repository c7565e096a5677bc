"""``--resume true`` of a run whose files have changed, of a finished one, and of one that shall be longer."""

import json
import shutil
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from helpers.tiny_recipe import TINY

REWARD = """
def often(prompts, completions, **columns):
    return [float(i % 2) for i in range(len(completions))]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, a checkpoint of it, and two steps of GRPO from there."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "mine.py").write_text(REWARD)
    assert main(["sft", "--recipe", str(folder / "tiny.yaml"), "--run_dir", str(folder / "sft")]) == 0
    shutil.copytree(folder / "sft" / "checkpoints" / "coconut", folder / "start")
    assert grpo(folder) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))
    return tmp_path / "copy"


def grpo(folder: Path, *options: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        reward = ("--reward_funcs", "[mine.py:often]")
        return main(["grpo", "--recipe", "tiny.yaml", "--checkpoint", "start", "--run_dir", "run", *reward, *options])


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_made_longer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grpo(folder, "--resume", "true", "--grpo.max_steps", "4") == 0
    assert steps(folder) == [1, 2, 3, 4]
    assert "max_steps was 2 and is now 4: the linear schedule now ends at step 4" in capsys.readouterr().err
    assert json.loads((folder / "run" / "config.json").read_text())["config"]["grpo"]["max_steps"] == 4
    assert grpo(folder, "--resume", "true") == 2
    assert "grpo.max_steps was 4 and is now 2" in capsys.readouterr().err


def test_weights_replaced_under_the_same_name_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: the reference of the KL became another model."""
    shutil.copy(folder / "run" / "checkpoints" / "grpo" / "model.safetensors", folder / "start")
    assert grpo(folder, "--resume", "true", "--grpo.max_steps", "4") == 2
    assert "the content of model, by its SHA-256, was" in " ".join(capsys.readouterr().err.split())
    assert steps(folder) == [1, 2]


def test_a_finished_run_is_not_trained_again(folder: Path) -> None:
    shutil.rmtree(folder / "run")
    assert grpo(folder, "--grpo.save_steps", "0") == 0
    lines = (folder / "run" / "metrics.jsonl").read_text()
    weights = (folder / "run" / "checkpoints" / "grpo" / "model.safetensors").read_bytes()
    assert grpo(folder, "--grpo.save_steps", "0", "--resume", "true") == 0
    assert (folder / "run" / "metrics.jsonl").read_text() == lines  # times as well
    assert (folder / "run" / "checkpoints" / "grpo" / "model.safetensors").read_bytes() == weights
