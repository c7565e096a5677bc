"""The same training with 1, 2 and 4 processes, weights replicated or sharded: one result."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.several import in_processes
from helpers.tiny_latent import read_metrics
from helpers.world_size import (
    answers,
    asked_to_stop,
    differing,
    killed,
    refused,
    stopped_by_callbacks,
    train,
    train_all,
    with_faults,
)

CASES: dict[str, dict[str, Any]] = {
    "grpo": {"part": "grpo", "num_iterations": 2},
    "grpo, one mixed group": {"part": "grpo", "reward": "first_group_alone"},
    "grpo, no mixed group": {"part": "grpo", "reward": "nobody"},
    "grpo, dynamic sampling and KL": {"part": "grpo", "dynamic_sampling_max_gen_batches": 2, "beta": 0.1},
    "sft": {"part": "sft"},
    "sft, muon": {"part": "sft", "optimizer": "muon"},
    "sft, float32": {"part": "sft", "dtype": "float32"},
}
SHARDED = {f"{name}, sharded": {**case, "fsdp": True} for name, case in CASES.items() if "muon" not in name}
SHARDED["llama, sharded"] = {"part": "sft", "kind": "llama_tied", "fsdp": True, "gradient_checkpointing": True}
SHARDED["grpo, dynamic sampling and KL, sharded"]["gradient_checkpointing"] = True
SHARDED["sft, sharded"]["pieces"] = SHARDED["llama, sharded"]["pieces"] = 7
SINGLE = {**CASES, "llama": {"part": "sft", "kind": "llama_tied"}}
OWN = ("rollout_time", "step_time", "seconds", "replay/imbalance")


def ends_with(run: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """Metrics without those that depend on the machine, and tensors of the last checkpoint by file and name."""
    metrics = [{name: value for name, value in line.items() if name not in OWN} for line in read_metrics(run)]
    last = max((run / "checkpoints").glob("*-step-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    files = ("model.safetensors", "optimizer.safetensors")
    return metrics, {f"{f} {name}": tensor for f in files for name, tensor in load_file(last / f).items()}


def difference(a: Path, b: Path, *, without: str = "nothing") -> float:
    """Largest difference of any weight, optimiser state or metric, but for tensors with this word in their names."""
    (metrics, tensors), (other_metrics, other_tensors) = ends_with(a), ends_with(b)
    assert tensors.keys() == other_tensors.keys()
    names = [name for name in tensors if without not in name]
    worst = max(float((tensors[name].double() - other_tensors[name].double()).abs().max()) for name in names)
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


ALL = {**CASES, **SHARDED}
TWO = (
    *("grpo", "grpo, one mixed group", "grpo, dynamic sampling and KL", "sft, muon", "sft, float32"),
    *("grpo, sharded", "grpo, no mixed group, sharded", "sft, sharded", "llama, sharded"),
)
FOUR = ("grpo, one mixed group", "sft", "grpo, dynamic sampling and KL, sharded", "llama, sharded")


@pytest.mark.parametrize(("count", "names"), [(2, TWO), pytest.param(4, FOUR, marks=pytest.mark.slow)])
def test_every_world_size_gives_the_same_update(
    count: int, names: tuple[str, ...], single: Path, tmp_path: Path
) -> None:
    in_processes(count, train_all, tmp_path / "results", tmp_path, {name: ALL[name] for name in names})
    for name in names:
        one = single / name.removesuffix(", sharded")
        if "float32" in name:  # the gradient of a key bias is 0 but for rounding, and AdamW makes whole steps of it
            assert difference(one, tmp_path / name, without="c_attn.bias") < 1e-5, name
        else:
            assert difference(one, tmp_path / name) < 1e-10, name
        shares = [line["replay/imbalance"] for line in read_metrics(tmp_path / name) if "replay/imbalance" in line]
        assert all(1 <= share <= count for share in shares)
        if name == "grpo, one mixed group":
            assert shares == [count] * 3


def test_evaluation_is_shared_out_and_every_process_has_all_answers(tmp_path: Path) -> None:
    one = answers()
    assert [each["problem"]["id"] for each in one] == list(range(7))
    assert len({each["samples"] for each in one}) > 1
    assert in_processes(2, answers, tmp_path / "results") == [one, one]


def test_faults_are_noticed(single: Path, tmp_path: Path) -> None:
    """The comparison sees gradients that are averaged, and seeds that depend on the rank."""
    in_processes(2, with_faults, tmp_path / "results", tmp_path, CASES["grpo"])
    for fault in ("averaged", "by_rank"):
        assert difference(single / "grpo", tmp_path / fault) > 1e-6, fault


LONG: dict[str, Any] = {"part": "grpo", "num_iterations": 2, "save_steps": 1}


def test_a_killed_run_resumes_with_any_number_of_processes(single: Path, tmp_path: Path) -> None:
    """Two processes with sharded weights; one is killed, and the other one ends; one process, or two, end the run."""
    said = in_processes(2, killed, tmp_path / "results", tmp_path / "a", {**LONG, "fsdp": True}, may_die=True)
    assert said[1] is None
    assert said[0].startswith("rank 0 of 2 lost another process")
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1]
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    train(tmp_path / "a", LONG, resume=True)
    in_processes(2, train, tmp_path / "results", tmp_path / "b", {**LONG, "fsdp": True}, resume=True)
    for run in ("a", "b"):
        assert [line["step"] for line in read_metrics(tmp_path / run)] == [1, 2, 3]
        assert difference(single / "grpo", tmp_path / run) < 1e-10
    in_processes(2, train, tmp_path / "results", tmp_path / "c", {**LONG, "fsdp": True})
    assert difference(tmp_path / "b", tmp_path / "c") == 0, "on the same number of processes, bit for bit"


def test_one_process_is_asked_to_stop_and_all_stop_after_the_same_step(single: Path, tmp_path: Path) -> None:
    said = in_processes(2, asked_to_stop, tmp_path / "results", tmp_path / "a", {**LONG, "save_steps": 0})
    assert said == [143, 143]
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1, 2]
    train(tmp_path / "a", {**LONG, "save_steps": 3}, resume=True)
    assert difference(single / "grpo", tmp_path / "a") < 1e-10


def test_what_one_process_asks_for_all_do(tmp_path: Path) -> None:
    """Fault: the others waited for it, or it for them, until all gave up."""
    case = {"part": "grpo", "save_steps": 0}
    said = in_processes(2, stopped_by_callbacks, tmp_path / "results", tmp_path / "run", case)
    assert said == [["grpo-step-1", "grpo-step-2"]] * 2
    assert [line["step"] for line in read_metrics(tmp_path / "run")] == [1, 2]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 0.5}, r"learning_rate is .* in rank 0 and 0\.5 in rank 1"),
    ({"seed": 3}, r"seed is 2 in rank 0 and 3 in rank 1"),
    ({"p": 0.3}, r"exploration\.p is 0\.2 in rank 0 and 0\.3 in rank 1"),
    ({"reward": "nobody"}, r"reward_funcs is \['digits'\] in rank 0 and \['nobody'\] in rank 1"),
    ({"weights": 1}, r"the content of model, by its SHA-256, is \w+ in rank 0 and \w+ in rank 1"),
]


def test_processes_that_were_started_differently_are_told(tmp_path: Path) -> None:
    """Fault: they trained on, each with its own option, and ended with different weights."""
    changes = [change for change, _ in REFUSED]
    for told in in_processes(2, differing, tmp_path / "results", tmp_path / "runs", changes):
        for message, (_, what) in zip(told, REFUSED, strict=True):
            assert re.search(rf"started differently: {what}", message)


def test_muon_refuses_shards(tmp_path: Path) -> None:
    """It makes the singular values of a whole matrix equal; on shards its result is another one."""
    both = [{"part": "sft", "optimizer": "muon", "fsdp": True}]
    (told,) = in_processes(2, refused, tmp_path / "results", tmp_path / "runs", both)[0]
    assert "leave one of them out" in told
