"""What the demo says at its end: every command it prints can be run."""

import shlex
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.jobs.demo import what_next
from dropout_grpo.problems.files import save_problems
from helpers.tiny_latent import tiny_latent, tiny_problems


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/dropout-grpo", "demo"])
    run = tmp_path / "demo"
    tiny_latent().save_pretrained(run / "checkpoints" / "dropout_grpo")
    (run / "data").mkdir()
    save_problems(run / "data" / "test.json", tiny_problems(2))
    text = what_next(run, str(run / "report.html"), "Ann has 3 ?")
    assert text.startswith(f"report: {run}/report.html\n")
    assert f"file://{run}/report.html" in text
    lines = [line.partition(":  ")[2].strip() for line in text.splitlines() if "/bin/dropout-grpo" in line]
    commands = [shlex.split(line) for line in lines]
    assert commands
    assert [words[1] for words in commands] == ["ask", "eval", "inspect"]
    for words in commands:
        short = {"ask": ["--max_new_tokens", "4"], "eval": ["--evaluation.num_samples", "2"]}.get(words[1], [])
        assert main([*words[1:], *short]) == 0
