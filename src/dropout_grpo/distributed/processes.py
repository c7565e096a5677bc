"""The processes of a run: their ranks, their messages, and their shares of the work.

``torchrun`` and ``accelerate launch`` start the processes and watch them: when one is killed or fails, torchrun's agent
ends the others. torch.distributed connects them. In a run of one process nothing is initialised and every function here
returns its own argument, so callers need no special case.

Messages are small and go through gloo on the CPU, even if gradients go through NCCL. Every step exchanges a message
before it exchanges gradients. Gloo notices at once that another process is gone, so a GPU rarely waits for one.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dropout_grpo.distributed.device import default_device, gpu_identity, local_gpu, require_own_gpus
from dropout_grpo.errors import RESUME, LostProcess, UserError, is_out_of_memory

_T = TypeVar("_T")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one, in gloo and in NCCL."""

_REFUSAL = "dropout-grpo/refusal"  # key of the rendezvous store: the message with which rank 0 ends
_REFUSAL_PATIENCE = timedelta(seconds=3)


def rank() -> int:
    """Number of this process, 0 to ``size() - 1``."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes in the run, the world size."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the process that writes files and prints messages."""
    return rank() == 0


@contextmanager
def connected(patience: timedelta = PATIENCE) -> Iterator[None]:
    """Joins the processes of a launched run inside the block; does nothing in a run of one process, or if they
    are connected.

    If all processes refuse something for the same reason, rank 0 alone raises the UserError; the others exit with
    status 2.

    Args:
        patience: how long a process waits for another one.

    Raises:
        LostProcess: the processes do not meet, or another one is lost.
        UserError: two processes use the same GPU.
    """
    if dist.is_initialized() or not _launched():
        yield
        return
    store = _connect(patience)
    try:
        _require_own_gpus()
        yield
    except UserError as error:
        if _rank_0_tells(store, str(error)):
            raise SystemExit(2) from error
        raise error if is_main() else UserError(f"rank {rank()}: {error}") from error
    dist.destroy_process_group()


def _connect(patience: timedelta) -> dist.Store:
    on_gpu = default_device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local_gpu(torch.cuda.device_count()))
    with waiting_for_others():
        store, number, count = next(dist.rendezvous("env://", timeout=patience))
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=patience)
        dist.barrier()  # so that none ends, with a message of its own, while another one still connects to it
    return store


def _require_own_gpus() -> None:
    if default_device().type == "cuda":
        require_own_gpus(gather(gpu_identity()))


def join() -> None:
    """Join the processes of a launched script until it ends; does nothing where ``connected`` would not.

    Raises:
        LostProcess: the processes do not meet.
        UserError: two processes use the same GPU, or the script has connected them without gloo.
    """
    if not dist.is_initialized() and _launched():
        _connect(PATIENCE)
        atexit.register(_leave)
    elif size() > 1 and dist.is_initialized() and "gloo" not in dist.get_backend_config():
        raise UserError(
            f"torch.distributed was started with {dist.get_backend_config()}, and messages between trainers go through "
            "gloo: make the trainer first, which starts it, or start it with cpu:gloo,cuda:nccl."
        )
    if size() > 1 and dist.is_initialized():
        _require_own_gpus()


def _leave() -> None:
    """Close the connection, unless the script has done so, or has failed: NCCL may then wait for the others."""
    if dist.is_initialized() and not hasattr(sys, "last_value"):
        dist.destroy_process_group()


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def _rank_0_tells(store: dist.Store, message: str) -> bool:
    """Whether this is another process than rank 0, and rank 0 ends with the same message within seconds."""
    if is_main():
        store.set(_REFUSAL, message)
        return False
    try:
        store.wait([_REFUSAL], _REFUSAL_PATIENCE)
        return store.get(_REFUSAL).decode() == message
    except RuntimeError:  # rank 0 continues, or the store is gone
        return False


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """A block in which this process waits for the others.

    Raises:
        LostProcess: a connection failed, or another process did not respond in time.
    """
    try:
        yield
    except RuntimeError as error:  # errors of gloo, NCCL and the store have no other common type
        if isinstance(error, LostProcess) or is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].partition(". ")[0]
        number, count = os.environ.get("RANK", rank()), os.environ.get("WORLD_SIZE", size())
        raise LostProcess(
            f"rank {number} of {count} lost another process, which was killed, has "
            f"failed or does not respond ({reason}). The launcher's report names the process that failed first. "
            f"Continue the run with {RESUME}."
        ) from error


def gather(value: _T) -> list[_T]:
    """The value of every process, by rank; not for tensors on a GPU.

    torch pickles values on their way between the processes of this run. No pickle is ever read from a file.
    """
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with waiting_for_others():
        dist.all_gather_object(values, value)
    return values


def gather_tensors(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors of every process, by rank, on the CPU. Numbers, shapes and dtypes may differ between processes.

    In a run of one process they are returned as they are.
    """
    if size() == 1:
        return [list(tensors)]
    # copies, since pickle sends the whole storage of a view
    return gather([tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for tensor in tensors])


def on_main(work: Callable[[], _T]) -> _T:
    """Call ``work()`` in rank 0 only and return its result in every process.

    Raises:
        UserError: raised in every process if rank 0 raises it.
    """
    if size() == 1:
        return work()
    message: list[Any] = [None, None]  # result, refusal
    if is_main():
        try:
            message[0] = work()
        except UserError as error:
            message[1] = str(error)
    with waiting_for_others():
        dist.broadcast_object_list(message, src=0)
    result, refusal = message
    if refusal is not None:
        raise UserError(refusal)
    return result


def add_up(*values: float) -> list[float]:
    """Each value summed over all processes, in float64."""
    return _reduce(values, dist.ReduceOp.SUM)


def greatest(*values: float) -> list[float]:
    """Each value's maximum over all processes."""
    return _reduce(values, dist.ReduceOp.MAX)


def _reduce(values: Sequence[float], operation: Any) -> list[float]:
    if size() == 1:
        return list(values)
    reduced = torch.tensor(values, dtype=torch.float64)
    with waiting_for_others():
        dist.all_reduce(reduced, operation)
    return reduced.tolist()


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Overwrite the tensors with those of rank 0, so that all processes start from the same bits."""
    if size() == 1:
        return
    with waiting_for_others(), torch.no_grad():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def balanced(costs: Sequence[int], parts: int) -> list[list[int]]:
    """Divide items into ``parts`` shares of about the same cost; return the indices of the items in each share.

    Greedy: items in order of decreasing cost go to the share with the lowest cost so far (Graham 1969; the most
    expensive share costs at most 4/3 of the optimum). A pure function of its arguments, so every process computes the
    same shares.

    Args:
        costs: cost of each item, for example its number of tokens.
        parts: number of shares; some stay empty if there are fewer items.
    """
    shares: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for item in sorted(range(len(costs)), key=lambda i: -costs[i]):
        lightest = loads.index(min(loads))
        shares[lightest].append(item)
        loads[lightest] += costs[item]
    return shares


def imbalance(costs: Sequence[int], shares: Sequence[Sequence[int]]) -> float:
    """Cost of the most expensive share divided by the mean cost: 1 is perfect, ``len(shares)`` means no balance."""
    loads = [sum(costs[i] for i in share) for share in shares]
    total = sum(loads)
    return max(loads) * len(loads) / total if total else 1.0
