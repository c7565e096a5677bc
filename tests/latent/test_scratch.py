"""Models with random weights, and the vocabulary of a custom task."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import load_tokenizer
from dropout_grpo.latent.io.scratch import scratch_model
from dropout_grpo.tasks.word_tokenizer import word_tokenizer, words_of
from helpers.tiny import tiny_tokenizer
from helpers.tiny_latent import assert_same_weights

WORDS = ["ann", "has", "3", "figs"]
SIZES = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40}


def test_a_gpt2_is_the_one_that_transformers_makes_with_the_same_seed() -> None:
    tokenizer = word_tokenizer(WORDS)  # 3 special tokens, the newline, ###
    theirs = GPT2Config(
        vocab_size=9,
        n_embd=16,
        n_layer=3,
        n_head=2,
        n_positions=40,
        activation_function="gelu",
        initializer_range=0.02 * 48**0.5,  # 768 / 16 = 48: GPT-2's at its width
    )
    torch.manual_seed(5)
    model = GPT2LMHeadModel(theirs)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    ours = scratch_model(tokenizer, **SIZES, seed=5)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is left alone
    assert_same_weights(dict(ours.state_dict()), dict(model.state_dict()))
    assert (ours.config.eos_token_id, ours.config.pad_token_id) == (1, 0)
    other = scratch_model(tokenizer, **SIZES, seed=6)
    assert not torch.equal(other.get_input_embeddings().weight, ours.get_input_embeddings().weight)


@pytest.mark.parametrize("model_type", ["qwen3", "opt"])
def test_other_architectures_have_the_sizes_asked_for(model_type: str) -> None:
    model = scratch_model(word_tokenizer(WORDS), model_type=model_type, **SIZES)
    assert model.config.model_type == model_type
    assert model.get_input_embeddings().weight.shape == (9, 16)
    assert model.config.max_position_embeddings == 40
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (3, 2)


def test_of_a_model_that_also_sees_only_the_text_model_is_made() -> None:
    """Fault: it had the default sizes, billions of parameters."""
    with torch.device("meta"):
        model = scratch_model(word_tokenizer(WORDS), model_type="gemma3", **SIZES)
    assert sum(parameter.numel() for parameter in model.parameters()) < 20_000


@pytest.mark.parametrize("model_type", ["no_such_thing", "vit"])
def test_what_is_no_causal_language_model_is_refused(model_type: str) -> None:
    with pytest.raises(UserError, match=f"model_type '{model_type}' is not a causal language model"):
        scratch_model(word_tokenizer(WORDS), model_type=model_type, **SIZES)


def test_words_of_problems_are_their_vocabulary() -> None:
    problems = [
        Problem(id=0, question="Ann has 3 figs,\nhow many?", steps=("<<3+4=7>>",), answer="### 7"),
        Problem(id=1, question="ann has 12", steps=(), answer="12.5"),
    ]
    expected = [*"+,.=?", "12", "3", "4", "5", "7", "<<", ">>", "ann", "figs", "has", "how", "many"]
    words = words_of(problems)
    assert words == sorted(expected)
    tokenizer = word_tokenizer(words)
    texts = [text for p in problems for text in (p.question, *p.steps, p.answer)]
    assert tokenizer.unk_token_id not in {token for text in texts for token in tokenizer.encode(text)}


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "gemma"])
def test_a_saved_word_tokenizer_is_the_same_when_loaded_whatever_the_models_type(
    model_type: str, tmp_path: Path
) -> None:
    """transformers would read it as the tokenizer of Qwen2, for example, which drops words."""
    tokenizer = tiny_tokenizer()
    scratch_model(tokenizer, n_embd=16, n_layer=1, n_head=2, n_positions=16, model_type=model_type).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    text = "Ann has 3 ### how many ?\n"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 8
    loaded = load_tokenizer(tmp_path)
    assert loaded(text)["input_ids"] == ids
    assert loaded.get_vocab() == tokenizer.get_vocab()
