"""Tiny latent models with an adapter, and their log-probabilities."""

from pathlib import Path

import torch
from torch import Tensor

from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from dropout_grpo.latent.lora.adapter import LoRAConfig, add_lora
from dropout_grpo.latent.tokens import add_latent_tokens
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.tiny_latent import PLAIN_TOKENS, tiny_latent

LORA = LoRAConfig(r=2, lora_alpha=4)


def saved_base(folder: Path, kind: str = "gpt2", *, thought: str = "hidden_state") -> Path:
    """A plain folder of a tiny latent model."""
    tiny_latent(kind, thought=thought).save_pretrained(folder / "base")
    return folder / "base"


def saved_raw_base(folder: Path, kind: str = "gpt2") -> Path:
    """A folder of a tiny language model without latent tokens."""
    tiny_model(kind, torch.float32, vocab_size=PLAIN_TOKENS).save_pretrained(folder / "raw")
    tiny_tokenizer().save_pretrained(folder / "raw")
    return folder / "raw"


def tiny_lora(folder: Path, kind: str = "gpt2", *, thought: str = "hidden_state", trained: bool = False) -> LatentModel:
    """A tiny latent model with an adapter; ``trained`` is as if: nothing of the adapter is where it started."""
    model = LatentModel.from_pretrained(saved_base(folder, kind, thought=thought))
    model = add_lora(model, LORA, seed=0)
    if trained:
        as_if_trained(model)
    return model


def tiny_lora_on_raw(folder: Path, kind: str = "gpt2") -> LatentModel:
    """As if trained by the curriculum: the latent tokens were added in memory, and no base on disk has them."""
    model, tokenizer = load_causal_lm(saved_raw_base(folder, kind))
    add_latent_tokens(model, tokenizer)
    adapted = add_lora(LatentModel(model, tokenizer, latent_steps=2), LORA, seed=0)
    as_if_trained(adapted)
    return adapted


@torch.no_grad()
def as_if_trained(model: LatentModel) -> None:
    """Move every parameter that training would move."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def said(model: LatentModel) -> Tensor:
    """Log-probs of fixed answers after thinking, [2, 3]; the end marker and a latent token are among the answers."""
    state = model.think(model.read(*model.encode(["Ann has 3 ?", "Bob has 4 ? ?"])), model.latent_steps)
    return model.score(state, torch.tensor([[25, 10, 1], [model.tokens.latent, model.tokens.end, 7]]))
