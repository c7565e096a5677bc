"""Gradients of a large embedding table as the rows that were read, until the optimiser's step.

The plain way makes a table of zeros at every look-up, for the prompts and again for the answers of each micro-batch,
and adds the tables: 0.5 GB each for 152,000 words of width 896, of which a batch reads a few thousand rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dropout_grpo.distributed.sharding import is_sharded

LARGE = 2**24
"""Elements of a table from which on rows are kept. Smaller tables cost little."""


def tables_of(model: nn.Module) -> list[nn.Module]:
    """A model's embeddings, and an adapter's wrappers of them, which train a few of their rows."""
    return [m for m in model.modules() if isinstance(getattr(m, "base_layer", m), nn.Embedding)]


@contextmanager
def rows_as_gradients(model: nn.Module) -> Iterator[None]:
    """Inside the block large embeddings that are trained have sparse gradients. ``make_dense`` must follow.

    Only ``nn.Embedding`` itself takes part: subclasses may do more than look up. Sharded tables do not.
    """
    tables = [
        module
        for module in model.modules()
        if type(module) is nn.Embedding
        and module.weight.requires_grad
        and module.weight.numel() >= LARGE
        and not module.sparse
        and not is_sharded(model)
    ]
    for table in tables:
        table.sparse = True
    try:
        yield
    finally:
        for table in tables:
            table.sparse = False


def make_dense(model: nn.Module) -> None:
    """Write sparse gradients as whole tables, once for all micro-batches of an update."""
    for parameter in model.parameters():
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_dense()
