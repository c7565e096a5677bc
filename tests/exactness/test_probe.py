"""The probe at load time: models that fail it are refused or copy their prompts."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel, probe
from dropout_grpo.latent.state import LatentState
from dropout_grpo.latent.tokens import add_latent_tokens
from helpers.families import tiny
from helpers.oracle import oracle_run
from helpers.tiny import tiny_tokenizer

QUESTIONS = ["Ann has 3 ?", "Bob has 5 ? ? ?"]


def built(model_type: str, dtype: torch.dtype = torch.float64) -> tuple[PreTrainedModel, Any]:
    """A tiny random model with latent tokens, and its tokenizer."""
    model, tokenizer = tiny(model_type, dtype), tiny_tokenizer()
    add_latent_tokens(model, tokenizer)
    return model, tokenizer


def assert_equals_own_forward(latent: LatentModel, plain: PreTrainedModel) -> None:
    """Two questions in one left-padded batch, two rollouts each, equal the oracle row by row, to float32's rounding."""
    rows, answer = latent.encode_rows(QUESTIONS), [5, 6]
    with torch.no_grad():
        state = latent.think(latent.read(*latent.pad(rows)).repeat(2), 2)
        actual = latent.score(state, torch.tensor([answer] * 4))
        expected = [oracle_run(plain, row, 2, latent.tokens.end, answer).logprobs for row in rows for _ in range(2)]
    torch.testing.assert_close(actual, torch.stack(expected), atol=1e-5, rtol=1e-5)


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
    monkeypatch.setattr(LatentModel, "_differs", lambda *arguments: None)
    monkeypatch.setattr(
        "dropout_grpo.latent.recurrence.packing_of", lambda mask, width: None
    )  # which it cannot run at all
    plain, tokenizer = built("nemotron")
    model = LatentModel(plain, tokenizer, latent_steps=2)
    assert model.shares_prefix
    with pytest.raises(AssertionError):
        assert_equals_own_forward(model, built("nemotron")[0])


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.filterwarnings("ignore:.*a shared prompt")
def test_one_thought_at_a_wrong_position_is_noticed(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = LatentModel._inputs

    def shifted(self: LatentModel, state: LatentState, *args: Any) -> Any:
        cache, inputs = right(self, state, *args)
        return cache, inputs | {"position_ids": inputs["position_ids"] + (state.latent_step == wrong)}

    monkeypatch.setattr(LatentModel, "_inputs", shifted)
    with pytest.raises(UserError, match=r"cannot be used: .*other hidden states"):
        LatentModel(*built("llama"), latent_steps=2)


def test_a_model_that_neither_way_fits_is_refused_by_name() -> None:
    """TrOCR counts positions from the start of the row, so padding shifts them."""
    model, tokenizer = built("trocr", torch.float32)
    with pytest.raises(UserError, match=r"TrOCRForCausalLM, float32\) cannot be used.*other hidden states"):
        LatentModel(model, tokenizer, latent_steps=1)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_mask_on_experts_multiplies_the_output_of_the_block(kind: str) -> None:
    """With every other feature of each MLP's output at 0 and the rest doubled, as in a twin whose blocks do so."""
    plain, tokenizer = built(kind)
    model = LatentModel(plain, tokenizer, latent_steps=2)
    twin, _ = built(kind)
    factor = torch.tensor([0.0, 2.0] * 16, dtype=torch.float64)

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
        actual = model.score(state, torch.tensor([[5, 6]]), noise=Held())
        expected = oracle_run(twin, row, 2, model.tokens.end, [5, 6]).logprobs
        other = oracle_run(built(kind)[0], row, 2, model.tokens.end, [5, 6]).logprobs
    torch.testing.assert_close(actual[0], expected, atol=1e-5, rtol=1e-5)
    assert (expected - other).abs().max() > 1e-2


def test_a_site_that_experts_lack_is_refused_by_name() -> None:
    plain, tokenizer = built("mixtral")
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
