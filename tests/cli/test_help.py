"""``--help``: the options that a command uses, with their ranges; a recipe may hold those of other commands."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch

import dropout_grpo
from dropout_grpo.cli.main import main
from dropout_grpo.cli.parser import build_parser, commands
from dropout_grpo.distributed.device import choose_device, default_device
from dropout_grpo.errors import UserError
from helpers.tiny_latent import tiny_latent


def shown(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("command", "used", "unused"),
    [
        ("demo", ["curriculum.batch_size", "grpo.beta", "model.n_embd", "reward_funcs", "data.test"], []),
        (
            "sft",
            ["curriculum.batch_size", "model.n_embd", "lora.r", "data.train", "evaluation.max_new_tokens", "report_to"],
            ["grpo", "grpo.beta", "reward_funcs", "data.grpo", "data.test", "exploration.p", "evaluation.num_samples"],
        ),
        (
            "grpo",
            [
                "grpo.beta",
                "reward_funcs",
                "data.grpo",
                "data.valid",
                "data.prosqa.seed",
                "lora.r",
                "evaluation.temperature",
            ],
            ["curriculum.batch_size", "model.n_embd", "data.train", "data.test"],
        ),
        (
            "eval",
            ["evaluation.num_samples", "exploration.p", "data.columns.question", "seed", "bf16", "run_dir", "files"],
            ["curriculum.batch_size", "grpo.beta", "model.n_embd", "lora.r", "data.train", "data.task", "report_to"],
        ),
    ],
)
def test_only_what_a_command_uses_is_shown(
    command: str, used: list[str], unused: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = shown(command, capsys)
    assert [name for name in used if f" --{name} " not in text] == []
    assert [name for name in unused if f" --{name} " in text] == []


def test_every_unused_option_exists() -> None:
    _, parsers = build_parser()
    for name, command in commands().items():
        options = {action.dest for action in parsers[name]._actions}
        assert set(getattr(command, "UNUSED", ())) <= options


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"dropout-grpo {dropout_grpo.__version__}\n"


def test_without_words_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "(required)" not in said
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == ["demo", "data", "sft", "grpo", "eval", "compare", "ask", "inspect", "merge", "push", "report"]


def test_common_options_come_first_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown("grpo", capsys)
    assert text.startswith("usage: dropout-grpo grpo [options] ")
    first = text.index("common options:")
    assert first < text.index("--checkpoint ") < text.index("--grpo.max_steps ") < text.index("--grpo.epsilon ")
    assert text.count("--grpo.max_steps ") == 1
    assert shown("eval", capsys).count("latent_steps ") == 1, "evaluation.latent_steps is the same option"


@pytest.mark.parametrize(("command", "default"), [("demo", "4)"), ("grpo", "8)")])
def test_the_demo_shows_its_own_defaults(command: str, default: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(command, capsys)
    assert text[text.index("--grpo.num_generations ") :].partition("default: ")[2].startswith(default)


def test_ranges_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "at least 0 and at most 1024. (type: int, default: 8)" in shown("ask", capsys)
    assert "at least 0 and below 1. (type: float, default: 0.1)" in shown("eval", capsys)


@pytest.mark.parametrize("command", ["sft", "grpo", "eval"])
def test_a_recipe_of_all_commands_is_accepted_and_an_unknown_option_is_not(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = {"sft": [], "grpo": ["--checkpoint", "c"], "eval": ["--checkpoint", "c", "--files", "[a.json]"]}[command]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "curriculum: {batch_size: 3}\ngrpo: {beta: 0.5}\nreward_funcs: [a:b]\nlora: {r: 2}\n"
        "evaluation: {max_new_tokens: 3}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main([command, *needed, "--recipe", str(recipe), "--print_config"])
    assert ended.value.code == 0
    assert "max_new_tokens: 3" in capsys.readouterr().out
    recipe.write_text("curriculum: {batch_sise: 3}\n")
    assert main([command, *needed, "--recipe", str(recipe)]) == 2
    assert "did you mean 'curriculum.batch_size'?" in capsys.readouterr().err


def test_questions_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_latent(latent_steps=2).save_pretrained(tmp_path)
    checkpoint = tmp_path
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
