"""Weights that are not finite: every command that asks the model ends with the question's place and a remedy."""

from pathlib import Path

import pytest
import torch

from dropout_grpo.cli.main import main
from helpers.eval_run import evaluate, save_files
from helpers.tiny_latent import tiny_latent

REMEDY = "the model's logits are not finite. Its weights may be damaged"


@pytest.fixture(params=[float("nan"), float("inf")])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = tiny_latent()
    with torch.no_grad():
        next(model.model.parameters())[5:] = request.param
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_ask(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(damaged), "Ann has 3 ?", "--masks", "2", "--max_new_tokens", "3"]) == 2
    told = capsys.readouterr()
    assert f"problem 1 ('Ann has 3 ?'): {REMEDY}" in told.err
    assert told.out == ""


def test_eval(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = save_files(tmp_path)
    assert evaluate(damaged, files, tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert f"{files[0]}: problem " in told
    assert REMEDY in told
    assert not (tmp_path / "run" / "results.json").exists()


def test_inspect(damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(damaged)]) == 2
    told = capsys.readouterr().err
    assert "the dry run's question ('has 3 4 many')" in told  # the words that the tokenizer knows
    assert REMEDY in told


def test_answers_of_a_library_user() -> None:
    model = tiny_latent()
    with torch.no_grad():
        next(model.model.parameters())[5:] = float("nan")
    with pytest.raises(ValueError, match=r"question 1 \('Ann has 3 \?'\): the model's logits are not finite"):
        model.answer(["Ann has 3 ?"], 3)
