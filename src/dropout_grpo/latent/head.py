"""Log-probabilities of known tokens, with gradient, without all logits at once: the vocabulary is taken in pieces.

At 152,000 words the logits of one token are 0.6 MB in float32. The plain way keeps them and their log-softmax until the
backward pass, which makes two more such tensors. Here each piece of the vocabulary gives its part of the log-sum-exp.
The backward pass makes softmax - one-hot of a piece, multiplies, and goes on to the next one.

torch's ``linear_cross_entropy`` (2.13) also works in pieces, but of rows: it returns log-probabilities in the dtype of
the products, and bf16 is too coarse for a ratio. Without a GPU its products are in float32.

Shapes: N tokens, D width, V vocabulary, W known tokens for each hidden state, P words of a piece.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dropout_grpo.latent.shared_prompt import kernel_dtype

PIECE = 2**21
"""Logits in a piece on a CPU: 8 MiB in float32, which stay in its cache from one operation to the next."""

KEPT = 2**29
"""Bytes of logits, in the dtype of the products, that are kept for the backward pass. More are computed again.

Computing again is a fourth product in addition to three. It takes less memory than a layer's activations.
"""

_LEAST_WORDS = 1024
"""Words of a piece, however many tokens there are: fewer would make small products."""


def largest_piece(device: torch.device) -> int:
    """Logits in a piece. So few at once are computed by the model itself.

    A GPU gets 32 times as many as a CPU, so that an operation takes longer than its launch.
    """
    return PIECE if device.type == "cpu" else 32 * PIECE


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """float32, or the dtype itself if it is wider. Log-probabilities enter a ratio, so half precision is too coarse."""
    return torch.promote_types(dtype, torch.float32)


def at_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits in float32 or wider, divided by the temperature. At temperature 1 there is no division."""
    wide = logits.to(at_least_float32(logits.dtype))
    return wide if temperature == 1.0 else wide / temperature


@dataclass(frozen=True, slots=True)
class Table:
    """A linear head."""

    weight: Tensor  # [V, D]
    bias: Tensor | None = None  # [V]
    rows: Tensor | None = None  # [R] words whose rows an adapter replaces
    own: Tensor | None = None  # [R, D] its rows


def table_of(head: nn.Module | None) -> Table | None:
    """The weights of a head that is an ``nn.Linear``, also one with an adapter's ``TokenRows``; None for others."""
    if type(head) is nn.Linear:
        return Table(head.weight, head.bias)
    rows: Any = getattr(head, "token_adapter", None)  # in PEFT's wrapper
    return rows.table() if hasattr(rows, "table") else None


def token_logprobs(table: Table, hidden: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N, W], float32 or wider, of tokens [N, W] after hidden states [N, D].

    The products have the dtype that they have in the head: bf16 under autocast. There is no second derivative.
    """
    weight, bias, dtype = table.weight, table.bias, kernel_dtype(hidden)
    trained = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    keep = trained and len(hidden) * len(weight) * dtype.itemsize <= KEPT
    if table.rows is not None:  # these words have no part in the table's sum
        bias = torch.zeros(len(weight), device=weight.device).index_fill(0, table.rows, -torch.inf)
    chosen, total = _Pieces.apply(hidden, weight, bias, token_ids, temperature, dtype, keep)
    if table.rows is not None and table.own is not None:
        own = at_temperature(F.linear(hidden.to(dtype), table.own.to(dtype)), temperature)  # [N, R]
        total = torch.logaddexp(total, own.logsumexp(-1))
        hit = token_ids[..., None] == table.rows  # [N, W, R]
        chosen = torch.where(hit.any(-1), own.gather(-1, hit.int().argmax(-1)), chosen)
    return chosen - total[:, None]


class _Pieces(torch.autograd.Function):
    """Logits of known tokens [N, W], and the log-sum-exp [N] over all words."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        token_ids: Tensor,
        temperature: float,
        dtype: torch.dtype,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        # The weight's gradient is float32 from the start where it is accumulated so, as with masters.
        wanted = getattr(weight, "grad_dtype", None) if weight.is_leaf else None
        ctx.dtypes, ctx.temperature = (hidden.dtype, wanted or weight.dtype), temperature
        hidden = hidden.to(dtype)
        if keep:  # one cast for both passes, as autocast's
            weight = weight.to(dtype)
        chosen = torch.zeros(token_ids.shape, dtype=at_least_float32(dtype), device=hidden.device)
        totals, kept = [], []
        with _as_given(hidden):
            for words in _pieces(hidden, len(weight)):
                made = _logits(hidden, weight, bias, words)  # [N, P]
                if keep:
                    kept.append(made)
                logits = made.to(chosen.dtype, copy=keep)  # changed in place below
                if temperature != 1.0:
                    logits /= temperature
                where, inside = _in_piece(token_ids, words)
                chosen = torch.where(inside, logits.gather(1, where), chosen)
                highest = logits.amax(-1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
                totals.append(highest.squeeze(-1) + logits.sub_(highest).exp_().sum(-1).log())
        total = torch.stack(totals).logsumexp(0)
        ctx.save_for_backward(hidden, weight, bias, token_ids, total, *kept)
        return chosen, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, chosen_grad: Tensor, total_grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, token_ids, total, *kept = ctx.saved_tensors
        chosen_grad, total_grad = chosen_grad / ctx.temperature, total_grad / ctx.temperature
        hidden_grad = torch.zeros(hidden.shape, dtype=total.dtype, device=hidden.device)  # a sum over pieces
        hidden_dtype, weight_dtype = ctx.dtypes
        weight_grad = torch.empty_like(weight, dtype=weight_dtype) if ctx.needs_input_grad[1] else None
        bias_grad = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        with _as_given(hidden):
            for i, words in enumerate(_pieces(hidden, len(weight))):
                made = kept[i] if kept else _logits(hidden, weight, bias, words)
                grad = made.to(total.dtype, copy=bool(kept))  # [N, P], changed in place
                if ctx.temperature != 1.0:
                    grad /= ctx.temperature
                grad.sub_(total[:, None]).exp_().mul_(total_grad[:, None])
                where, inside = _in_piece(token_ids, words)
                grad.scatter_add_(1, where, chosen_grad * inside)
                if bias_grad is not None:
                    bias_grad[words] = grad.sum(0)
                grad = grad.to(hidden.dtype)
                if ctx.needs_input_grad[0]:
                    hidden_grad += grad @ weight[words].to(hidden.dtype)
                if weight_grad is not None:
                    weight_grad[words] = grad.T @ hidden
        return hidden_grad.to(hidden_dtype), weight_grad, bias_grad, None, None, None, None


def _as_given(tensor: Tensor) -> torch.autocast:
    """Products in the dtype of their factors."""
    return torch.autocast(tensor.device.type, enabled=False)


def _pieces(hidden: Tensor, words: int) -> Iterator[slice]:
    """The vocabulary in pieces. Each row of the weight's gradient is written once."""
    size = _words_in_a_piece(hidden.device, len(hidden))
    return (slice(start, min(start + size, words)) for start in range(0, words, size))


def _words_in_a_piece(device: torch.device, rows: int) -> int:
    size = max(_LEAST_WORDS, largest_piece(device) // max(rows, 1))
    return size if device.type == "cpu" else size - size % 128  # a GPU's products are slow where rows are not aligned


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, words: slice) -> Tensor:
    own = None if bias is None else bias[words].to(hidden.dtype)
    return F.linear(hidden, weight[words].to(hidden.dtype), own)


def _in_piece(token_ids: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """Indices of the tokens within a piece, and whether they are in it; other tokens get any index."""
    index, size = token_ids - words.start, words.stop - words.start
    return index.clamp(0, size - 1), (index >= 0) & (index < size)
