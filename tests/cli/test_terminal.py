"""What a user of a terminal meets first: version, list of commands, common options, results apart from progress."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dropout_grpo
from dropout_grpo.cli.main import main
from dropout_grpo.data.files import save_problems
from dropout_grpo.distributed.device import choose_device, default_device
from dropout_grpo.errors import UserError
from helpers.tiny_latent import tiny_latent, tiny_problems


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(["--version"], capsys) == f"dropout-grpo {dropout_grpo.__version__}\n"


def test_the_program_alone_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of([], capsys)
    assert [name for name in ("demo", "sft", "grpo", "eval", "ask", "push") if f"    {name} " not in text] == []


def test_common_options_come_first_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(["grpo", "--help"], capsys)
    assert text.startswith("usage: dropout-grpo grpo [options]\n")
    first = text.index("common options:")
    assert first < text.index("--checkpoint ") < text.index("--grpo.max_steps ") < text.index("--grpo.epsilon ")
    assert text.count("--grpo.max_steps ") == 1
    text = help_of(["eval", "--help"], capsys)
    assert text.count("latent_steps ") == 1, "evaluation.latent_steps is the same option under a longer name"


def test_the_demo_shows_its_own_defaults_and_parses_with_the_general_ones(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(help_of(["demo", "--help"], capsys).split())
    assert (
        "--grpo.num_generations NUM_GENERATIONS K, rollouts per question; 1 only with baseline ema; at least 1. "
        in text
    )
    assert text[text.index("--grpo.num_generations ") :].partition("default: ")[2].startswith("4)")
    text = " ".join(help_of(["grpo", "--help"], capsys).split())
    assert text[text.index("--grpo.num_generations ") :].partition("default: ")[2].startswith("8)")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal") / "checkpoint"
    tiny_latent(latent_steps=2).save_pretrained(folder)
    return folder


def test_one_file_and_results_on_standard_output(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "test.json"
    save_problems(file, tiny_problems(4))
    words = ["eval", "--checkpoint", str(checkpoint), "--files", str(file), "--evaluation.num_samples", "0"]
    assert main([*words, "--run_dir", str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    line, report = said.out.splitlines()
    assert line.startswith(f"{file}: pass@1 ")
    assert " %" in line
    assert "; n 4, " in line
    assert report == f"report: {tmp_path / 'a' / 'report.html'}"
    assert "device: " in said.err
    assert main([*words, "--run_dir", str(tmp_path / "b"), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["evaluations"][0]["n"] == 4
    assert "report: " in said.err


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


@pytest.mark.parametrize("number", ["1:30", "1:30:00", "-1:30.5"])
def test_a_number_that_yaml_reads_otherwise_is_refused(
    number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YAML 1.1 reads 1:30 as 90."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"grpo:\n  max_steps: {number}\n")
    assert main(["grpo", "--checkpoint", "c", "--recipe", str(recipe)]) == 2
    assert f"--grpo.max_steps {number}: it must be a whole number" in capsys.readouterr().err
    for words in (["--grpo.learning_rate", number], [f"--grpo.learning_rate={number}"]):
        assert main(["grpo", "--checkpoint", "c", *words]) == 2
        assert "--grpo.learning_rate" in capsys.readouterr().err


def test_the_version_needs_no_torch() -> None:
    program = "import sys, dropout_grpo; print(dropout_grpo.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" False\n")
