"""The word-level tokenizer: one id per word, decoding returns the text, Coconut's layout and special tokens."""

from itertools import chain
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from dropout_grpo.commands.shared.problems import require_known_words
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.tasks.word_problems import WordProblemsConfig, make_splits, vocabulary
from dropout_grpo.tasks.word_tokenizer import word_tokenizer

CONFIG = WordProblemsConfig(n_train=200, n_grpo=0, n_valid=0, n_test=0)
PROBLEMS = make_splits(CONFIG)["train"]
LATENT = ["<|start-latent|>", "<|latent|>", "<|end-latent|>"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(vocabulary(CONFIG))


def test_every_word_number_and_symbol_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "tom has 31 apples .\n<<31-4=27>>\n### 27"
    tokens = ["tom", "has", "31", "apples", ".", "\n", "<<", "31", "-", "4", "=", "27", ">>", "\n", "###", "27"]
    assert tokenizer.tokenize(text) == tokens
    assert tokenizer.encode(text, add_special_tokens=True) == tokenizer.convert_tokens_to_ids(tokens)
    assert tokenizer.unk_token_id not in tokenizer.encode(text)


def test_a_phrase_is_one_token_and_the_longest_that_fits_is_taken() -> None:
    tokenizer = word_tokenizer(["red", "is red", "is red.", "it", "?"])
    assert tokenizer.tokenize("It is red. Is red? red") == ["it", "is red.", "is red", "?", "red"]
    assert tokenizer.tokenize("is reddish") == ["<unk>", "<unk>"]  # a phrase ends where its last word ends
    assert tokenizer.tokenize("this is red") == ["<unk>", "is red"]
    assert tokenizer.tokenize("thi is redis red") == ["<unk>", "<unk>", "<unk>", "red"]


def test_ids_are_fixed(tokenizer: PreTrainedTokenizerFast) -> None:
    """Special tokens, newline, marker, then the vocabulary: number n is id 5 + n."""
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.encode("\n### 0 31") == [3, 4, 5, 36]
    assert len(tokenizer) == 5 + len(vocabulary(CONFIG))


def test_the_whole_text_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    for problem in PROBLEMS:
        text = "\n".join([problem.question, *problem.steps, "### " + problem.answer])
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_pieces_encode_to_the_whole_as_coconut_demands(tokenizer: PreTrainedTokenizerFast) -> None:
    """Coconut's get_dataset asserts this of every tokenizer: nothing is added or merged at the seams."""
    for problem in PROBLEMS:
        parts = [problem.question + "\n", *(step + "\n" for step in problem.steps), "### " + problem.answer]
        encoded = [tokenizer.encode(part, add_special_tokens=True) for part in parts]
        assert list(chain.from_iterable(encoded)) == tokenizer.encode("".join(parts))


def test_hand_typed_text_is_read_like_a_generated_one(tokenizer: PreTrainedTokenizerFast) -> None:
    typed = tokenizer.encode("Tom has 7 apples.  How many apples does Tom have now?")
    assert typed == tokenizer.encode("tom has 7 apples . how many apples does tom have now ?")


def test_unknown_words_become_one_unk_each(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("tom has 32 kiwis . Größe !") == [
        "tom",
        "has",
        *["<unk>"] * 2,
        ".",
        *["<unk>"] * 2,
    ]
    assert tokenizer.tokenize("tom _ ann_mia") == ["tom", "<unk>", "ann", "<unk>", "mia"]
    assert tokenizer.encode("") == []


def test_latent_tokens_can_be_added(tokenizer: PreTrainedTokenizerFast) -> None:
    size = len(tokenizer)
    assert tokenizer.add_special_tokens({"additional_special_tokens": LATENT}) == 3
    assert tokenizer.convert_tokens_to_ids(LATENT) == [size, size + 1, size + 2]
    ids = tokenizer.encode("tom has 7 .\n<|start-latent|><|latent|><|latent|><|end-latent|>### 7")
    assert ids[-7:] == [3, size, size + 1, size + 1, size + 2, 4, 12]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "tom has 7 .\n### 7"


def test_save_and_load_offline_beside_a_model(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPT-2 config in the folder must not make a GPT-2 tokenizer of it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer.add_special_tokens({"additional_special_tokens": LATENT})
    tokenizer.save_pretrained(tmp_path)
    GPT2Config().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    problem = PROBLEMS[0]
    text = "\n".join([problem.question, *problem.steps, "### " + problem.answer])
    assert loaded.encode(text + "<|latent|>") == [*tokenizer.encode(text), len(loaded) - 2]
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 1, 2)
    assert len(loaded) == len(tokenizer)
    batch = loaded(["tom has 7", "tom"], padding=True)
    assert batch["input_ids"][1] == [0, 0, *loaded.encode("tom")]
    assert batch["attention_mask"] == [[1, 1, 1], [0, 0, 1]]


def test_unknown_words_are_refused_with_their_count(tokenizer: PreTrainedTokenizerFast) -> None:
    known = Problem(id=0, question="Tom has 7 apples .", steps=("<<7+6=13>>",), answer="13")
    require_known_words(tokenizer, [known] * 3, "train")
    strange = [
        Problem(id=1, question="Tom has 7 Kiwis and 99 kiwis .", steps=(), answer="13"),
        Problem(id=2, question="tom has 7 .", steps=("<<7+6=13>>",), answer="13 Kiwis"),
    ]
    with pytest.raises(UserError) as caught:
        require_known_words(tokenizer, [known, *strange], "valid.json")
    message = str(caught.value)
    assert "valid.json: 2 of 3 problems have words" in message
    assert "'Kiwis' (2), 'and' (1), '99' (1), 'kiwis' (1);" in message
    only_steps = [Problem(id=1, question="Tom has 7 apples .", steps=("<<7+99=106>>",), answer="13")]
    require_known_words(tokenizer, only_steps, "test.json")  # nobody reads them; fault: they were refused
    with pytest.raises(UserError, match=r"'99' \(1\), '106' \(1\)"):
        require_known_words(tokenizer, only_steps, "train.json", steps=True)
    many = Problem(id=3, question="a b c d e f g", steps=(), answer="1")
    with pytest.raises(UserError, match=r"and 2 others"):
        require_known_words(tokenizer, [many], "x")


def test_a_tokenizer_whose_unknown_token_is_its_end_is_one_of_bytes(tokenizer: PreTrainedTokenizerFast) -> None:
    """GPT-2's tokenizer names its end token as the unknown one too, and never needs it for a word."""
    text = "tom <eos>"
    assert tokenizer.encode(text)[-1] == tokenizer.eos_token_id
    tokenizer.unk_token = tokenizer.eos_token
    require_known_words(tokenizer, [Problem(id=0, question=text, steps=(), answer="1")], "x")
