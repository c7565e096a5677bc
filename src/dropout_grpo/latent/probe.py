"""Checks at load time that the recurrence gives the same hidden states as the model's own forward pass.

A model may accept a shared prompt and ignore it, or number its positions in a way that left padding changes. Neither
raises an error; the answers are just wrong. So a few positions are run both ways whenever a model is loaded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from dropout_grpo.latent.head import table_of

_LENGTHS = (5, 3)
"""Lengths of the probe's prompts in tokens. They differ, so that one prompt is padded."""

PROBE_STEPS = 2
"""Latent steps of the probe."""


def probe_rows(model: PreTrainedModel) -> list[list[int]]:
    """Token ids of the probe's prompts."""
    vocabulary = model.config.get_text_config().vocab_size
    return [[(7 * i + 3 * r + 1) % vocabulary for i in range(length)] for r, length in enumerate(_LENGTHS)]


@torch.no_grad()
def own_hidden(model: PreTrainedModel, thought: Callable[[Tensor], Tensor], rows: Sequence[Sequence[int]]) -> Tensor:
    """Hidden states [R, 1 + ``PROBE_STEPS``, D] after a prompt and each thought by the model's own forward pass.

    The thoughts are made from ``fed_back``, so one pass without a cache gives all of them. It runs one row at a time.
    """
    hidden = []
    for row, states in zip(rows, fed_back(model, rows), strict=True):
        prompt = model.get_input_embeddings()(torch.tensor([list(row)], device=model.device))  # [1, S, D]
        inputs = torch.cat([prompt, *(thought(state[None]) for state in states.split(1))], dim=1)
        hidden.append(model.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, len(row) - 1 :])
    return torch.stack(hidden)


@torch.no_grad()
def fed_back(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """What thoughts are made from in the probe instead of hidden states: the embeddings of words [R, PROBE_STEPS, D].

    If they are given, every step can be compared by itself, and an error of one step is not hidden by the next.
    """
    words = torch.tensor([row[:PROBE_STEPS] for row in rows], device=model.device)
    embeddings: Tensor = model.get_input_embeddings()(words)
    return embeddings


def agrees(hidden: Tensor, expected: Tensor) -> bool:
    """Whether two computations of the same hidden states are equal up to the rounding of their dtype.

    A wrong prompt or position changes a hidden state by about its own size. If the model's own numbers are not finite,
    its weights are damaged. Then nothing can be compared, and the command that uses the weights reports it.
    """
    if not bool(expected.isfinite().all()):
        return True
    rounding = max(torch.finfo(expected.dtype).eps, torch.finfo(torch.float32).eps)  # many softmaxes are float32
    allowed = min(0.2, 30 * rounding**0.5)
    return bool((hidden - expected).abs().max() <= allowed * expected.abs().max())


@torch.no_grad()
def has_plain_head(model: PreTrainedModel, row: Sequence[int]) -> bool:
    """Whether the model's logits are a linear head applied to the decoder's last hidden state, and nothing else.

    The head's own numbers are small in a new model, where a soft cap does not show. So it gets hidden states for which
    some logits are 1000.
    """
    table = table_of(model.get_output_embeddings())
    if table is None:
        return False
    entered: list[Tensor] = []

    def enlarge(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        entered.append(hidden * (1000.0 / F.linear(hidden, table.weight, table.bias).abs().max()))
        output.last_hidden_state = entered[-1]
        return output

    hook = model.get_decoder().register_forward_hook(enlarge)
    try:
        inputs = model.get_input_embeddings()(torch.tensor([list(row)], device=model.device))
        logits = model(inputs_embeds=inputs, use_cache=False).logits
    finally:
        hook.remove()
    if len(entered) != 1:
        return False
    expected = F.linear(entered[0], table.weight, table.bias)
    if table.rows is not None and table.own is not None:
        expected[..., table.rows] = F.linear(entered[0], table.own)
    allowed = min(0.01, 10 * torch.finfo(expected.dtype).eps)
    return bool((logits - expected).abs().max() <= allowed * expected.abs().max())
