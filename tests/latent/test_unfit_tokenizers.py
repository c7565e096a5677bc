"""Tokenizers that do not fit the model or the text: found before anything is trained, with the word in the message."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dropout_grpo.errors import UserError
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import LATENT_TOKENS, add_latent_tokens, embedding_table, encode_questions
from helpers.grpo_run import CONFIG, trainer
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.tiny_latent import tiny_latent, tiny_problems

SPECIAL = {"<pad>": 0, "<eos>": 1, "<unk>": 2}


def words(vocabulary: dict[str, int]) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel(SPECIAL | vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: symbols are words of their own, and decoding puts a space between two words."""
    vocabulary = SPECIAL | {word: i for i, word in enumerate(["#", *"0123456789", "ann", "has", "?"], start=3)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def latent(tokenizer: PreTrainedTokenizerFast) -> LatentModel:
    model = tiny_model("gpt2", torch.float32, vocab_size=len(tokenizer))
    add_latent_tokens(model, tokenizer)
    return LatentModel(model, tokenizer, latent_steps=2)


def test_a_vocabulary_with_gaps_keeps_the_rows_of_its_words() -> None:
    """Five words and gaps: added tokens are numbered from the count of words, so the third gets the id of ``Ann``."""
    tokenizer, model = words({"7": 3, "Ann": 7}), tiny_model("gpt2", vocab_size=8)
    before = embedding_table(model).detach().clone()
    with pytest.raises(UserError, match=re.escape("gaps in its ids, so <|latent|> would get id 7, which is 'Ann'")):
        add_latent_tokens(model, tokenizer)
    assert torch.equal(embedding_table(model), before)


def test_gaps_that_take_all_latent_tokens_do_no_harm() -> None:
    tokenizer, model = words({"7": 3, "Ann": 20}), tiny_model("gpt2", vocab_size=21)
    before = embedding_table(model).detach().clone()
    add_latent_tokens(model, tokenizer)
    ids = tokenizer.convert_tokens_to_ids(list(LATENT_TOKENS))
    assert ids == [5, 6, 7]
    table = embedding_table(model)
    assert torch.equal(table[20], before[20])
    torch.testing.assert_close(table[ids], before[[0, 1, 2, 3, 20]].mean(0).expand(3, -1))
    assert LatentModel(model, tokenizer, latent_steps=2).tokens.latent == 7


def test_latent_tokens_beyond_the_table_get_rows_before_training_and_are_named_otherwise() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model("llama", torch.float32, vocab_size=28)
    tokenizer.add_tokens(list(LATENT_TOKENS), special_tokens=True)
    with pytest.raises(UserError) as caught:
        LatentModel(model, tokenizer, latent_steps=2)
    assert "its tokenizer has '<|start-latent|>' with id 28, and the model has embeddings for the ids below 28" in str(
        caught.value
    )
    assert "resize_token_embeddings(31)" in str(caught.value)
    before = embedding_table(model).detach().clone()
    add_latent_tokens(model, tokenizer)
    assert embedding_table(model).shape[0] == 31
    torch.testing.assert_close(embedding_table(model)[28:], before.mean(0).expand(3, -1))
    LatentModel(model, tokenizer, latent_steps=2)


def test_a_padding_token_beyond_the_table_is_named() -> None:
    model = tiny_latent()
    model.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    with pytest.raises(UserError, match=r"has '\[PAD\]' with id 31, and the model has embeddings for the ids below 31"):
        LatentModel(model.model, model.tokenizer, latent_steps=2)


@pytest.mark.parametrize(("stop", "word"), [(7, "4"), ([1, 24], "has")])
def test_an_end_of_sequence_token_that_is_a_word_is_warned_of(stop: int | list[int], word: str) -> None:
    model = tiny_latent()
    model.model.generation_config.eos_token_id = stop
    with pytest.warns(
        UserWarning, match=rf"eos_token_id \d+ of its config is the ordinary token '{word}' of its token"
    ):
        LatentModel(model.model, model.tokenizer, latent_steps=2)


@pytest.mark.parametrize("stop", [None, 1, [1, 0], 50256])
def test_special_tokens_and_ids_without_a_token_are_no_words(stop: int | list[int] | None) -> None:
    model = tiny_latent()
    model.model.generation_config.eos_token_id = stop
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LatentModel(model.model, model.tokenizer, latent_steps=2)


def test_unknown_words_of_a_question_are_refused_by_name() -> None:
    model = tiny_latent()
    with pytest.raises(
        UserError, match=r"'zebra has 5 xylophones \?' has words .* as <unk>: 'zebra' \(1\), 'xylophones'"
    ):
        model.answer(["Ann has 5 ?", "zebra has 5 xylophones ?"])
    with pytest.raises(UserError, match="'ann'"):  # this tokenizer knows Ann
        model.answer("ann has 5 ?")


def test_unknown_white_space_is_no_word() -> None:
    """The newline that ends a question may be unknown to a list of words; training reads it alike."""
    backend = Tokenizer(models.WordLevel(SPECIAL | {"Ann": 3, "###": 4, "7": 5}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
    model = latent(tokenizer)
    assert encode_questions(tokenizer, ["Ann "], model.tokens) == [[3, 2, model.tokens.start]]


def test_one_question_as_a_text_gives_one_answer_as_a_text() -> None:
    model = tiny_latent(seed=3)
    one, two = model.answer(["Ann has 5 ?", "how many ?"], 4)
    assert one != two
    assert model.answer("Ann has 5 ?", 4) == one
    assert model.encode("Ann has 5 ?")[0].tolist() == model.encode(["Ann has 5 ?"])[0].tolist()


def test_answers_that_come_back_are_writable() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_latent().require_writable(["7", "9", "7"])


def test_a_tokenizer_that_splits_the_marker_is_refused_before_training(tmp_path: Path) -> None:
    model = latent(word_piece())
    assert model.tokenizer.decode(model.tokenizer.encode("### 7")) == "# # # 7"
    message = r"cannot write 4 of 4 different answers, .*: '### 3' is decoded as '# # # 3'"
    with pytest.raises(UserError, match=message):
        trainer(tmp_path, CONFIG, model=model, problems=tiny_problems(4))


def test_a_word_list_without_the_marker_is_refused() -> None:
    model = latent(words({"7": 3, "Ann": 4, "has": 5}))
    with pytest.raises(UserError, match=r"'### 7' has words .*'###'"):
        model.require_writable(["7"])


def test_some_answers_that_are_lost_are_warned_of() -> None:
    """``1.5`` is three words, and decoding puts spaces between them."""
    with pytest.warns(
        UserWarning, match=r"cannot write 1 of 2 different answers, .*: '### 1\.5' is decoded as '### 1 \. 5'"
    ):
        tiny_latent().require_writable(["7", "1.5"])
