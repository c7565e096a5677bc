"""Exact sums of gradients over processes with unequal work.

Processes have different numbers of micro-batches, and one without a mixed group has none. DDP and FSDP reduce in every
backward pass, which then waits for a partner that never comes. So each process accumulates its own gradients, and they
are summed once for each update. Losses are divided by totals over all processes before, so the sum is the gradient.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dropout_grpo.distributed.processes import size, waiting_for_others

_BUCKET = 2**25  # elements of gradient in one all-reduce


def with_gradients(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that have a gradient in at least one process. In the other processes it is set to zeros.

    A parameter without a gradient in any process keeps ``None``, which an optimiser skips.
    """
    if size() > 1:
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        with waiting_for_others():
            dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, anywhere in zip(parameters, used.tolist(), strict=True):
            if anywhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter, dtype=getattr(parameter, "grad_dtype", None))
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
    if len(bucket) == 1 and bucket[0].is_contiguous():  # such as a table of embeddings, in place
        with waiting_for_others():
            dist.all_reduce(bucket[0])
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
    with waiting_for_others():
        dist.all_reduce(flat)
    for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        gradient.copy_(summed.view_as(gradient))
