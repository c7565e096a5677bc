"""The rank of this process in a run, and communication between the processes.

``torchrun`` and ``accelerate launch`` start the processes; torch.distributed connects them. In a run of one process
nothing is initialised and every function here returns its own argument, so callers need no special case.

Messages are small and go through gloo on the CPU, even if gradients go through NCCL. Every step exchanges a message
before it exchanges gradients. Gloo detects at once that another process has been killed, so a GPU never waits for a
process that is gone.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dropout_grpo.distributed.device import default_device, gpu_identity, local_gpu, require_own_gpus
from dropout_grpo.errors import RESUME, LostProcess, UserError, is_out_of_memory

_T = TypeVar("_T")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one that is alive but does not respond."""

START = timedelta(minutes=5)
"""How long a process waits for another one that it has not heard of yet."""

_PULSE_SECONDS = 0.5
_MISSED_PULSES = 6  # after so many missed pulses a process counts as gone
_BUCKET = 2**25  # elements of gradient in one all-reduce


def rank() -> int:
    """Number of this process, 0 to ``size() - 1``."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes in the run, the world size."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the process that writes files and prints messages."""
    return rank() == 0


def launched() -> bool:
    """Whether ``torchrun`` or ``accelerate launch`` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def connected(patience: timedelta = PATIENCE) -> Iterator[None]:
    """Joins the processes of a launched run inside the block; does nothing in a run of one process, or if it has.

    Args:
        patience: how long a process waits for another one that is alive but does not respond.

    Raises:
        LostProcess: another process is gone, or the processes do not meet within :data:`START`.
        UserError: two processes use the same GPU.
    """
    if dist.is_initialized() or not launched():
        yield
        return
    global _pulse
    try:
        store, number, count = next(dist.rendezvous("env://", timeout=START))
        store.set_timeout(patience)
        _pulse = _Pulse(dist.PrefixStore("pulse", store.clone()), number, count)
    except RuntimeError as error:  # errors of the store have no other common type
        raise LostProcess(_cannot_meet(error)) from error
    on_gpu = default_device().type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local_gpu(torch.cuda.device_count()))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    joined = threading.Event()
    threading.Thread(target=_pulse.watch, args=(joined,), daemon=True).start()
    try:
        with others():
            dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=patience)
            dist.barrier()
        joined.set()
        if on_gpu:
            require_own_gpus(gather_json(gpu_identity()))
        yield
    except UserError as error:
        _pulse.end(str(error))
        if number == 0:
            raise
        if _pulse.main_says(str(error)):
            raise SystemExit(2) from error  # only one process prints the message
        raise UserError(f"rank {number}: {error}") from error
    except BaseException as error:
        _pulse.end(str(error) or type(error).__name__, is_cause=not isinstance(error, LostProcess))
        raise
    else:
        _pulse.end("it has finished")
        dist.destroy_process_group()
    finally:
        joined.set()
        _pulse = None


@contextmanager
def others() -> Iterator[None]:
    """A block in which this process waits for the others.

    Raises:
        LostProcess: names the ranks that are gone, or did not respond in time.
    """
    if _pulse is not None:
        _pulse.meetings += 1
    try:
        yield
    except RuntimeError as error:  # errors of gloo, NCCL and the store have no other common type
        if _pulse is None or isinstance(error, LostProcess) or is_out_of_memory(error):
            raise
        raise LostProcess(_pulse.blame(error)) from error


class _Pulse:
    """A thread that tells the rendezvous store once a second that this process is alive.

    Args:
        store: a separate connection to the store.
        number: rank of this process.
        count: number of processes.
    """

    def __init__(self, store: dist.Store, number: int, count: int) -> None:
        self._store, self._number, self._count = store, number, count
        self.meetings = 0  # how often this process has waited for the others
        self._beats = 0
        self._ended = threading.Event()
        self._beat()
        threading.Thread(target=self._keep_beating, daemon=True).start()

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(str(self._number), json.dumps([self._beats, self.meetings]))

    def _keep_beating(self) -> None:
        try:
            while not self._ended.wait(_PULSE_SECONDS):
                self._beat()
        except RuntimeError:  # the store is gone; the next message between processes reports it
            return

    def watch(self, joined: threading.Event) -> None:
        """End this process if another one is gone while they connect, because connecting cannot be interrupted.

        A process that was killed before its first pulse is missed after :data:`START`.

        Args:
            joined: set when all processes are connected.
        """
        silent: dict[int, int] = {}  # checks in a row without a new pulse, by rank
        seen: dict[int, bytes] = {}
        deadline = time.monotonic() + START.total_seconds()
        while not joined.wait(_MISSED_PULSES * _PULSE_SECONDS):
            absent = []
            try:
                for rank in range(self._count):
                    if rank == self._number:
                        continue
                    if not self._store.check([str(rank)]):
                        absent.append(rank)
                        continue
                    beat = self._store.get(str(rank))
                    silent[rank] = silent.get(rank, 0) + 1 if seen.get(rank) == beat else 0
                    seen[rank] = beat
            except RuntimeError:
                _leave(f"lost {_store_holder(self._count)} while the processes connected: not reachable", joined)
                return
            if gone := [rank for rank, checks in silent.items() if checks >= 2]:
                _leave(
                    f"lost rank {_numbers(gone)} of {self._count} while the processes connected: killed, or not "
                    "reachable",
                    joined,
                )
            if absent and time.monotonic() > deadline:
                seconds = START.total_seconds()
                _leave(f"rank {_numbers(absent)} of {self._count} has not started within {seconds:.0f} seconds", joined)

    def end(self, reason: str, *, is_cause: bool = True) -> None:
        """Stop, and store the reason for the other processes.

        Args:
            reason: why this process ends.
            is_cause: False if it ends only because another process did.
        """
        self._ended.set()
        try:
            self._store.set(f"end {self._number}", json.dumps([is_cause, reason]))
        except RuntimeError:  # the store is gone, and with it the process that held it
            return

    def main_says(self, reason: str) -> bool:
        """Whether rank 0 ends for the same reason within a second or two."""
        try:
            self._store.wait(["end 0"], timedelta(seconds=_MISSED_PULSES * _PULSE_SECONDS))
            return json.loads(self._store.get("end 0"))[1] == reason
        except RuntimeError:  # rank 0 continues, or is gone
            return False

    def blame(self, error: RuntimeError) -> str:
        """A message that names the ranks that did not respond."""
        remedy = f"The other processes stop; continue the run with {RESUME}."
        of = f"of {self._count}"
        try:
            before = self._read()
            deadline = time.monotonic() + _MISSED_PULSES * _PULSE_SECONDS
            while not (ended := self._causes()) and time.monotonic() < deadline:
                time.sleep(_PULSE_SECONDS / 4)
            if ended:
                return " ".join(f"rank {r} {of} has stopped: {reason}" for r, reason in ended.items()) + f" {remedy}"
            after = self._read()
        except RuntimeError:  # the store is gone
            return f"lost {_store_holder(self._count)}: not reachable. {remedy}"
        others = [r for r in range(self._count) if r != self._number]
        if silent := [r for r in others if after[r] == before[r] and not self._store.check([f"end {r}"])]:
            return f"lost rank {_numbers(silent)} {of}: killed, or not reachable. {remedy}"
        if late := [r for r in others if after[r][1] < self.meetings]:
            return f"lost rank {_numbers(late)} {of}: alive, but did not respond in time. {remedy}"
        return f"the connection between the processes failed: {error} {remedy}"

    def _causes(self) -> dict[int, str]:
        """Reasons of the processes that did not end because of another one, by rank."""
        found = [r for r in range(self._count) if r != self._number and self._store.check([f"end {r}"])]
        ends = {r: json.loads(self._store.get(f"end {r}")) for r in found}
        return {r: reason for r, (is_cause, reason) in ends.items() if is_cause}

    def _read(self) -> list[list[int]]:
        return [json.loads(self._store.get(str(r))) for r in range(self._count)]


_pulse: _Pulse | None = None


def _leave(message: str, joined: threading.Event) -> None:
    """End this process with a message, unless it has connected in the meantime."""
    if not joined.is_set():
        print(f"dropout-grpo: error: {message}. Start the command again.", file=sys.stderr, flush=True)
        os._exit(1)


def _store_holder(count: int) -> str:
    """The process that holds the rendezvous store: torchrun's agent on the first node, or else rank 0."""
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return "the first node" if agent else f"rank 0 of {count}"


def _cannot_meet(error: RuntimeError) -> str:
    """A message for a rendezvous that failed, with torch's reason on one line."""
    count, address = os.environ["WORLD_SIZE"], f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return (
        f"the {count} processes could not meet at {address} (MASTER_ADDR, MASTER_PORT): {str(error).splitlines()[0]} "
        "Check that every process has started, that the port is free and that no firewall is between the nodes. Then "
        "start the command again."
    )


def _numbers(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def gather_tensors(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors of every process, by rank. Their number, shapes and dtypes may differ between processes."""
    if size() == 1:
        return [list(tensors)]
    headers = gather_json([[str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for tensor in tensors])
    flat = [_bytes(tensor) for tensor in tensors]
    gathered = []
    for header, data in zip(headers, _gather_bytes(torch.cat(flat) if flat else _no_bytes()), strict=True):
        dtypes = [getattr(torch, name) for name, _ in header]
        counts = [torch.Size(shape).numel() * dtype.itemsize for dtype, (_, shape) in zip(dtypes, header, strict=True)]
        pieces = zip(data.split(counts), dtypes, header, strict=True) if header else ()
        gathered.append([piece.clone().view(dtype).view(shape) for piece, dtype, (_, shape) in pieces])
    return gathered


def gather_json(value: Any) -> list[Any]:
    """The value of every process, by rank; anything that JSON can hold."""
    if size() == 1:
        return [value]
    data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    return [json.loads(piece.numpy().tobytes()) for piece in _gather_bytes(data)]


def _bytes(tensor: Tensor) -> Tensor:
    whole = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
    return whole.view(torch.uint8)


def _no_bytes() -> Tensor:
    return torch.zeros(0, dtype=torch.uint8)


def _gather_bytes(data: Tensor) -> list[Tensor]:
    with others():
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size())]
        dist.all_gather(lengths, torch.tensor([len(data)]))
        counts = [int(length) for length in lengths]
        padded = nn.functional.pad(data, (0, max(counts) - len(data)))
        pieces = [torch.zeros_like(padded) for _ in counts]
        dist.all_gather(pieces, padded)
    return [piece[:count] for piece, count in zip(pieces, counts, strict=True)]


def on_main(work: Callable[[], _T]) -> _T:
    """Call ``work()`` in rank 0 only and return its result in every process. JSON must be able to hold the result.

    Raises:
        UserError: raised in every process if rank 0 raises it.
    """
    if size() == 1:
        return work()
    told: list[Any] = []
    if is_main():
        try:
            told = [work(), None]
        except UserError as error:
            told = [None, str(error)]
    result, refusal = gather_json(told)[0]
    if refusal is not None:
        raise UserError(refusal)
    return result


def add_up(*values: float) -> list[float]:
    """Each value summed over all processes, in float64."""
    return _reduce(values, dist.ReduceOp.SUM)


def greatest(*values: float) -> list[float]:
    """Each value's maximum over all processes."""
    return _reduce(values, dist.ReduceOp.MAX)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in at least one process; the same result in all processes."""
    return greatest(float(flag))[0] > 0


def _reduce(values: Sequence[float], operation: Any) -> list[float]:
    if size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    with others():
        dist.all_reduce(sums, operation)
    return sums.tolist()


def with_gradients(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that have a gradient in at least one process. In the other processes it is set to zeros.

    A parameter without a gradient in any process keeps ``None``, which an optimiser skips.
    """
    if size() > 1:
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        with others():
            dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    return [p for p in parameters if p.grad is not None]


def add_up_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient with its sum over all processes, which has the same bits in all of them."""
    if size() == 1:
        return
    gradients = [p.grad for p in with_gradients(parameters) if p.grad is not None]
    bucket: list[Tensor] = []
    for i, gradient in enumerate(gradients):
        bucket.append(gradient)
        following = gradients[i + 1] if i + 1 < len(gradients) else None
        full = following is None or following.dtype != gradient.dtype
        if full or sum(map(torch.numel, bucket)) >= _BUCKET:
            _add_up_bucket(bucket)
            bucket = []


def _add_up_bucket(bucket: Sequence[Tensor]) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    with others():
        dist.all_reduce(flat)
    for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Overwrite the tensors with those of rank 0, so that all processes start from the same bits."""
    if size() == 1:
        return
    with others(), torch.no_grad():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
