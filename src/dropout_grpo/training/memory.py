"""Micro-batches that fit memory: where memory runs out, the size is halved and that part of the step is done again."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from dropout_grpo.errors import UserError
from dropout_grpo.latent.fast.graphs import forget_recordings
from dropout_grpo.training.progress import console

_T = TypeVar("_T")
_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",  # CUDA's matrix library keeps memory of its own
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Did an allocator say so? Only CUDA's has a type of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in _MESSAGES)


class MicroBatches:
    """How many rows are worked on at once. A size that memory has forced is kept for the rest of the run.

    Args:
        option: the option that sets the size, for messages.
        size: its value, in rows.
    """

    def __init__(self, option: str, size: int) -> None:
        self.option, self.size = option, size

    def fit(self, items: int, work: Callable[[int], _T], *, rows: int = 1) -> _T:
        """``work(n)``: all the items, n at a time, where n is halved until memory suffices, and never below 1.

        ``work`` is called again from its beginning, so it must itself clear what it adds to: the gradients of a
        backward pass that failed half way are no gradients.

        Args:
            items: how many there are.
            work: does them all, n at a time.
            rows: rows of an item, which stay together: the rollouts of a group.

        Raises:
            UserError: not even one item fits.
        """
        while True:
            size = min(max(1, self.size // rows), items)
            try:
                return work(size)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if size <= 1:
                    raise UserError(
                        f"out of memory with {self.option}={rows}, the least there can be: use a smaller model, "
                        "shorter questions and answers, or bf16."
                    ) from error
            # Only here, past the except block, is the traceback gone that held the failed attempt's tensors.
            self.size = size // 2 * rows
            forget_recordings()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            console.print(
                f"warning: out of memory with {size * rows} rows at once: going on with {self.option}={self.size}. "
                "Set it so, and nothing has to fail first.",
                markup=False,
            )
