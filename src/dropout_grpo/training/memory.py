"""Micro-batches that fit in memory: when memory runs out, the size is halved and that part of the step is repeated.

On a CPU there is no exception: the kernel kills the process. There sizes are chosen beforehand, see `plan.py`.
"""

import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dropout_grpo.errors import LESS_MEMORY, UserError, is_out_of_memory
from dropout_grpo.latent.graphs import allow_recordings_again, give_back_recordings
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.training.machine import freed_memory_kept, resident_memory, return_freed_memory
from dropout_grpo.training.progress import console

_T = TypeVar("_T")


class MicroBatches:
    """The number of rows that are processed at once. A size reduced for lack of memory is kept for the rest of the run.

    Args:
        option: the option that sets the size, for messages.
        size: its value, in rows.
    """

    def __init__(self, option: str, size: int) -> None:
        self.option, self.size = option, size
        self.planned: int | None = None  # bytes of the whole process by its plan

    def give_back(self) -> None:
        """Return freed memory to the kernel if the process has more than its plan says. For the end of a micro-batch.

        malloc keeps freed memory to use it again. Micro-batches differ in length, so the next tensors may not fit where
        the last ones were. Where it helps little, the plan is too low, and a greater size becomes the limit.
        """
        if self.planned is not None and resident_memory() > self.planned:
            return_freed_memory()
            self.planned = max(self.planned, resident_memory() * 11 // 10)

    def fit(
        self,
        items: int,
        work: Callable[[int], _T],
        *,
        rows: int = 1,
        clear: Callable[[], None] | None = None,
        relieve: Callable[[], bool] | None = None,
    ) -> _T:
        """Return ``work(n)``, which processes all items, n at a time. n is halved until memory suffices.

        CUDA graphs hold memory too: if there are any, they are given back before n is halved. After that they are
        recorded again.

        After a failed attempt ``work`` is called again from the start, with the random number generators reset to their
        state before the first call.

        Args:
            items: number of items.
            work: processes all items, n at a time.
            rows: rows per item, which stay together, such as the rollouts of a group.
            clear: discards what a failed attempt has accumulated, such as gradients.
            relieve: makes an item need less memory where not even one fits, as ``checkpointing_instead`` does; False if
                it cannot.

        Raises:
            UserError: not even one item fits in memory.
        """
        states, before = _random_states(), self.size
        while True:
            size = min(max(1, self.size // rows), items)
            try:
                with freed_memory_kept():
                    done = work(size)
                if self.size < before:
                    allow_recordings_again()
                return done
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                _restore_random_states(states)
                if clear is not None:
                    clear()
                given_back = give_back_recordings()
                smallest = size <= 1 and not given_back
                relieved = smallest and relieve is not None and relieve()
            # The traceback, which holds the failed attempt's tensors, is freed only after the except block.
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if smallest and not relieved:  # without the traceback: what is put back in order now needs memory too
                raise UserError(f"out of memory with {self.option}={rows}, the smallest value. {LESS_MEMORY}")
            if relieved:
                continue
            if given_back:
                console.print(
                    f"warning: out of memory with {size * rows} rows at once: trying again without the CUDA graphs "
                    "recorded so far.",
                    markup=False,
                )
                continue
            self.size = size // 2 * rows
            console.print(
                f"warning: out of memory with {size * rows} rows at once: continuing with {self.option}={self.size}. "
                "Set the option to this value to avoid the failed attempt.",
                markup=False,
            )


def checkpointing_instead(model: LatentModel, option: bool | None) -> bool:
    """Switch the model's ``gradient_checkpointing`` on where the option leaves it open; whether that changes anything.

    Args:
        model: the model that is trained.
        option: ``gradient_checkpointing`` of the config.
    """
    if option is not None or model.gradient_checkpointing:
        return False
    model.gradient_checkpointing = True
    console.print("warning: out of memory with the smallest micro-batch: gradient_checkpointing is on from now on.")
    return True


def total_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory of this machine, or of this process's control group if that is less; None if unknown.

    What other processes use is not subtracted, so that the same command has the same sizes. The processes of a launched
    run that share the machine get equal parts.
    """
    meminfo, groups, own = root / "proc/meminfo", root / "sys/fs/cgroup", root / "proc/self/cgroup"
    match = re.search(r"MemTotal:\s+(\d+) kB", meminfo.read_text()) if meminfo.is_file() else None
    known = [] if match is None else [int(match[1]) * 1024]
    path = re.search(r"^0::/(.*)$", own.read_text(), re.MULTILINE) if own.is_file() else None
    group = groups / path[1] if path else groups
    for folder in [group, *group.parents]:  # a group has the limits of the groups around it, too
        limit = folder / "memory.max"
        if limit.is_file() and limit.read_text().strip().isdecimal():  # else "max"
            known.append(int(limit.read_text()))
    return min(known) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if known else None


def _random_states() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _restore_random_states(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])
