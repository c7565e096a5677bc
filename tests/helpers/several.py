"""Runs a function in several processes, connected by gloo, as ``torchrun`` would start them."""

import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dropout_grpo.cli.main", "dropout_grpo.commands.shared.training", "peft"])


def in_processes(
    count: int,
    work: Callable[..., Any],
    folder: Path,
    *args: Any,
    patience: float = 30.0,
    may_die: bool = False,
    connect: bool = True,
    **options: Any,
) -> list[Any]:
    """Run ``work(*args)`` in ``count`` connected processes; returns the results by rank.

    Args:
        count: number of processes.
        work: a function of a module; what it returns goes through ``torch.save`` of tensors and plain values.
        folder: for the results; replaced.
        *args: arguments of ``work``.
        **options: keyword arguments of ``work``.
        patience: seconds that a process waits for another.
        connect: False leaves it to ``work``, with the launcher's variables.
        may_die: a process that was killed is None in the result; else it fails the test.

    A process that lost another one has the message as its result.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # held by torchrun's agent
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    processes = [
        _CONTEXT.Process(
            target=_run,
            args=(rank, count, store.port, folder / str(rank), patience, connect, partial(work, *args, **options)),
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "a process hangs"
    for rank, process in enumerate(processes):
        error = folder / f"{rank}.error"
        assert may_die or not error.is_file(), error.read_text(encoding="utf-8")
        assert process.exitcode == 0 or may_die, f"rank {rank} ended with {process.exitcode}"
    files = [folder / str(rank) for rank in range(count)]
    return [torch.load(file, weights_only=True) if file.is_file() else None for file in files]


def _run(
    rank: int, count: int, port: int, result: Path, patience: float, connect: bool, work: Callable[[], Any]
) -> None:
    from dropout_grpo.distributed.processes import connected
    from dropout_grpo.errors import LostProcess

    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ.update(place, LOCAL_RANK=str(rank), TORCHELASTIC_USE_AGENT_STORE="True")
    try:
        with connected(timedelta(seconds=patience)) if connect else nullcontext():
            torch.save(work(), result)
    except LostProcess as lost:
        torch.save(str(lost), result)
        result.with_name(f"{rank}.error").write_text(str(lost), encoding="utf-8")
    except BaseException:
        result.with_name(f"{rank}.error").write_text(traceback.format_exc(), encoding="utf-8")
        raise
