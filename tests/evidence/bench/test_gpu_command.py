"""``make gpu`` on a machine without a GPU: the same steps on a CPU with small sizes."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from evidence.bench import arms, gpu, gpu_sizes
from evidence.bench.config import BenchConfig
from evidence.bench.page import block, read_results
from evidence.bench.workload import Workload

SMALL: dict[str, Any] = {"prompt_tokens": 6, "latent_steps": 2, "answer_tokens": 3, "cot_tokens": 2, "repeats": 1}
SMALL |= {"questions": 2, "problems": 2, "num_generations": (2,), "beside": (), "memory": False, "device": "cpu"}
QUICK = BenchConfig(**SMALL, jobs=("rollouts", "evaluation"), bf16=False)
CPU = torch.device("cpu")
WORK = gpu_sizes.Work(questions=3, num_generations=4, latent_steps=2, answer_tokens=3, longest_prompts=(12,))


def tiny_qwen2() -> Qwen2Config:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2Config(vocab_size=200, num_key_value_heads=1, max_position_embeddings=64, **sizes)


def run(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr("sys.argv", ["gpu.py", *options])
    status: int = gpu.main()
    return status


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "has_device", lambda: False)
    assert run(monkeypatch, "--out", str(tmp_path)) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_all_parts_write_their_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = replace(QUICK, jobs=("rollouts",))
    monkeypatch.setattr(gpu, "has_device", lambda: True)
    monkeypatch.setattr(gpu, "gpt2", lambda sweeps: sweep if sweeps else QUICK)
    monkeypatch.setattr(gpu, "Work", lambda: WORK)
    monkeypatch.setattr(gpu_sizes, "SIZES", {"tiny qwen2": tiny_qwen2})
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(Workload, "on_cuda", True)  # an arm more, and a run more before those that are timed
    monkeypatch.setattr(Workload, "synchronize", lambda self: None)
    parts = ["gpu-sizes", "gpt2-cuda", "gpt2-cuda-sweep"]
    assert run(monkeypatch, "--here", "--out", str(tmp_path), "--parts", *parts) == 0
    results = read_results(tmp_path)
    assert set(results) == set(parts)
    cases = results["gpt2-cuda"]["results"]
    for case, names in zip(
        cases, (["engine", "engine_without_masks", arms.STEPS], ["engine", arms.STEPS]), strict=True
    ):
        assert list(case["arms"]) == names
        assert case["arms"]["engine"]["rows_per_second"] > 0
    assert results["gpt2-cuda"]["failed"] == []
    for name in ("gpu-sizes.sizes", "gpt2-cuda.ratios", "gpt2-cuda-sweep.lines"):
        assert "Not measured" not in block(results, name)
    assert "| nothing |" in block(results, "gpu-sizes.sizes")


@pytest.mark.parametrize(
    ("code", "seconds", "said"),
    [
        ("raise SystemExit(0)", 60, None),
        ("raise SystemExit(1)", 60, "part: exit status 1"),
        ("import time; time.sleep(60)", 1, "part: stopped after 1 s; part.json has what was measured until then"),
    ],
    ids=["good", "failed", "too long"],
)
def test_a_part_that_fails_or_hangs_is_named(
    code: str, seconds: int, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = gpu.subprocess.run
    monkeypatch.setattr(
        gpu.subprocess, "run", lambda command, **options: start([sys.executable, "-c", code], **options)
    )
    assert gpu._run("part", gpu.Part("a part", seconds, lambda file: []), tmp_path) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"recorded_same_answers": 0.4}, "recorded answers"),
        ({"recorded_logprob_gap": 0.1}, "recorded log-probs"),
        ({"replay_gap_mean": 0.2}, "replayed log-probs"),
        ({"gradients_not_finite": 3}, "3 gradients"),
    ],
)
def test_what_is_wrong_at_a_size_is_said(change: dict[str, float], said: str) -> None:
    good = {"recorded_same_answers": 1.0, "recorded_logprob_gap": 1e-5, "replay_gap_mean": 0.01}
    good |= {"gradients_not_finite": 0}
    assert list(gpu_sizes._wrong(good)) == []
    (found,) = gpu_sizes._wrong({**good, **change})
    assert found.startswith(said)
