"""Phi-3's longrope, whose factors change for all rows of a batch once one of them exceeds the original positions."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, Phi3Config, Phi3ForCausalLM

from dropout_grpo.errors import QuestionTooLong
from dropout_grpo.latent.graphs import ropes
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import add_latent_tokens
from helpers.tiny import tiny_tokenizer
from helpers.tiny_latent import tiny_latent

ORIGINAL, SHORT = 16, [5, 9, 28]


@pytest.fixture(scope="module")
def phi3() -> LatentModel:
    """A tiny Phi-3 of 64 positions, 16 of them before the long factors."""
    config = Phi3Config(
        vocab_size=28,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0, 1.0],
            "long_factor": [4.0, 16.0],
        },
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Phi3ForCausalLM(config).eval()
    tokenizer = tiny_tokenizer()
    add_latent_tokens(model, tokenizer)
    return LatentModel(model, tokenizer, latent_steps=2)


def short_rows_hidden(model: LatentModel, other: int) -> Tensor:
    """The short prompt's hidden state after the thoughts [D], beside a prompt of ``other`` tokens."""
    rows = [SHORT, [3 + i % 20 for i in range(other - 1)] + [28]]
    with torch.no_grad():
        return model.think(model.read(*model.pad(rows)), model.latent_steps).hidden[0, 0]


def test_a_short_question_does_not_depend_on_the_longest_row_that_fits(phi3: LatentModel) -> None:
    alone = short_rows_hidden(phi3, len(SHORT))
    beside_the_longest = short_rows_hidden(phi3, ORIGINAL - phi3.latent_steps)
    torch.testing.assert_close(beside_the_longest, alone, atol=1e-5, rtol=0)
    beside_one_that_is_refused = short_rows_hidden(phi3, ORIGINAL + 1)
    assert (beside_one_that_is_refused - alone).abs().max() > 1e-2


def test_a_longer_question_is_refused_with_the_reason(phi3: LatentModel) -> None:
    assert phi3.max_positions == ORIGINAL
    fits = " ?" * (ORIGINAL - phi3.latent_steps - 3)  # with the newline, the start and the end marker
    assert phi3.encode([fits])[1].sum() == ORIGINAL - phi3.latent_steps - 1
    with pytest.raises(
        QuestionTooLong, match=r"the model has 16 positions before longrope changes all rows of a batch"
    ):
        phi3.encode(["Ann has 3 ?", fits + " ?"])


def test_other_models_keep_all_their_positions() -> None:
    assert tiny_latent("llama").max_positions == tiny_latent("gpt2").max_positions == 64


def test_ropes_of_each_kind_of_layer_are_found() -> None:
    plain = {"rope_type": "default", "rope_theta": 1e4}
    assert [rope["rope_type"] for rope in ropes(LlamaConfig())] == ["default"]
    by_layer = LlamaConfig()
    by_layer.rope_parameters = {"full_attention": plain | {"rope_type": "dynamic"}, "sliding_attention": plain}
    assert [rope["rope_type"] for rope in ropes(by_layer)] == ["dynamic", "default"]
