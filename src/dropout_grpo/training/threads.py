"""Threads that suit the machine's load and the batch.

Waiting threads sleep, so that on a busy machine a computation slows down only in proportion to the load.

A product on several threads ends when the last thread ends. By default the threads of OpenMP wait in a busy loop for up
to milliseconds. If another process uses one core, one thread waits for this core while the other one keeps its own core
busy with waiting, thousands of times per second. A small batch of a small model uses one thread: to wake a second one
takes longer than it saves. docs/performance.md has the measurements.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SPINS = "1000"  # about ten microseconds: the next product usually follows sooner on an idle machine
_SETTINGS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": _SPINS, "KMP_BLOCKTIME": "0"}

_FEW_PRODUCTS = 4_000_000  # multiplications per layer and position that one thread does alone


def wait_asleep() -> bool:
    """Make the threads of OpenMP sleep while they wait, in this process and its children.

    Returns:
        False, with nothing changed, if the environment sets a policy or torch, which reads it once, is imported.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _SETTINGS):
        return False
    os.environ.update(_SETTINGS)
    return True


@contextmanager
def number_of_threads(count: int) -> Iterator[None]:
    """This number of threads inside the block, and the previous one after it."""
    import torch  # not at the top: wait_asleep has to be called before it is imported

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_for(model: "PreTrainedModel", rows: int) -> Iterator[None]:
    """One thread inside the block if a batch is too small for more; the size of model and batch decides, not a timing.

    Args:
        model: the model that runs inside the block. Nothing changes if it is not on a CPU.
        rows: sequences in the largest batch.
    """
    import torch

    layers = getattr(model.config.get_text_config(), "num_hidden_layers", 1)
    weights = sum(parameter.numel() for parameter in model.parameters())
    few = model.device.type == "cpu" and rows * weights / layers <= _FEW_PRODUCTS
    with number_of_threads(1 if few else torch.get_num_threads()):
        yield
