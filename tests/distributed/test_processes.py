"""Processes agree: sums, decisions, results and errors are the same in all of them, and a lost one is noticed."""

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dropout_grpo.distributed import processes, sharding
from dropout_grpo.distributed.gradients import add_up_gradients
from dropout_grpo.errors import UserError
from dropout_grpo.training.optimizer import load_optimizer_tensors, optimizer_tensors
from helpers.several import in_processes


def talk() -> dict[str, Any]:
    """Every kind of message once; each result is checked by the test."""
    rank = processes.rank()
    said: dict[str, Any] = {"rank": rank, "size": processes.size(), "main": processes.is_main()}
    said["sums"] = processes.add_up(1.0, 10.0**rank)
    said["greatest"] = processes.greatest(float(rank), -float(rank))
    said["values"] = processes.gather({"rank": rank, "none": None, "pair": (rank, "é")})
    ragged = [torch.full((rank, 2), float(rank), dtype=torch.float64), torch.tensor(rank), torch.ones(rank) > 0]
    ragged.append(torch.arange(4)[rank % 2 :: 4])  # one element, and a stride that is not 1
    said["tensors"] = processes.gather_tensors(ragged)
    said["nothing"] = processes.gather_tensors([])
    said["main's"] = processes.on_main(lambda: [os.getpid(), rank])
    said["pid"] = os.getpid()

    def refuse() -> None:
        raise UserError("the file is empty")

    try:
        processes.on_main(refuse)
    except UserError as error:
        said["refused"] = str(error)
    start = torch.full((3,), float(rank))
    processes.copy_from_main([start])
    said["copied"] = start
    said["gradients"] = gradients(rank)
    return said


def gradients(rank: int) -> list[torch.Tensor | None]:
    """Three parameters, with gradients in all processes, only in rank 1, and in none; the last has another dtype."""
    shapes = ((2, 3), (4,), (5,), (2,))
    dtypes = (torch.float32, torch.float32, torch.float32, torch.float64)
    parameters = [torch.nn.Parameter(torch.zeros(s, dtype=d)) for s, d in zip(shapes, dtypes, strict=True)]
    parameters[0].grad = torch.full((2, 3), 1.0 + rank)
    if rank == 1:
        parameters[1].grad = torch.arange(4.0)
    parameters[3].grad = torch.full((2,), 1 / 3, dtype=torch.float64)
    add_up_gradients(parameters)
    return [p.grad for p in parameters]


def test_processes_talk(tmp_path: Path) -> None:
    count = 3
    said = in_processes(count, talk, tmp_path / "results")
    ranks = range(count)
    for rank in ranks:
        mine = said[rank]
        assert (mine["rank"], mine["size"], mine["main"]) == (rank, count, rank == 0)
        assert mine["sums"] == [count, sum(10**r for r in ranks)]
        assert mine["greatest"] == [count - 1, 0]
        assert mine["values"] == [{"rank": r, "none": None, "pair": (r, "é")} for r in ranks]
        for r, (matrix, scalar, flags, strided) in enumerate(mine["tensors"]):
            assert torch.equal(matrix, torch.full((r, 2), float(r), dtype=torch.float64))
            assert matrix.shape == (r, 2)
            assert torch.equal(scalar, torch.tensor(r))
            assert strided.tolist() == [r % 2]
            assert torch.equal(flags, torch.ones(r, dtype=torch.bool))
        assert mine["nothing"] == [[] for _ in ranks]
        assert mine["main's"] == [said[0]["pid"], 0]
        assert mine["refused"] == "the file is empty"
        assert torch.equal(mine["copied"], torch.zeros(3))
        everyone, one, none, wide = mine["gradients"]
        assert torch.equal(everyone, torch.full((2, 3), float(sum(1 + r for r in ranks))))
        assert torch.equal(one, torch.arange(4.0))
        assert none is None, "an optimiser must skip what no process has used"
        assert torch.allclose(wide, torch.full((2,), count / 3, dtype=torch.float64), rtol=1e-15)


def test_one_process_needs_no_others() -> None:
    """Without a launcher every message returns its own argument."""
    with processes.connected():
        assert (processes.rank(), processes.size(), processes.is_main()) == (0, 1, True)
        assert processes.add_up(1.5, 2.0) == [1.5, 2.0]
        assert processes.on_main(lambda: Fraction(1, 3)) == Fraction(1, 3)
        assert processes.gather(None) == [None]


def test_a_process_without_a_launcher_is_named_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script may have connected its processes by itself, without torchrun's variables."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(processes.LostProcess, match="rank 0 of 1 lost another process"), processes.waiting_for_others():
        raise RuntimeError("Connection closed by peer")


def save_and_load_shards() -> dict[str, Any]:
    """Adam's state of a sharded model after a step: what is saved, and what a new optimiser gets from it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 6)
    sharding.shard(model)

    def optimizer() -> torch.optim.Optimizer:
        with sharding.as_shards(model):
            return torch.optim.AdamW(model.parameters(), lr=0.1)

    first, second = optimizer(), optimizer()
    torch.nn.functional.linear(torch.ones(2, 4), model.weight, model.bias).square().sum().backward()
    with sharding.updating(model):
        first.step()
    saved = optimizer_tensors(first)
    whole = processes.on_main(lambda: dict(saved))
    load_optimizer_tensors(second, whole.items())
    return {"saved": saved, "again": optimizer_tensors(second)}


def test_a_sharded_state_is_saved_by_rank_0_alone(tmp_path: Path) -> None:
    """Fault: every GPU held the whole state while a checkpoint was written."""
    first, second = in_processes(2, save_and_load_shards, tmp_path / "results")
    assert {name: tensor.shape for name, tensor in first["saved"].items() if name.endswith("exp_avg")} == {
        "0.exp_avg": (6, 4),
        "1.exp_avg": (6,),
    }
    assert {name for name in second["saved"] if not name.endswith("step")} == set()
    for name, tensor in first["saved"].items():
        assert torch.equal(first["again"][name], tensor)
    assert first["saved"]["0.exp_avg"].abs().min() > 0


SHORT = timedelta(seconds=0.3)


def die_or_wait() -> None:
    """Rank 1 is killed; the others wait for it in a sum."""
    processes.add_up(1.0)
    if processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.add_up(1.0)


def fail_or_wait() -> None:
    """Rank 1 fails while the others wait for it."""
    processes._REFUSAL_PATIENCE = SHORT
    if processes.rank() == 1:
        raise UserError("out of memory")
    processes.add_up(1.0)


def late_or_wait() -> None:
    """Rank 1 is alive and does not respond."""
    if processes.rank() == 1:
        time.sleep(1.5)
    processes.add_up(1.0)


@pytest.mark.parametrize("work", [die_or_wait, fail_or_wait])
def test_a_killed_and_a_failed_process_are_noticed(work: Callable[[], None], tmp_path: Path) -> None:
    """By every other one, also by one that does not talk to it directly, within ten seconds."""
    start = time.monotonic()
    said = in_processes(3, work, tmp_path / "results", may_die=True)
    assert time.monotonic() - start < 10
    assert said[1] is None
    for rank in (0, 2):
        assert said[rank].startswith(f"rank {rank} of 3 lost another process"), said[rank]
        assert "--resume true" in said[rank]


def test_a_late_process_is_noticed(tmp_path: Path) -> None:
    said = in_processes(2, late_or_wait, tmp_path / "results", patience=0.5, may_die=True)
    assert said[0].startswith("rank 0 of 2 lost another process")


def refuse(together: bool) -> str:
    """What ``connected`` raises if all processes, or only rank 1, refuse something."""
    if not together:
        processes._REFUSAL_PATIENCE = SHORT
    rank = processes.rank()
    store = dist.distributed_c10d._get_default_store()
    if rank == 0 and not together:
        return "goes on"
    return "told by rank 0" if processes._rank_0_tells(store, "seed: no") else "tells"


@pytest.mark.parametrize(("together", "told"), [(True, ["tells", "told by rank 0"]), (False, ["goes on", "tells"])])
def test_what_all_refuse_is_told_once(together: bool, told: list[str], tmp_path: Path) -> None:
    assert in_processes(2, refuse, tmp_path / "results", together) == told
