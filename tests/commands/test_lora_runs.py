"""Curriculum and GRPO with an adapter, from the command line: train, save, load, merge, continue; and resume."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dropout_grpo.cli.main import main
from dropout_grpo.data.files import save_problems
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.lora.adapter import adapter_off
from helpers.grpo_run import CONFIG, alternating, resumed_like_whole
from helpers.tiny_latent import read_metrics, tiny_problems
from helpers.tiny_lora import said, saved_raw_base, tiny_lora

GRPO = replace(CONFIG, max_steps=4, num_iterations=2, weight_decay=0.01, beta=0.1, save_steps=2)
REWARD = "def reward(prompts, completions, **columns):\n    return [float(i % 2) for i in range(len(completions))]\n"


def common(folder: Path) -> list[str]:
    """Options of every run: files, few steps, a fixed precision, an adapter of rank 2."""
    save_problems(folder / "problems.json", tiny_problems(4, steps=2))
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    options = {
        **{f"data.{split}": folder / "problems.json" for split in ("train", "grpo", "valid")},
        "bf16": "false",
        "lora.r": 2,
        "lora.lora_alpha": 4,
        "curriculum.c_thought": 1,
        "curriculum.max_latent_stage": 1,
        "curriculum.cot_epochs": 1,
        "curriculum.epochs_per_stage": 1,
        "curriculum.final_epochs": 0,
        "curriculum.batch_size": 4,
        "grpo.max_steps": 2,
        "grpo.prompts_per_step": 2,
        "grpo.num_generations": 2,
        "grpo.max_completion_length": 3,
        "grpo.learning_rate": 1e-2,
        "grpo.beta": 0.1,
        "grpo.micro_batch_size": 4,
        "reward_funcs": f"[{folder / 'rewards.py'}:reward]",
        "evaluation.num_samples": 2,
        "evaluation.max_new_tokens": 3,
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.mark.filterwarnings("error")
def test_train_save_merge_continue(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, raw = common(tmp_path), saved_raw_base(tmp_path)
    weights = load_file(raw / "model.safetensors")

    def run(command: str, name: str, *more: str) -> Path:
        assert main([command, *more, *options, "--run_dir", str(tmp_path / name)]) == 0, capsys.readouterr().err
        return tmp_path / name / "checkpoints"

    coconut = run("sft", "sft", "--model.name_or_path", str(raw)) / "coconut"
    steps = [line for line in read_metrics(tmp_path / "sft") if "loss" in line]
    assert len(steps) == 2
    assert (coconut / "adapter_model.safetensors").is_file()
    assert not (coconut / "model.safetensors").exists()
    card = (coconut / "README.md").read_text(encoding="utf-8")
    assert "was trained with Coconut's curriculum" in card
    assert "| problems.json | 4 | 0.0% |" in card  # what the run measured at its end
    assert "dropout-grpo merge CHECKPOINT" in card
    assert "custom_generate" not in card

    # GRPO's reference would be a base without thoughts: refused, with the command that helps.
    grpo = ["grpo", "--checkpoint", str(coconut), *options, "--run_dir", str(tmp_path / "refused")]
    assert main(grpo) == 2
    assert f"dropout-grpo merge {coconut} --out FOLDER" in capsys.readouterr().err.replace("\n", "")
    assert main(["merge", str(coconut), "--out", str(tmp_path / "merged")]) == 0
    merged = LatentModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(said(merged), said(LatentModel.from_pretrained(coconut)), atol=1e-4, rtol=1e-5)

    trained = run("grpo", "grpo", "--checkpoint", str(tmp_path / "merged")) / "grpo"
    kl = [line["kl"] for line in read_metrics(tmp_path / "grpo") if "kl" in line]
    assert kl[0] == 0.0 < kl[1]
    model = LatentModel.from_pretrained(trained)
    assert not torch.allclose(said(model), said(merged), atol=1e-3)
    with adapter_off(model):
        assert torch.equal(said(model), said(merged))

    # The adapter is trained further as it is; the reference stays its base.
    further = run("grpo", "further", "--checkpoint", str(trained)) / "grpo"
    kl = [line["kl"] for line in read_metrics(tmp_path / "further") if "kl" in line]
    assert kl[0] > 0.0
    config = json.loads((further / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tmp_path / "merged")
    with adapter_off(model := LatentModel.from_pretrained(further)):
        assert torch.equal(said(model), said(merged))

    files = f"[{tmp_path / 'problems.json'}]"
    run("eval", "eval", "--checkpoint", str(further), "--files", files)
    assert main(["ask", str(further), "Ann has 3 ?", "--masks", "2", "--max_new_tokens", "3"]) == 0
    now = load_file(raw / "model.safetensors")
    assert all(torch.equal(now[name], weights[name]) for name in weights)


def test_an_adapter_from_scratch_is_refused_before_a_run_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("sft", "demo"):
        assert main([command, *common(tmp_path), "--run_dir", str(tmp_path / "run")]) == 2
        assert "give model.name_or_path" in capsys.readouterr().err
    adapter = tmp_path / "adapter"
    tiny_lora(tmp_path).save_pretrained(adapter)
    assert main(["sft", *common(tmp_path), "--model.name_or_path", str(adapter), "--run_dir", str(tmp_path / "r")]) == 2
    assert "is an adapter: merge it first" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_grpo_that_goes_on_is_grpo_that_never_stopped(tmp_path: Path) -> None:
    """A new process starts from the base with a fresh adapter."""
    resumed_like_whole(
        tmp_path, GRPO, lambda: {"model": tiny_lora(tmp_path / "base", "llama"), "reward_funcs": [alternating]}
    )
