"""A word-level tokenizer for generated tasks: every word, number and symbol is a token."""

import re
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dropout_grpo.data.answers import MARKER
from dropout_grpo.data.problem import Problem

SPECIAL = ("<pad>", "<eos>", "<unk>")

_PIECE = r"\n|<<|>>|#+|[0-9]+|[^\W\d_]+|[^\w\s]|_"
"""What becomes a token. White space is dropped, except for newlines."""

_TIGHT = ("+", "-", "*", "=")
"""Symbols that are decoded without spaces around them, as in <<7+6=13>>."""


def word_tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a tokenizer with the given words, the newline, ``###``, padding, end and unknown token.

    Text is lower-cased, so that a question typed by hand is read like a generated one. Words outside the vocabulary
    become ``<unk>``. No special tokens are added to a text. Decoding writes single spaces between words, but none
    inside a step or next to a newline. Padding is on the left. Tokens such as Coconut's ``<|latent|>`` can be added
    afterwards and get the ids that follow.

    Args:
        vocabulary: distinct words in lower case, in the order of their ids. An entry with a space in it is a phrase,
            which is one token; of several phrases that match, the longest is used.
    """
    words = [*SPECIAL, "\n", MARKER, *vocabulary]
    ids = {word: index for index, word in enumerate(words)}
    assert len(ids) == len(words), "the vocabulary repeats a word"
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    phrases = sorted((word for word in vocabulary if " " in word), key=len, reverse=True)
    pieces = "|".join([*(rf"{re.escape(phrase)}(?!\w)" for phrase in phrases), _PIECE])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), behavior="removed", invert=True)
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="\0", cleanup=False),  # no word starts with NUL, so this only inserts spaces
            decoders.Fuse(),
            *(decoders.Replace(f" {symbol} ", symbol) for symbol in _TIGHT),
            decoders.Replace("<< ", "<<"),
            decoders.Replace(" >>", ">>"),
            decoders.Replace(" \n", "\n"),
            decoders.Replace("\n ", "\n"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def words_of(problems: Iterable[Problem]) -> list[str]:
    """The vocabulary of your own task: every word of its questions, steps and answers, sorted."""
    backend = word_tokenizer([]).backend_tokenizer
    words: set[str] = set()
    for problem in problems:
        said = [message["content"] for message in problem.messages or ()]
        for text in (problem.question, *said, *problem.steps, problem.answer):
            pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
            words.update(piece for piece, _ in pieces)
    return sorted(words - {"\n", MARKER})
