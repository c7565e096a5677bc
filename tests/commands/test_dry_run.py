"""``--dry_run`` of sft and grpo: the memory plan of a folder without weights is that of the model with them."""

import json
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.data.rewards import exact_answer
from dropout_grpo.rl.trainer import GRPOTrainer
from helpers.tiny_latent import tiny_latent, tiny_problems
from helpers.tiny_lora import LORA, tiny_lora_on_raw

SFT = {"batch_size": 4, "c_thought": 1, "max_latent_stage": 2}
GRPO = {"prompts_per_step": 2, "num_generations": 4, "max_completion_length": 3}


@pytest.mark.parametrize("command", ["sft", "grpo", "grpo with an adapter"])
def test_the_plan_needs_no_weights(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, _, adapter = command.partition(" ")
    model, problems = (
        tiny_lora_on_raw(tmp_path, "llama") if adapter else tiny_latent("llama"),
        tiny_problems(4, steps=2),
    )
    folder, data, run = tmp_path / "model", tmp_path / "problems.json", tmp_path / "run"
    model.save_pretrained(folder)
    for file in tmp_path.glob("**/*.safetensors"):
        file.unlink()
    rows = [{"question": p.question, "steps": list(p.steps), "answer": p.answer} for p in problems]
    data.write_text(json.dumps(rows))
    if command == "sft":
        options = [f"--model.name_or_path={folder}", f"--data.train={data}"]
        options += [f"--curriculum.{name}={value}" for name, value in SFT.items()]
        expected = CurriculumTrainer(model, CurriculumConfig(**SFT), problems, run, problems).dry_run()
    else:
        options = [f"--checkpoint={folder}", f"--data.grpo={data}"]
        options += [f"--grpo.{name}={value}" for name, value in GRPO.items()]
        expected = GRPOTrainer(model, exact_answer, GRPOConfig(**GRPO), problems, problems, run=run).dry_run()
    assert main([command, "--dry_run", "--bf16=false", f"--data.valid={data}", f"--run_dir={run}", *options]) == 0
    table = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    for name, size in expected.parts.items():
        assert float(table[name].split()[0]) == pytest.approx(size / 1e9, abs=0.01), name
    assert not run.exists()


def test_another_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_lora_on_raw(tmp_path, "llama").save_pretrained(tmp_path / "model")
    data = tmp_path / "problems.json"
    data.write_text(json.dumps([{"question": p.question, "answer": p.answer} for p in tiny_problems(4)]))
    words = ["grpo", "--dry_run", f"--checkpoint={tmp_path / 'model'}", f"--data.grpo={data}", f"--data.valid={data}"]
    words += [f"--grpo.{name}={value}" for name, value in GRPO.items()]
    assert main([*words, f"--lora.r={LORA.r}", f"--lora.lora_alpha={LORA.lora_alpha}"]) == 0
    assert main([*words, "--lora.r=3"]) == 2
    assert "is an adapter already, with r=2, lora_alpha=4 and target_modules" in capsys.readouterr().err
