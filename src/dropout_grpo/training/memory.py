"""Micro-batches that fit in memory: when memory runs out, the size is halved and that part of the step is repeated.

On a CPU there is no exception: the kernel kills the process. There the size is chosen beforehand, from the bytes that
autograd keeps for one row and the free memory.
"""

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from dropout_grpo.errors import UserError, is_out_of_memory
from dropout_grpo.latent.graphs import give_back_recordings
from dropout_grpo.training.progress import console

_T = TypeVar("_T")
_SHARE = 0.7
"""Share of the free memory that activations may use."""

_PEAK = 1.5
"""Peak memory of a forward and backward pass, as a multiple of what autograd keeps."""


class MicroBatches:
    """The number of rows that are processed at once. A size reduced for lack of memory is kept for the rest of the run.

    Args:
        option: the option that sets the size, for messages.
        size: its value, in rows.
    """

    def __init__(self, option: str, size: int) -> None:
        self.option, self.size = option, size

    def limit(self, row_bytes: float, free: int | None, *, rows: int = 1) -> None:
        """Halve the size until it fits in the free memory, and print the choice.

        Args:
            row_bytes: bytes that autograd keeps for one row.
            free: bytes of free memory; if None (unknown), the size is not changed.
            rows: the smallest size.
        """
        if free is None:
            return
        fits = free * _SHARE / (row_bytes * _PEAK) if row_bytes else float("inf")
        before = self.size
        while self.size > fits and self.size // 2 >= rows:
            self.size //= 2
        choice = f"{self.option}={self.size}"
        if self.size < before:
            choice += f" instead of {before}, to fit; the option sets the size to start from"
        if self.size > fits:
            choice += "; the smallest possible, and it may not fit"
        console.print(
            f"memory: {choice} ({row_bytes / 2**20:.3g} MiB of activations per row, {free / 2**30:.3g} GiB free)",
            markup=False,
        )

    def fit(
        self, items: int, work: Callable[[int], _T], *, rows: int = 1, clear: Callable[[], None] | None = None
    ) -> _T:
        """Return ``work(n)``, which processes all items, n at a time. n is halved until memory suffices.

        CUDA graphs hold memory too: if there are any, they are given back before n is halved.

        After a failed attempt ``work`` is called again from the start, with the random number generators reset to their
        state before the first call.

        Args:
            items: number of items.
            work: processes all items, n at a time.
            rows: rows per item, which stay together, such as the rollouts of a group.
            clear: discards what a failed attempt has accumulated, such as gradients.

        Raises:
            UserError: not even one item fits in memory.
        """
        states = _random_states()
        while True:
            size = min(max(1, self.size // rows), items)
            try:
                return work(size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                _restore_random_states(states)
                if clear is not None:
                    clear()
                given_back = give_back_recordings()
                if size <= 1 and not given_back:
                    raise UserError(
                        f"out of memory with {self.option}={rows}, the smallest value: use a smaller model, "
                        "shorter questions and answers, or bf16."
                    ) from error
            # The traceback, which holds the failed attempt's tensors, is freed only after the except block.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if given_back:
                console.print(
                    f"warning: out of memory with {size * rows} rows at once: trying again without the CUDA graphs "
                    "recorded so far. Work of their shapes runs step by step from now on.",
                    markup=False,
                )
                continue
            self.size = size // 2 * rows
            console.print(
                f"warning: out of memory with {size * rows} rows at once: continuing with {self.option}={self.size}. "
                "Set the option to this value to avoid the failed attempt.",
                markup=False,
            )


def saved_bytes(work: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of ``work``, without the model's parameters.

    Unlike the size of the process, this does not depend on the allocator or on other processes.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}  # by address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(sizes.values())


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still allocate, limited by the machine and its control group; None if unknown.

    The processes of a launched run that share the machine get equal parts.
    """
    limits = [_free_of_machine(root / "proc/meminfo"), _free_of_group(root / "sys/fs/cgroup")]
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    known = [free // sharing for free in limits if free is not None]
    return min(known) if known else None


def _free_of_machine(meminfo: Path) -> int | None:
    match = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    return None if match is None else int(match[1]) * 1024


def _free_of_group(group: Path) -> int | None:
    limit, used, details = (group / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and used.is_file()) or not limit.read_text().strip().isdecimal():
        return None  # no limit
    cache = re.search(r"inactive_file (\d+)", details.read_text()) if details.is_file() else None  # freed when needed
    return int(limit.read_text()) - int(used.read_text()) + (int(cache[1]) if cache else 0)


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _restore_random_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])
