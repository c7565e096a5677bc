"""Muon for the matrices inside a model and AdamW for everything else, as one optimiser.

Muon moves a matrix by its momentum after making all singular values about 1, so directions with small gradients move as
far as directions with large ones (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). Small models that are
trained from scratch on ProsQA learn much sooner with it (docs/LOG.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


def hidden_matrices(model: nn.Module, head: nn.Module | None) -> list[nn.Parameter]:
    """The trainable two-dimensional parameters of a model, without embeddings and output head.

    Args:
        model: any module.
        head: the module that computes logits, or None.
    """
    tables: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if head is not None:
        tables.append(head)
    apart = {id(p) for table in tables for p in table.parameters()}
    return [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and id(p) not in apart]


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
        self._muon = Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(groups, lr=learning_rate, betas=betas, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        for optimizer, groups in ((self._muon, self.param_groups[:1]), (self._adamw, self.param_groups[1:])):
            optimizer.state, optimizer.param_groups = self.state, groups  # loading a state replaces them
            optimizer.step()
