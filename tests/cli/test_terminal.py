"""What a user of a terminal meets first: version, list of commands, common options, results apart from progress."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

import dropout_grpo
from dropout_grpo.cli.main import main
from dropout_grpo.distributed.device import choose_device, default_device
from dropout_grpo.errors import UserError
from helpers.tiny_latent import tiny_latent


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(["--version"], capsys) == f"dropout-grpo {dropout_grpo.__version__}\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal") / "checkpoint"
    tiny_latent(latent_steps=2).save_pretrained(folder)
    return folder


def test_questions_from_standard_input(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["Ann has 3 ?", "Ann has 5 ? ?"]
    alone = []
    for question in questions:
        assert main(["ask", str(checkpoint), question, "--masks", "2", "--max_new_tokens", "4", "--json"]) == 0
        alone.append(json.loads(capsys.readouterr().out))
    assert [found["question"] for found in alone] == questions
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(["", *questions, ""])))
    assert main(["ask", str(checkpoint), "--masks", "2", "--max_new_tokens", "4", "--json"]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == alone
    assert main(["ask", str(checkpoint), questions[0], "--masks", "2", "--max_new_tokens", "4"]) == 0
    assert "(greedy, by the masks' mean probability of each token)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["ask", str(checkpoint)]) == 2
    assert "there is no question" in capsys.readouterr().err


def test_device(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    chosen: list[int] = []
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    choose_device("cuda:1")
    assert (chosen, default_device().type) == ([1], "cuda")
    choose_device("cpu")
    assert default_device().type == "cpu"
    choose_device("cuda")
    assert (chosen, default_device().type) == ([1], "cuda")
    with pytest.raises(UserError, match="there are cuda:0 to cuda:1"):
        choose_device("cuda:2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="each process of a run has its own GPU"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["ask", "none", "2 ?", "--device", "cuda"]) == 2
    assert "--device cuda: torch sees no GPU here" in capsys.readouterr().err
    for wrong in ("gpu", "cpu:1", "cuda:", "cuda:x"):
        with pytest.raises(UserError, match="it must be cpu, cuda, or a GPU by its number"):
            choose_device(wrong)
