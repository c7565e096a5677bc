"""Prompts are read with one of two attentions; both agree with the oracle."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import attention_choice, shared_prompt
from dropout_grpo.latent.attention_choice import CHOICES, Choice, attention_in_use, fix_attention, fixed_attention
from dropout_grpo.latent.casts import autocast
from dropout_grpo.runs.provenance import provenance
from helpers.engine import (
    ALL_PHASES,
    ALL_SITES,
    GRADIENT_TOLERANCE,
    TOLERANCE,
    difference,
    differences,
    engine_rows,
    gradients,
    latent_model,
    oracle_model,
    oracle_rows,
    prompts,
    reference_noises,
)

EVERYWHERE = SharedDropout(0.25, ALL_SITES, ALL_PHASES)

both = pytest.mark.parametrize("choice", CHOICES)


@pytest.fixture
def sdpa_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the queries of each call."""
    calls: list[int] = []
    sdpa = shared_prompt.sdpa_attention_forward

    def counted(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(query.shape[2])
        return sdpa(module, query, *args, **kwargs)

    monkeypatch.setattr(shared_prompt, "sdpa_attention_forward", counted)
    return calls


@both
@pytest.mark.parametrize(
    ("kind", "dtype"), [("gpt2", torch.float64), ("qwen3", torch.float64), ("llama", torch.float32)]
)
def test_either_is_the_oracles(choice: Choice, kind: str, dtype: torch.dtype, sdpa_calls: list[int]) -> None:
    """Padded prompts, GQA, masks in every phase; values and gradients."""
    model, plain = latent_model(kind, dtype), oracle_model(kind, dtype)
    hiddens, logprobs = oracle_rows(plain, 2, reference_noises(EVERYWHERE))
    expected = gradients(plain, logprobs)
    with fixed_attention(choice):
        actual = engine_rows(model, EVERYWHERE)
    assert max(difference(a.detach(), b.detach()) for a, b in zip(actual[0], hiddens, strict=True)) < TOLERANCE[dtype]
    assert difference(actual[1].detach(), logprobs.detach()) < TOLERANCE[dtype]
    assert differences(gradients(model.model, actual[1]), expected) < GRADIENT_TOLERANCE[dtype]
    assert sdpa_calls == ([6, 6] if choice == "sdpa" else [])  # two layers read; whoever has a prefix takes products


@both
def test_padding_in_bf16_is_finite_and_close(choice: Choice) -> None:
    model, batch = latent_model("gpt2", torch.float32), prompts()
    exact = model.read(batch.input_ids, batch.attention_mask).hidden
    with fixed_attention(choice), autocast(model.device, True):
        state = model.read(batch.input_ids, batch.attention_mask)
    assert state.prefix is not None
    assert all(t.dtype == torch.bfloat16 and t.isfinite().all() for t in (*state.prefix.keys, *state.prefix.values))
    assert (state.hidden - exact).abs().max() < 0.1


@pytest.mark.parametrize(("kind", "dtype"), [("llama", torch.float32), ("gpt2", torch.float64)])
def test_the_mask_has_the_dtype_that_the_kernel_sees(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary positions make queries float32 under autocast, but the kernel still gets them in bf16; never float64."""
    kernel, seen = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query: Tensor, *args: Any, attn_mask: Tensor, **kwargs: Any) -> Tensor:
        actual: Tensor = kernel(query, *args, attn_mask=attn_mask, **kwargs)
        seen.append((actual.dtype, attn_mask.dtype, attn_mask.to(actual.dtype).isfinite().all().item()))
        return actual

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    model, batch = latent_model(kind, dtype), prompts()
    with fixed_attention("sdpa"), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
        model.read(batch.input_ids, batch.attention_mask)
    expected = torch.bfloat16 if dtype == torch.float32 else torch.float64
    assert seen == [(expected, expected, True)] * 2


def test_the_type_of_device_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_choice, "_fixed", None)
    assert [attention_in_use(device) for device in ("cpu", "cuda", "mps")] == ["products", "sdpa", "products"]
    with fixed_attention("sdpa"), fixed_attention("products"):
        assert attention_in_use("cuda") == "products"
    fix_attention("sdpa")
    assert attention_in_use("cpu") == "sdpa"


def test_a_run_says_what_was_chosen() -> None:
    for choice in CHOICES:
        with fixed_attention(choice):
            assert provenance()["attention"]["cpu"] == choice
