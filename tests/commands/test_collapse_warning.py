"""A GRPO run that has lost what it could do is not reported as if nothing had happened."""

from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared.training import has_collapsed
from dropout_grpo.data.files import save_problems
from helpers.tiny_latent import tiny_latent, tiny_problems


def lines(*steps: tuple[float, float, float]) -> list[dict[str, Any]]:
    return [{"reward": reward, "grad_norm": norm, "entropy": entropy} for reward, norm, entropy in steps]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (lines((0.4, 0.5, 1.0), (0.3, 0.9, 0.5), (0.1, 0.0, 0.0), (0.0, 0.0, 0.0)), True),
        (lines((0.4, 0.5, 1.0), (1.0, 0.0, 0.0)), False),  # everything is right
        (lines((0.4, 0.5, 1.0), (0.0, 0.9, 0.0)), False),  # there is a gradient
        (lines((0.4, 0.5, 1.0), (0.4, 0.0, 0.1)), False),  # answers still differ
        (lines((0.4, 0.0, 1.0), (0.0, 0.0, 0.0)), False),  # there was nothing to learn from
        (lines((0.4, 0.5, 1.0)), False),
        ([], False),
    ],
)
def test_what_a_collapse_is(metrics: list[dict[str, Any]], expected: bool) -> None:
    assert has_collapsed(metrics) is expected


REWARD = """
def one_digit(prompts, completions, **columns):
    return [float(sum(word.isdigit() for word in text.split()) == 1) for text in completions]
"""


def test_a_learning_rate_of_a_thousand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with a warning, or at weights that are not finite."""
    tiny_latent().save_pretrained(tmp_path / "checkpoint")
    save_problems(tmp_path / "problems.json", tiny_problems(4))
    (tmp_path / "own.py").write_text(REWARD)
    file = str(tmp_path / "problems.json")
    words = ["--checkpoint", str(tmp_path / "checkpoint"), "--data.grpo", file, "--data.valid", file, "--bf16", "false"]
    words += ["--reward_funcs", f"[{tmp_path / 'own.py'}:one_digit]", "--run_dir", str(tmp_path / "run")]
    grpo = {"max_steps": 8, "prompts_per_step": 4, "num_generations": 4, "max_completion_length": 3}
    words += [word for name, value in grpo.items() for word in (f"--grpo.{name}", str(value))]
    words += ["--grpo.learning_rate", "1e3", "--grpo.lr_scheduler_type", "constant"]
    status = main(["grpo", *words])
    told = capsys.readouterr().err
    assert status == 2 or "warning: grpo has collapsed" in told
