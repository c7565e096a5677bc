"""Muon for the matrices inside a model and AdamW for everything else, as one optimiser.

Muon moves a matrix by its momentum after making all singular values about 1, so directions with small gradients move as
far as directions with large ones (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). Small models that are
trained from scratch on ProsQA learn much sooner with it (docs/LOG.md).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from dropout_grpo.training.embeddings import tables_of
from dropout_grpo.training.machine import bf16_for


def hidden_matrices(model: nn.Module, head: nn.Module | None) -> list[nn.Parameter]:
    """The trainable two-dimensional parameters of a model, without embeddings and output head.

    Args:
        model: any module.
        head: the module that computes logits, or None.
    """
    tables = tables_of(model)
    if head is not None:
        tables.append(head)
    apart = {id(p) for table in tables for p in table.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in apart]


def orthogonalize(update: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Newton-Schulz iterations that bring the singular values of a matrix near 1, in the matrix's dtype.

    Args:
        update: [M, N].
        coefficients: a, b, c of X <- a X + (b X X^T + c (X X^T)^2) X (Jordan et al. 2024).
        steps: number of iterations.
        eps: smallest norm to divide by.
    """
    a, b, c = coefficients
    tall = update.shape[0] > update.shape[1]
    x = update.T if tall else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Float32Muon(Muon):
    """torch's Muon where it orthogonalises in float32, with steps scaled to the size of AdamW's.

    torch's own does so in bf16, which takes 30 times as long on a CPU without bf16 instructions.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have gradients, as in ``torch.optim.Muon``."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                average = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                update = matrix.grad.lerp(average, momentum).float()
                update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"])
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update, alpha=-rate * 0.2 * math.sqrt(max(matrix.shape)))


class MuonAdamW(Optimizer):
    """Muon on some parameters and AdamW on others, with one schedule and one state.

    Args:
        matrices: two-dimensional parameters, for Muon. Its steps are scaled to the size of AdamW's (Liu et al. 2025,
            arXiv 2502.16982), so that one learning rate fits both.
        groups: parameter groups for AdamW.
        learning_rate: learning rate of both.
        weight_decay: weight decay of the matrices.
        betas: betas of AdamW.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        groups: Sequence[dict[str, Any]],
        *,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float],
    ) -> None:
        muon = Muon if bf16_for(matrices[0].device)[0] else Float32Muon
        self._muon = muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(groups, lr=learning_rate, betas=betas, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        for optimizer, groups in ((self._muon, self.param_groups[:1]), (self._adamw, self.param_groups[1:])):
            optimizer.state, optimizer.param_groups = self.state, groups  # loading a state replaces them
            optimizer.step()
