"""Trains the value projections only. Where W_V is a part of a wider matrix, the rest of it gets no gradient."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SiteMap
from evidence.rivals.value_projections import ValueProjection, value_projections


@contextmanager
def only_values_trained(model: nn.Module, sites: SiteMap) -> Iterator[dict[str, Tensor]]:
    """Inside the block only W_V of every layer gets gradients.

    The gradient of the rest of W_V's matrix is exactly 0. AdamW without weight decay then does not change a bit of it.
    The optimiser holds state for the whole matrix, which is 0 for the rest.

    Yields:
        Copies of the matrices that also hold queries and keys, for ``require_rest_unchanged``; by the projection's
        name.
    """
    projections = value_projections(sites)
    trained = {id(projection.module.weight) for projection in projections}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    wider = [projection for projection in projections if projection.columns is not None]
    handles = []
    for parameter in frozen:
        parameter.requires_grad_(False)
    for projection in wider:
        rest = _rest(projection)
        hook = projection.module.weight.register_hook(lambda gradient, rest=rest: gradient.masked_fill(rest, 0.0))
        handles.append(hook)
    try:
        yield {projection.name: projection.module.weight.detach().clone() for projection in wider}
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def require_rest_unchanged(before: Mapping[str, Tensor], sites: SiteMap) -> None:
    """Check that queries and keys are those of ``before``, as ``only_values_trained`` gives it.

    Raises:
        UserError: weight decay has changed them, or shards that have no hook.
    """
    for projection in value_projections(sites):
        if projection.name not in before:
            continue
        rest, weight = _rest(projection), projection.module.weight
        if not torch.equal(weight[rest], before[projection.name][rest]):
            raise UserError(
                f"{projection.name} is a part of a matrix whose other weights have changed: set grpo.weight_decay to "
                "0, and leave fsdp out."
            )


def _rest(projection: ValueProjection) -> Tensor:
    """True for the entries of the module's weight that are not W_V, bool, of the weight's shape."""
    rest = torch.ones_like(projection.module.weight, dtype=torch.bool)
    projection.by_column(rest)[:, projection.columns] = False
    return rest
