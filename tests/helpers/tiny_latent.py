"""A latent model that runs in milliseconds, and small problems to train it on."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dropout_grpo.data.problem import Problem
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import add_latent_tokens
from helpers.tiny import tiny_model, tiny_tokenizer

PLAIN_TOKENS = 28
"""Size of the tiny tokenizer; the latent tokens are 28 (start), 29 (end) and 30 (latent), in Coconut's order."""


def tiny_latent(
    kind: str = "gpt2",
    dtype: torch.dtype = torch.float32,
    *,
    latent_steps: int = 2,
    thought: str = "hidden_state",
    seed: int = 0,
    std: float = 0.3,
    n_layer: int = 2,
    attn_implementation: str = "eager",
) -> LatentModel:
    """A randomly initialised latent model, a pure function of its arguments."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(
        kind, dtype, seed, vocab_size=PLAIN_TOKENS, std=std, n_layer=n_layer, attn_implementation=attn_implementation
    )
    add_latent_tokens(model, tokenizer)
    return LatentModel(model, tokenizer, latent_steps=latent_steps, thought=thought)


def plain_model(kind: str = "gpt2", dtype: torch.dtype = torch.float32, *, seed: int = 0) -> PreTrainedModel:
    """The weights of ``tiny_latent`` as a plain transformers model, for the oracle."""
    model = tiny_model(kind, dtype, seed, vocab_size=PLAIN_TOKENS)
    add_latent_tokens(model, tiny_tokenizer())
    return model


def tiny_problems(count: int = 4, steps: int = 0) -> list[Problem]:
    """Questions of different lengths: problem i asks "Ann has i ? [? ...]" and its answer is (i + 3) mod 10."""
    return [
        Problem(
            id=i,
            question=f"Ann has {i % 10}" + " ?" * (1 + i // 2),
            steps=tuple(f"{i % 10} + {s}" for s in range(1, steps + 1)),
            answer=str((i + 3) % 10),
        )
        for i in range(count)
    ]


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def newest_checkpoint(run: Path, part: str) -> Path:
    """The folder of a part's newest training checkpoint."""
    return max((run / "checkpoints").glob(f"{part}-step-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def weights_of(model: LatentModel) -> dict[str, torch.Tensor]:
    """A copy of all weights."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Whether all weights are equal, bit for bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs"
