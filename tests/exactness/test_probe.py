"""The probe at load time: models that fail it are refused or copy their prompts."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel, probe
from dropout_grpo.latent.tokens import add_latent_tokens
from helpers.families import tiny
from helpers.oracle import oracle_run
from helpers.tiny import tiny_model, tiny_tokenizer

TINY = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "deepseek_v3": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1}
    | {"topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    | {"v_head_dim": 8, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}
QUESTIONS = ["Ann has 3 ?", "Bob has 5 ? ? ?"]


def built(model_type: str, **more: Any) -> tuple[PreTrainedModel, Any]:
    """A tiny random float64 model with latent tokens, and its tokenizer."""
    config = AutoConfig.for_model(model_type, **{**TINY, **more})
    config._experts_implementation = "eager"  # the grouped product takes no float64
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise + parameter if parameter.ndim == 1 else noise)
    tokenizer = tiny_tokenizer()
    add_latent_tokens(model, tokenizer)
    return model, tokenizer


def assert_equals_own_forward(latent: LatentModel, plain: PreTrainedModel) -> None:
    """Two questions in one left-padded batch, two rollouts each, equal the oracle row by row, to float32's rounding."""
    rows, answer = latent.encode_rows(QUESTIONS), [5, 6]
    with torch.no_grad():
        state = latent.think(latent.read(*latent.pad(rows)).repeat(2), 2)
        found = latent.score(state, torch.tensor([answer] * 4))
        expected = [oracle_run(plain, row, 2, latent.tokens.end, answer).logprobs for row in rows for _ in range(2)]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_an_attention_that_ignores_the_shared_prompt_keeps_its_own() -> None:
    """Nemotron does not pass keyword arguments on: with a shared prompt it answers without reading the question."""
    plain, tokenizer = built("nemotron")
    twin, _ = built("nemotron")
    with pytest.warns(UserWarning, match="does not work with a shared prompt"):
        model = LatentModel(plain, tokenizer, latent_steps=2)
    assert not model.shares_prefix
    assert_equals_own_forward(model, twin)


def placed(model: LatentModel, plain: PreTrainedModel) -> LatentModel:
    """A model on the device ``meta``, moved to the CPU with the weights of ``plain``."""
    parts = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (model.model, plain)]
    real = {id(part): parts[1][name] for name, part in parts[0].items()}
    return model._apply(lambda tensor: real[id(tensor)])


def test_the_probe_runs_again_where_the_model_is_placed() -> None:
    """Another device has other kernels. What works on the first need not work there."""
    plain, tokenizer = built("nemotron")
    model = LatentModel(copy.deepcopy(plain).to("meta"), tokenizer, latent_steps=2)
    assert model.shares_prefix
    assert "attention_weights" not in model.sites.lacking
    with pytest.warns(UserWarning, match="does not work with a shared prompt"):
        placed(model, plain)
    assert not model.shares_prefix
    assert "attention_weights" in model.sites.lacking
    assert_equals_own_forward(model, plain)


def test_where_nothing_moves_there_is_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, tokenizer = built("llama")
    model = LatentModel(copy.deepcopy(plain), tokenizer, latent_steps=2)
    monkeypatch.setattr(LatentModel, "_choose_attention", None)
    assert model.to("cpu").to(torch.float32).shares_prefix


def test_without_the_probe_its_answers_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above compares something: what the probe prevents does happen without it."""
    monkeypatch.setattr("dropout_grpo.latent.recurrence.agrees", lambda found, expected: True)
    plain, tokenizer = built("nemotron")
    model = LatentModel(plain, tokenizer, latent_steps=2)
    assert model.shares_prefix
    with pytest.raises(AssertionError):
        assert_equals_own_forward(model, built("nemotron")[0])


def test_models_that_share_still_share() -> None:
    for kind in ("gpt2", "llama", "qwen2"):
        tokenizer, model = tiny_tokenizer(), tiny_model(kind, vocab_size=28)
        add_latent_tokens(model, tokenizer)
        assert LatentModel(model, tokenizer, latent_steps=1).shares_prefix


def test_a_model_that_neither_way_fits_is_refused_by_name() -> None:
    """TrOCR counts positions from the start of the row, so padding shifts them."""
    model, tokenizer = tiny("trocr", torch.float32), tiny_tokenizer()
    add_latent_tokens(model, tokenizer)
    with pytest.raises(UserError, match=r"TrOCRForCausalLM, float32\) cannot be used.*other hidden states"):
        LatentModel(model, tokenizer, latent_steps=1)


@pytest.mark.parametrize("kind", EXPERTS)
def test_mixtures_of_experts_equal_their_own_forward_pass(kind: str) -> None:
    plain, tokenizer = built(kind, **EXPERTS[kind])
    model = LatentModel(plain, tokenizer, latent_steps=2)
    assert_equals_own_forward(model, built(kind, **EXPERTS[kind])[0])


@pytest.mark.parametrize("kind", EXPERTS)
def test_a_mask_on_experts_multiplies_the_output_of_the_block(kind: str) -> None:
    """With every other feature of each MLP's output at 0 and the rest doubled, as in a twin whose blocks do so."""
    plain, tokenizer = built(kind, **EXPERTS[kind])
    model = LatentModel(plain, tokenizer, latent_steps=2)
    twin, _ = built(kind, **EXPERTS[kind])
    factor = torch.tensor([0.0, 2.0] * 8, dtype=torch.float64)

    def halve(module: Any, args: Any, output: Any) -> Any:
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    for layer in twin.get_decoder().layers:
        layer.mlp.register_forward_hook(halve)
    row = model.encode_rows(QUESTIONS)[1]
    held = {site.name: factor[None, None] for site in model.sites.instances(("mlp",))}
    assert len(held) == 2

    class Held:
        def factors(self, phase: str, step: int) -> dict[str, Tensor]:
            return held

        def select(self, rows: Tensor) -> "Held":
            return self

    with torch.no_grad():
        state = model.think(model.read(*model.pad([row]), Held()), 2, Held())
        found = model.score(state, torch.tensor([[5, 6]]), noise=Held())
        expected = oracle_run(twin, row, 2, model.tokens.end, [5, 6]).logprobs
        other = oracle_run(built(kind, **EXPERTS[kind])[0], row, 2, model.tokens.end, [5, 6]).logprobs
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    assert (expected - other).abs().max() > 1e-2


def test_a_site_that_experts_lack_is_refused_by_name() -> None:
    plain, tokenizer = built("mixtral", **EXPERTS["mixtral"])
    model = LatentModel(plain, tokenizer, latent_steps=2)
    assert tuple(model.sites.lacking) == ("mlp_hidden",)
    with pytest.raises(UserError, match="'mlp_hidden': MixtralModel has no such site"):
        model.noise(SharedDropout(0.1, ("mlp_hidden",)), torch.tensor([1]))


def test_agreement_is_relative_to_the_hidden_state_and_fails_on_what_is_not_finite() -> None:
    expected = torch.full((2, 3), 100.0)
    assert probe.agrees(expected + 0.5, expected)  # half a percent
    assert not probe.agrees(expected + 5.0, expected)
    assert not probe.agrees(expected * torch.nan, expected)
    assert probe.agrees(expected, expected * torch.nan)  # damaged weights: nothing to compare
