"""The same training with 1, 2 and 4 processes, weights replicated or sharded: one result."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.several import in_processes
from helpers.tiny_latent import read_metrics
from helpers.world_size import train_all

CASES: dict[str, dict[str, Any]] = {
    "grpo": {"part": "grpo", "num_iterations": 2},
    "grpo, one mixed group": {"part": "grpo", "reward": "first_group_alone"},
    "grpo, no mixed group": {"part": "grpo", "reward": "nobody"},
    "grpo, dynamic sampling and KL": {"part": "grpo", "dynamic_sampling_max_gen_batches": 2, "beta": 0.1},
    "sft": {"part": "sft"},
}
SHARDED = {f"{name}, sharded": {**case, "fsdp": True} for name, case in CASES.items()}
SHARDED["llama, sharded"] = {"part": "sft", "kind": "llama_tied", "fsdp": True}
SINGLE = {**CASES, "llama": {"part": "sft", "kind": "llama_tied"}}
OWN = ("rollout_time", "step_time", "seconds", "replay/imbalance")


def ends_with(run: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Metrics without those that depend on the machine, and tensors of the last checkpoint by file and name."""
    metrics = [{name: value for name, value in line.items() if name not in OWN} for line in read_metrics(run)]
    last = max((run / "checkpoints").glob("*-step-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    files = ("model.safetensors", "optimizer.safetensors")
    return metrics, {f"{f} {name}": tensor for f in files for name, tensor in load_file(last / f).items()}


def difference(a: Path, b: Path) -> float:
    """Largest difference of any weight, optimiser state or metric."""
    (metrics, tensors), (other_metrics, other_tensors) = ends_with(a), ends_with(b)
    assert tensors.keys() == other_tensors.keys()
    worst = max(float((tensors[name].double() - other_tensors[name].double()).abs().max()) for name in tensors)
    for line, other in zip(metrics, other_metrics, strict=True):
        assert line.keys() == other.keys()
        numbers = [name for name in line if name != "part"]
        worst = max(worst, *(abs(line[name] - other[name]) for name in numbers))
    return worst


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases in one process."""
    folder = tmp_path_factory.mktemp("single")
    train_all(folder, SINGLE)
    return folder


@pytest.mark.parametrize("count", [2, 4])
def test_every_world_size_gives_the_same_update(count: int, single: Path, tmp_path: Path) -> None:
    in_processes(count, train_all, tmp_path / "results", tmp_path, {**CASES, **SHARDED})
    for name in {**CASES, **SHARDED}:
        assert difference(single / name.removesuffix(", sharded"), tmp_path / name) < 1e-10, name
        shares = [line["replay/imbalance"] for line in read_metrics(tmp_path / name) if "replay/imbalance" in line]
        assert all(1 <= share <= count for share in shares)
        if name == "grpo, one mixed group":
            assert shares == [count] * 3
