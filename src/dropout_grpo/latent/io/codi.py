"""Checkpoints as zhenyi4/codi saves them: one ``state_dict`` file, such as zen-E/CODI-gpt2's ``pytorch_model.bin``.

Its keys are those of a PEFT model with the prefix ``codi.``, LoRA factors not merged, and those of the projection with
the prefix ``prj.`` (Shen et al. 2025, arXiv 2502.21074). Three tokens follow the base's vocabulary: padding, the begin
of thought and the end of thought. Here the last two are the start and the end marker.

A prompt is the question and the begin of thought, and an answer reads ``The answer is: 7`` (``remove_eos``, as in all
published scripts).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from dropout_grpo.latent.io.coconut import fill, untie_what_differs
from dropout_grpo.latent.thought import HiddenStateThought, ProjectionThought
from dropout_grpo.latent.tokens import CODI, END, LATENT, START, embedding_table

INNER, PROJECTION = "codi.", "prj."
LORA_ALPHA = 32
"""Of all published scripts. The file does not hold it."""

_WRAPPERS = "base_model.model."
_UNUSED = "dynamic_cls."  # in some published files


def is_codi(saved: Mapping[str, Tensor]) -> bool:
    """Whether a ``state_dict`` is CODI's."""
    return any(name.startswith(INNER) for name in saved)


def load_codi_checkpoint(
    saved: Mapping[str, Tensor],
    file: str | Path,
    base: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any], dict[str, Tensor]]:
    """Load the model of a CODI ``state_dict`` with its LoRA factors merged, and its tokenizer.

    Args:
        saved: the ``state_dict``.
        file: its name, for messages.
        base: folder or hub name of the model that was trained.
        dtype: dtype of the weights.
        attn_implementation: as in transformers.

    Returns:
        Model, tokenizer, what ``latent_config.json`` would say, and the projection's weights.

    Raises:
        UserError: the weights do not fit ``base`` with three more tokens.
    """
    model, tokenizer = load_causal_lm(base, dtype=dtype, attn_implementation=attn_implementation)
    size = embedding_table(model).shape[0]
    if len(tokenizer) != size:
        raise UserError(f"{base} has {size} embeddings and {len(tokenizer)} tokens: CODI's tokens cannot be placed.")
    tokenizer.add_tokens(["[PAD]", START, END, LATENT], special_tokens=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = "[PAD]"
    model.resize_token_embeddings(size + 4, mean_resizing=False)
    try:
        weights = _merged(saved, model)
    except (AttributeError, KeyError, RuntimeError) as error:  # no such layer, half a pair, factors of another shape
        raise UserError(f"{file} does not fit {base}: its LoRA factors cannot be merged ({error}).") from error
    for name, tensor in weights.items():
        if tensor.shape[:1] == (size + 3,):  # embeddings and head: the row of LATENT, which CODI lacks
            weights[name] = torch.cat([tensor, tensor[size + 1 : size + 2]])
    untie_what_differs(model, weights, file)
    unexpected = [name for name in saved if not name.startswith((INNER, PROJECTION, _UNUSED))]
    fill(model, weights, unexpected, f"{file} does not fit {base}", INNER)
    model.name_or_path = str(file)
    projection = {name: tensor.float() for name, tensor in saved.items() if name.startswith(PROJECTION)}
    config: dict[str, Any] = {"thought": HiddenStateThought.kind, "prompt_format": CODI}
    if projection:
        inner = projection.get(f"{PROJECTION}1.weight", torch.empty(1)).shape[0]
        config |= {"thought": ProjectionThought.kind, "prj_dim": inner}
    return model, tokenizer, config, projection


def _merged(saved: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """The language model's weights by name: W + alpha / r * B A where a layer has factors A [r, in] and B [out, r]."""
    inner = {
        name.removeprefix(INNER).removeprefix(_WRAPPERS): tensor.float()
        for name, tensor in saved.items()
        if name.startswith(INNER)
    }
    weights = {name.replace(".base_layer.", "."): tensor for name, tensor in inner.items() if ".lora_" not in name}
    for name, down in inner.items():
        layer, is_factor, _ = name.partition(".lora_A.")
        if not is_factor:
            continue
        up = inner[name.replace(".lora_A.", ".lora_B.")]
        change = LORA_ALPHA / down.shape[0] * (up @ down)  # [out, in]
        transposed = isinstance(model.get_submodule(layer), Conv1D)
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + (change.T if transposed else change)
    return weights
