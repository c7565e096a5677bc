"""What ``grpo`` leaves for its page: plain answers, those of a few problems under masks, and their thoughts."""

import json
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared import training
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.evaluation.measures import sample
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent.model import LatentModel
from helpers.tiny_latent import tiny_latent, tiny_problems

OPTIONS = (
    *("--grpo.max_steps", "1", "--grpo.prompts_per_step", "2", "--grpo.num_generations", "2", "--bf16", "false"),
    *("--grpo.max_completion_length", "4", "--exploration.p", "0.4", "--evaluation.num_samples", "3"),
    *("--evaluation.max_new_tokens", "4", "--seed", "5", "--grpo.eval_steps", "1"),
)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_first_problems_are_answered_under_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_SAMPLED", 2)
    tiny_latent().save_pretrained(tmp_path / "checkpoint")
    file, run = tmp_path / "valid.json", tmp_path / "run"
    save_problems(file, tiny_problems(4))
    given = ["--checkpoint", str(tmp_path / "checkpoint"), "--run_dir", str(run)]
    data = ["--data.grpo", str(file), "--data.valid", str(file)]
    assert main(["grpo", *given, *data, *OPTIONS]) == 0
    model = LatentModel.from_pretrained(run / "checkpoints" / "grpo")
    problems = load_problems(file, require_steps=False)
    config = EvaluationConfig(num_samples=3, max_new_tokens=4)
    plain = answer_problems(model, problems, EvaluationConfig(num_samples=0, max_new_tokens=4))
    expected = [*answer_problems(model, problems[:2], config, exploration=SharedDropout(0.4), seed=5), *plain[2:]]
    assert lines(run / "samples.jsonl") == json.loads(json.dumps([sample(str(file), a) for a in expected]))
    assert [thought["question"] for thought in lines(run / "thoughts.jsonl")] == [p.question for p in problems[:2]]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "What the thoughts say" in page
    assert "All problems" in page
