"""An adapter's own rows for the latent tokens, without a copy of the table at every call.

At every call, PEFT copies the whole table (embeddings or head) and writes its rows into the copy. For GPT-2 this more
than doubles the time of a decoding step. Here the unchanged table is called, and the results for the adapter's rows are
replaced. Weights, names and files are those of PEFT.

This module imports PEFT, so it is only imported for a model with an adapter.
"""

from typing import Any

import torch
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from torch import Tensor, nn
from torch.nn import functional as F

from dropout_grpo.latent.head import Table


class TokenRows(TrainableTokensLayer):
    """PEFT's layer with another forward pass. Shapes: R rows, D width, V vocabulary."""

    rows: Tensor  # [R], their indices in the table

    def forward_adapters(self, x: Tensor, active_adapters: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Embeddings [B, L, D] of ids [B, L], or logits [B, L, V] of hidden states [B, L, D]."""
        if self.disable_adapters or self.merged or not active_adapters:
            unchanged: Tensor = super().forward_adapters(x, active_adapters, *args, **kwargs)
            return unchanged
        (name,) = active_adapters
        own = self.trainable_tokens_delta[name].to(self.base_layer.weight)  # [R, D]
        table: Tensor = self.base_layer(x)
        if isinstance(self.base_layer, nn.Linear):
            return table.index_copy_(-1, self.rows, F.linear(x, own))  # in place: nothing else holds these logits
        hit = x[..., None] == self.rows  # [B, L, R]
        scale = self._get_embed_scale()  # Gemma's, which its embedding module applies
        embedded = F.embedding(hit.int().argmax(-1), own if scale is None else own * scale.to(own.dtype))
        return torch.where(hit.any(-1, keepdim=True), embedded, table)

    def table(self) -> Table | None:
        """The weights of a head, which are also those of the embeddings if they are tied; None for embeddings."""
        if type(self.base_layer) is not nn.Linear:
            return None
        if self.disable_adapters or self.merged or not self.active_adapters:
            return Table(self.base_layer.weight)
        (name,) = self.active_adapters
        return Table(self.base_layer.weight, rows=self.rows, own=self.trainable_tokens_delta[name])


def without_copies(model: nn.Module, adapter: str) -> None:
    """Turn every token layer that PEFT has made in the model into a ``TokenRows``."""
    for module in model.modules():
        if type(module) is TrainableTokensLayer:
            module.__class__ = TokenRows
            rows = torch.tensor(module.token_indices[adapter])
            module.register_buffer("rows", rows.to(next(module.parameters()).device), persistent=False)
