"""The wrapper around the recurrence: texts, the model's own dropout, and transformers' attributes that it reads."""

import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from dropout_grpo.errors import UserError
from dropout_grpo.latent.graphs import recordings_for
from dropout_grpo.latent.recurrence import switch_off_dropout
from dropout_grpo.latent.shared_prompt import shares_prefix
from helpers.fake_cuda import fake_cuda
from helpers.tiny import EXTRA_KINDS, KINDS, tiny_model
from helpers.tiny_latent import tiny_latent


def test_no_questions_are_refused_where_a_tensor_is_needed_and_have_no_answers() -> None:
    model = tiny_latent()
    with pytest.raises(UserError, match="no questions to encode: give at least one"):
        model.encode([])
    assert model.encode_rows([]) == []
    assert model.answer([]) == []


@pytest.mark.parametrize("name", ["_can_compile_fullgraph", "_supports_attention_backend"])
def test_transformers_still_has_the_private_attributes_that_are_read(name: str) -> None:
    """Without them results stay the same, but graphs and shared prompts are silently gone."""
    assert getattr(GPT2LMHeadModel, name) is True
    assert getattr(LlamaForCausalLM, name) is True
    assert getattr(PreTrainedModel, name) is False


def test_without_the_private_attributes_models_copy_prompts_and_run_step_by_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, ids = tiny_latent(), torch.tensor([[5, 9, 28]])
    with fake_cuda(), torch.no_grad():
        state = model.read(ids, torch.ones_like(ids))
        assert recordings_for(model, state, 2, None) is not None
        for base in GPT2LMHeadModel.__mro__:
            if "_can_compile_fullgraph" in vars(base):
                monkeypatch.delattr(base, "_can_compile_fullgraph")
            if "_supports_attention_backend" in vars(base):
                monkeypatch.delattr(base, "_supports_attention_backend")
        assert recordings_for(model, state, 2, None) is None
        assert not shares_prefix(tiny_model("gpt2"))


@pytest.mark.parametrize("kind", KINDS + EXTRA_KINDS)
def test_no_probability_is_left_in_modules_or_config(kind: str) -> None:
    model = tiny_model(kind)
    switch_off_dropout(model)
    assert all(module.p == 0.0 for module in model.modules() if isinstance(module, nn.Dropout))
    config = model.config.to_dict()
    left = {name: value for name, value in config.items() if "drop" in name and isinstance(value, float)}
    assert not any(left.values()), left
