"""``dropout-grpo grpo``: what it leaves for its page, its warning of a collapse, and ``--resume true``."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared import training
from dropout_grpo.commands.shared.training import has_collapsed
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.evaluation.measures import sample
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent.model import LatentModel
from helpers.tiny_latent import tiny_latent, tiny_problems

REWARDS = """
def often(prompts, completions, **columns):
    return [float(i % 2) for i in range(len(completions))]

def one_digit(prompts, completions, **columns):
    return [float(sum(word.isdigit() for word in text.split()) == 1) for text in completions]
"""
OPTIONS = {
    "checkpoint": "start",
    "run_dir": "run",
    "data.grpo": "problems.json",
    "data.valid": "problems.json",
    "bf16": "false",
    "reward_funcs": "[mine.py:often]",
    "grpo.max_steps": "2",
    "grpo.prompts_per_step": "2",
    "grpo.num_generations": "2",
    "grpo.max_completion_length": "4",
    "evaluation.num_samples": "3",
    "evaluation.max_new_tokens": "4",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a checkpoint, problems and rewards."""
    tiny_latent().save_pretrained(tmp_path / "start")
    save_problems(tmp_path / "problems.json", tiny_problems(4))
    (tmp_path / "mine.py").write_text(REWARDS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grpo(**changes: str) -> int:
    """Run the command; ``__`` in the name of an option stands for a dot. Returns its exit status."""
    options = OPTIONS | {name.replace("__", "."): value for name, value in changes.items()}
    return main(["grpo", *(word for name, value in options.items() for word in (f"--{name}", value))])


def read_lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run", name).read_text(encoding="utf-8").splitlines()]


def steps() -> list[float]:
    return [line["step"] for line in read_lines("metrics.jsonl") if "loss" in line]


def test_the_first_problems_are_answered_under_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_SAMPLED", 2)
    assert grpo(grpo__max_steps="1", exploration__p="0.4", seed="5", grpo__eval_steps="1") == 0
    model = LatentModel.from_pretrained("run/checkpoints/grpo")
    problems = load_problems("problems.json", require_steps=False)
    config = EvaluationConfig(num_samples=3, max_new_tokens=4)
    plain = answer_problems(model, problems, EvaluationConfig(num_samples=0, max_new_tokens=4))
    masked = answer_problems(model, problems[:2], config, exploration=SharedDropout(0.4), seed=5)
    expected = [sample("problems.json", answered) for answered in (*masked, *plain[2:])]
    assert read_lines("samples.jsonl") == json.loads(json.dumps(expected))
    assert [thought["question"] for thought in read_lines("thoughts.jsonl")] == [p.question for p in problems[:2]]
    page = Path("run/report.html").read_text(encoding="utf-8")
    assert "What the thoughts say" in page
    assert "All problems" in page


@pytest.mark.parametrize(
    ("steps", "expected"),  # (reward, gradient norm, entropy) of each
    [
        ([(0.4, 0.5, 1.0), (0.3, 0.9, 0.5), (0.1, 0.0, 0.0), (0.0, 0.0, 0.0)], True),
        ([(0.4, 0.5, 1.0), (1.0, 0.0, 0.0)], False),  # everything is right
        ([(0.4, 0.5, 1.0), (0.0, 0.9, 0.0)], False),  # there is a gradient
        ([(0.4, 0.5, 1.0), (0.4, 0.0, 0.1)], False),  # answers still differ
        ([(0.4, 0.0, 1.0), (0.0, 0.0, 0.0)], False),  # there was nothing to learn from
        ([], False),
    ],
)
def test_what_a_collapse_is(steps: list[tuple[float, float, float]], expected: bool) -> None:
    metrics = [dict(zip(("reward", "grad_norm", "entropy"), values, strict=True)) for values in steps]
    assert has_collapsed(metrics) is expected


def test_a_learning_rate_of_a_thousand(capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with a warning, or at weights that are not finite."""
    many = {"grpo__max_steps": "8", "grpo__prompts_per_step": "4", "grpo__num_generations": "4"}
    rate = {"grpo__learning_rate": "1e3", "grpo__lr_scheduler_type": "constant"}
    status = grpo(reward_funcs="[mine.py:one_digit]", grpo__max_completion_length="3", **many, **rate)
    told = capsys.readouterr().err
    assert status == 2 or "warning: grpo has collapsed" in told


def test_resuming_needs_the_whole_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grpo", "--run_dir", "run", "--resume", "true"]) == 2
    told = "missing: --checkpoint. --resume true needs all options that the run began with: add it to the same command."
    assert told in capsys.readouterr().err


def test_a_run_is_made_longer(capsys: pytest.CaptureFixture[str]) -> None:
    assert grpo() == 0
    assert grpo(resume="true", grpo__max_steps="4") == 0
    assert steps() == [1, 2, 3, 4]
    assert "max_steps was 2 and is now 4: the linear schedule now ends at step 4" in capsys.readouterr().err
    assert json.loads(Path("run/config.json").read_text())["config"]["grpo"]["max_steps"] == 4
    assert grpo(resume="true") == 2
    assert "grpo.max_steps was 4 and is now 2" in capsys.readouterr().err


def test_weights_replaced_under_the_same_name_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: the reference of the KL became another model."""
    assert grpo() == 0
    shutil.copy("run/checkpoints/grpo/model.safetensors", "start")
    assert grpo(resume="true", grpo__max_steps="4") == 2
    assert "the content of model, by its SHA-256, was" in " ".join(capsys.readouterr().err.split())
    assert steps() == [1, 2]


def test_a_finished_run_is_not_trained_again() -> None:
    assert grpo(grpo__save_steps="0") == 0
    weights = Path("run/checkpoints/grpo/model.safetensors").read_bytes()
    metrics = read_lines("metrics.jsonl")  # times as well
    assert grpo(grpo__save_steps="0", resume="true") == 0
    assert read_lines("metrics.jsonl") == metrics
    assert Path("run/checkpoints/grpo/model.safetensors").read_bytes() == weights


def test_masks_that_change_nothing_are_no_masks(capsys: pytest.CaptureFixture[str]) -> None:
    """Fault: a training with p = 0 ended in an error, before its results were written."""
    assert grpo(exploration__p="0", grpo__max_steps="1") == 0
    assert Path("run", "results.json").is_file()
    assert main(["ask", "run/checkpoints/grpo", "Ann has 3 ?", "--masks", "2", "--max_new_tokens", "4"]) == 0
    assert "p 0.1; sites residual; phases latent (the default; the checkpoint records none)" in capsys.readouterr().err
