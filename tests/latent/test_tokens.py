"""Coconut's tokens and prompts, id by id."""

import logging

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dropout_grpo.errors import UserError
from dropout_grpo.latent.tokens import (
    END,
    LATENT,
    START,
    LatentTokens,
    add_latent_tokens,
    encode_answers,
    encode_questions,
    encode_steps,
    latent_tokens,
    pad_left,
    pad_right,
)
from helpers.tiny import WORDS, tiny_model, tiny_tokenizer

TOKENS = LatentTokens(start=28, end=29, latent=30, eos=1, pad=0)
ID = {word: i for i, word in enumerate(WORDS)}


def with_latent_tokens() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([START, END, LATENT], special_tokens=True)
    return tokenizer


def test_latent_tokens_are_found_by_name() -> None:
    tokenizer = with_latent_tokens()
    assert latent_tokens(tokenizer, "here") == TOKENS
    tokenizer.pad_token = None
    assert latent_tokens(tokenizer, "here").pad == TOKENS.eos  # GPT-2 has no padding token


def test_missing_tokens_are_named_with_the_place_and_the_remedy() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([START], special_tokens=True)
    with pytest.raises(UserError, match=r"some/folder has no latent tokens: <\|end-latent\|>, <\|latent\|> not") as e:
        latent_tokens(tokenizer, "some/folder")
    assert "dropout-grpo sft" in str(e.value)
    assert START not in str(e.value)
    tokenizer = with_latent_tokens()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="some/folder has no end-of-sequence token"):
        latent_tokens(tokenizer, "some/folder")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])  # tied and untied head
def test_new_tokens_start_from_the_mean_embedding(kind: str) -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model(kind, vocab_size=28)
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    old, drawn = [table.detach().clone() for table in tables], torch.get_rng_state()
    add_latent_tokens(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), drawn)  # nothing is drawn that is then overwritten
    assert latent_tokens(tokenizer, "here") == TOKENS
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) == (kind == "gpt2")
    for table, before in zip(tables, old, strict=True):
        assert table.shape == (31, 16)
        assert torch.equal(table[:28], before)
        torch.testing.assert_close(table[28:], before.mean(0).expand(3, -1))
    assert model.config.vocab_size == 31


def test_new_tokens_start_from_the_opening_bracket_where_there_is_one() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model("llama", vocab_size=40)
    tokenizer.add_tokens(["<<"])
    before = [t.weight.detach().clone() for t in (model.get_input_embeddings(), model.get_output_embeddings())]
    add_latent_tokens(model, tokenizer)
    for table, old in zip((model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True):
        assert table.weight.shape == (40, 16)  # a table with room to spare keeps its size
        assert torch.equal(table.weight[29:32], old[28].expand(3, -1))
        assert torch.equal(table.weight[:29], old[:29])
        assert torch.equal(table.weight[32:], old[32:])


def test_adding_twice_changes_nothing() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model("gpt2", vocab_size=28)
    add_latent_tokens(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[28:] += 1  # as if trained
    trained = model.get_input_embeddings().weight.detach().clone()
    add_latent_tokens(model, tokenizer)
    assert len(tokenizer) == 31
    assert torch.equal(model.get_input_embeddings().weight, trained)


def test_a_prompt_is_question_newline_start_marker() -> None:
    actual = encode_questions(with_latent_tokens(), ["Ann has 7. how many?", "7"], TOKENS)
    words = ["Ann", "has", "7", ".", "how", "many", "?", "\n"]
    assert actual == [[*(ID[word] for word in words), 28], [ID["7"], ID["\n"], 28]]
    assert encode_questions(with_latent_tokens(), [], TOKENS) == []


def test_a_completion_is_steps_a_line_each_then_marker_answer_eos() -> None:
    tokenizer = with_latent_tokens()
    newline, marker = ID["\n"], ID["###"]
    assert encode_answers(tokenizer, ["7", "5"], TOKENS) == [[marker, ID["7"], 1], [marker, ID["5"], 1]]
    assert encode_steps(tokenizer, [["3+4=7", "7-2=5"], [], ["5"]]) == [
        [[*(ID[c] for c in "3+4=7"), newline], [*(ID[c] for c in "7-2=5"), newline]],
        [],
        [[ID["5"], newline]],
    ]
    assert encode_steps(tokenizer, [[], []]) == [[], []]


def test_transformers_does_not_warn_of_a_text_too_long_before_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, warned = with_latent_tokens(), []
    monkeypatch.setattr(logging.Logger, "handle", lambda self, record: warned.append(record.getMessage()))
    tokenizer.model_max_length = 3
    assert len(encode_questions(tokenizer, ["Ann has 7."], TOKENS)[0]) == 6
    assert len(encode_steps(tokenizer, [["3+4=7"]])[0][0]) == 6
    assert warned == []
    tokenizer.encode("Ann has 7.")
    assert ["(4 > 3)" in message for message in warned] == [True]


def test_padding_by_hand() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], 0, "cpu")
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad_right([[5, 6, 7], [8]], 9, "cpu")
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64
