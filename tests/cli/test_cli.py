"""The command line: mistakes of the user are reported before training; a whole small demo runs and resumes."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared import context, training
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.latent.logit_lens import ThoughtReading
from dropout_grpo.runs.folder import RunFolder
from helpers.tiny_latent import tiny_latent
from helpers.tiny_recipe import TINY


class Trained(AssertionError):
    """A mistake was found too late."""


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """A recipe that takes a second."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    return ["--recipe", str(tmp_path / "tiny.yaml"), "--run_dir", str(tmp_path / "run")]


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(self: Any, resume_from_checkpoint: bool = False) -> None:
        raise Trained

    monkeypatch.setattr(training.CurriculumTrainer, "train", train)
    monkeypatch.setattr(training.GRPOTrainer, "train", train)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--reward_funcs", "[no_such:f]"], "importing no_such failed"),
        (["--grpo.reward_weights", "[1,2]"], "reward_weights has 2 numbers for 1 reward functions"),
        (["--grpo.prompts_per_step", "25"], "prompts_per_step=25"),
        (["--data.word_problems.n_valid", "0"], "the split valid has no problems"),
        (["--data.word_problems.n_test", "0"], "the split test has no problems"),
        (["--data.max_valid", "-1"], "data.max_valid=-1 must be at least 1"),
        (["--evaluation.max_new_tokens", "150"], "data.valid: question 4"),
        (["--evaluation.max_new_tokens", "150"], "the model has 160 positions"),
        (["--exploration.p", "0"], "a p above 0"),
        (["--data.grpo", "mine.json"], "data.grpo is given and data.valid is not"),
        (["--model.n_head", "3"], "model.n_embd=16 must be a multiple of model.n_head=3"),
        (["--model.n_layer", "0"], "model.n_layer=0 must be at least 1"),
        (["--curriculum.cot_epochs=0", "--curriculum.epochs_per_stage=0", "--curriculum.final_epochs=0"], "nothing to"),
    ],
)
def test_what_would_fail_later_is_refused_before_training(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert main(["demo", *tiny, *options]) == 2
    assert told in capsys.readouterr().err
    with pytest.raises(Trained):  # the refused run is not in the way of a right one
        main(["demo", *tiny])


@pytest.mark.usefixtures("untrained")
def test_a_reward_that_raises_and_a_long_test_question_too(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = tmp_path / "r.py"
    reward.write_text("def f(prompts, completions, **columns):\n    return [1 / 0]\n")
    assert main(["demo", *tiny, "--reward_funcs", f"[{reward}:f]"]) == 2
    assert "r.py, line 2" in capsys.readouterr().err
    test = tmp_path / "test.json"
    test.write_text(json.dumps([{"question": "tom has 2 apples . " * 50, "answer": "2"}]))
    assert main(["demo", *tiny, "--data.test", str(test)]) == 2
    assert "('tom has 2 apples" in capsys.readouterr().err


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_command_line_overrides_the_recipe_wherever_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: tuple[int, int]
) -> None:
    (tmp_path / "r.yaml").write_text("run_dir: from-recipe\nseed: 5\n")
    given = [["--recipe", str(tmp_path / "r.yaml")], ["--run_dir", "from-command-line"]]
    with pytest.raises(SystemExit):
        main(["sft", *(word for i in order for word in given[i]), "--print_config"])
    lines = capsys.readouterr().out.splitlines()
    assert "run_dir: from-command-line" in lines
    assert "seed: 5" in lines


def test_data_has_nowhere_to_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    few = [f"--word_problems.n_{split}=1" for split in ("train", "grpo", "valid", "test")]
    assert main(["data", "--out", str(tmp_path / "file"), *few]) == 2
    assert "cannot be created: File exists" in capsys.readouterr().err


def test_asking_for_the_thoughts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under the masks that answer: mask 1 of the answers is mask 1 of the thoughts."""
    model = tiny_latent(latent_steps=2)
    model.save_pretrained(tmp_path)
    words = ["ask", str(tmp_path), "Ann has 3", "--masks", "2", "--max_new_tokens", "3", "--seed", "4"]
    assert main([*words, "--exploration.p", "0.5", "--thoughts"]) == 0
    said = capsys.readouterr().out.splitlines()
    seeds = rollout_seeds(4, -1, torch.tensor([0]), 2)[0].tolist()
    (expected,) = model.thoughts(["Ann has 3"], SharedDropout(p=0.5), seeds)
    assert [line for line in said if line.startswith(("thought ", "after"))] == [
        "thought 1",
        "thought 2",
        "after the thoughts",
    ]
    assert said[said.index("thought 2") + 1].split() == ["plain", *_said(expected.plain[1])]
    for mask in range(2):
        thought = expected.masked[mask][2]
        line = said[said.index("after the thoughts") + 2 + mask]
        assert line.split() == ["mask", str(mask), "cos", f"{thought.cosine:.3f}", *_said(thought)]


def _said(thought: ThoughtReading) -> list[str]:
    return "  ".join(f"{token!r} {share:.3f}" for token, share in thought.tokens).split()


def test_asking(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_latent().save_pretrained(tmp_path)
    assert main(["ask", str(tmp_path), "Ann has 3", "--masks", "2", "--max_new_tokens", "3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line[:6] for line in said if line[:5] in ("plain", "mask ", "avera")] == [
        "plain ",
        "mask 0",
        "mask 1",
        "averag",
    ]
    assert said[-1] == "vote     none  ((unparsable) x2)"  # a model that was never trained
    assert main(["ask", str(tmp_path), "Ann has 3", "--masks", "-2"]) == 2
    assert "masks=-2 must be at least 0 and at most 1024" in capsys.readouterr().err
    assert main(["ask", str(tmp_path), "zebra has 5 xylophones ?"]) == 2
    assert "would read as <unk>: 'zebra' (1), 'xylophones' (1)" in capsys.readouterr().err


def test_a_resumed_run_keeps_the_precision_it_was_started_with(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "bf16_or_not", lambda setting, *where: True if setting is None else setting)
    run_dir = str(tmp_path / "run")
    first = context.settled(Recipe(run_dir=run_dir))
    assert first.bf16 is True  # measured
    RunFolder(run_dir, "sft", Recipe(run_dir=run_dir, bf16=False))
    assert context.settled(Recipe(run_dir=run_dir, resume=True)).bf16 is False
    assert context.settled(Recipe(run_dir=run_dir)).bf16 is True  # not resumed


def test_questions_of_another_encoding_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    assert main(["ask", str(tmp_path)]) == 2
    assert "standard input is not UTF-8" in capsys.readouterr().err


def test_options_of_variations_alone_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = [f"--word_problems.n_{split}=2" for split in ("train", "grpo", "valid", "test")]
    assert main(["data", "--out", str(tmp_path / "data"), "--seed", "7", *few]) == 0
    assert "warning: seed=7: no effect; it needs --vary; a task has a seed of its own." in capsys.readouterr().err
