"""``make gpu`` on a machine without a GPU: the same steps on a CPU with small sizes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.evidence.bench import arms
from dropout_grpo.evidence.bench.config import BenchConfig, resolve
from dropout_grpo.evidence.bench.page import block
from dropout_grpo.evidence.bench.workload import Workload
from dropout_grpo.evidence.studies import gpu

SMALL: dict[str, Any] = {"prompt_tokens": 6, "latent_steps": 2, "answer_tokens": 3, "cot_tokens": 2, "repeats": 1}
SMALL |= {"questions": 2, "problems": 2, "num_generations": (2,), "beside": (), "memory": False, "device": "cpu"}
QUICK = BenchConfig(**SMALL, jobs=("rollouts", "evaluation"), bf16=False)


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


@pytest.mark.parametrize(
    ("failed", "passed", "status"), [([], 5, 0), (["tests/a.py::b"], 5, 1), ([], 0, 1)], ids=["good", "bad", "none"]
)
def test_all_parts_write_their_results(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    failed: list[str],
    passed: int,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep = replace(QUICK, jobs=("rollouts",), axes=("num_generations",))
    monkeypatch.setattr(gpu, "has_device", lambda: True)
    monkeypatch.setattr(gpu, "benchmarks", lambda: {"gpt2-cuda": (QUICK, False), "gpt2-cuda-sweep": (sweep, True)})
    outcome = {"kind": "tests", "passed": passed, "skipped": 0, "failed": failed, "machine": {"gpu": "Some GPU"}}
    monkeypatch.setattr(gpu, "run_tests", lambda: {**outcome, "versions": {"torch": "2"}, "commit": "abc"})
    monkeypatch.setattr(Workload, "on_cuda", True)  # an arm more, and a run more before those that are timed
    monkeypatch.setattr(Workload, "synchronize", lambda self: None)
    assert run(monkeypatch, "--out", str(tmp_path)) == status
    results = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("*.json")}
    assert set(results) == {"gpu-tests", *(part for part in gpu.PARTS if part != "tests")}
    cases = results["gpt2-cuda"]["results"]
    for case, names in zip(
        cases, (["engine", "engine_without_masks", arms.STEPS], ["engine", arms.STEPS]), strict=True
    ):
        assert list(case["arms"]) == names
        assert case["arms"]["engine"]["rows_per_second"] > 0
    assert results["gpt2-cuda"]["attention"]["cpu"] in ("products", "sdpa")
    for name in ("gpu-tests.tests", "gpt2-cuda.ratios", "gpt2-cuda-sweep.lines"):
        assert "Not measured" not in block(results, name)
    assert "engine, no graphs" in capsys.readouterr().out


def test_its_batches_fill_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # a config for CUDA is refused where there is none
    config, sweep = gpu.benchmarks()["gpt2-cuda"]
    assert (config.size, config.device, sweep) == ("gpt2", "cuda", False)
    assert resolve(replace(config, device="cpu", bf16=True), 32).rows("rollouts") == 4096
    assert gpu.benchmarks()["gpt2-cuda-sweep"][1]
