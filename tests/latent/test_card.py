"""Files of a saved folder for use without this package: a model card, and ``custom_generate``."""

from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Model, PreTrainedTokenizerFast

from dropout_grpo.latent.io.card import CardFacts, Measured
from dropout_grpo.latent.io.checkpoint import save_latent_model
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.recurrence import cache_name
from helpers.tiny_latent import tiny_latent

QUESTIONS = ["Ann has 3 ?", "Ann has 5 ? ? ?"]


def transformers_answers(folder: Path, questions: list[str], end: str = "\n", **options: object) -> list[str]:
    """Answers by transformers' own ``generate``, all questions in one left-padded batch."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    inputs = tokenizer([q + end for q in questions], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    ids = model.generate(
        **inputs,
        custom_generate=str(folder),
        trust_remote_code=True,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        **options,
    )
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("kind", "thought"),
    [("gpt2", "hidden_state"), ("gpt2", "pause"), ("gpt2", "projection"), ("llama", "hidden_state")],
)
def test_generate_thinks_as_we_do(tmp_path: Path, kind: str, thought: str) -> None:
    model = tiny_latent(kind, latent_steps=3, thought=thought)
    model.save_pretrained(tmp_path / "saved")
    assert transformers_answers(tmp_path / "saved", QUESTIONS) == model.answer(QUESTIONS, 6)
    with_marker = transformers_answers(tmp_path / "saved", QUESTIONS, end="\n<|start-latent|>")
    assert with_marker == model.answer(QUESTIONS, 6), "the marker is not added again"
    without = transformers_answers(tmp_path / "saved", QUESTIONS, latent_steps=0)
    assert without != model.answer(QUESTIONS, 6), "it does not think"


def test_the_card_says_what_was_done(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n", encoding="utf-8")
    facts = CardFacts(
        base=str(base),
        method="Dropout-GRPO",
        command="dropout-grpo grpo --checkpoint runs/sft",
        measured=[Measured(file="data/test.json", n=200, pass_at_1=0.25, ci95=(0.195, 0.314))],
    )
    save_latent_model(tiny_latent(latent_steps=2), tmp_path / "saved", facts)
    card = ModelCard.load(tmp_path / "saved" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model is None, "a local folder is nobody else's"
    assert card.data.eval_results is not None
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("pass@1", 0.25, "test.json")
    assert "| test.json | 200 | 25.0% | 19.5% to 31.4% |" in card.text
    assert "takes 2 latent steps (thought: hidden_state)" in card.text
    assert "$ dropout-grpo grpo --checkpoint runs/sft" in card.text


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_has_the_name_that_the_model_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """transformers 5.24 renamed past_key_values to cache; the package and published folders meet both."""
    model = tiny_latent(latent_steps=3)
    expected = model.answer(QUESTIONS, 6)
    model.save_pretrained(tmp_path / "saved")
    theirs, own, seen = GPT2Model.forward, cache_name(model.model), []

    def renamed(self: GPT2Model, *ids: Any, **kwargs: Any) -> Any:
        seen.append(set(kwargs))
        kwargs[own] = kwargs.pop(name, None) if name in kwargs else kwargs.get(own)
        output = theirs(self, *ids, **kwargs)
        output[name] = output.get(own)
        return output

    renamed.__signature__ = Signature(
        [Parameter("self", Parameter.POSITIONAL_ONLY), Parameter(name, Parameter.KEYWORD_ONLY)]
    )  # type: ignore[attr-defined]
    monkeypatch.setattr(GPT2Model, "forward", renamed)
    assert transformers_answers(tmp_path / "saved", QUESTIONS) == expected
    assert all(name in kwargs for kwargs in seen[:3]), "the three thoughts"
    seen.clear()
    assert LatentModel.from_pretrained(tmp_path / "saved").answer(QUESTIONS, 6) == expected
    assert sum(name in kwargs for kwargs in seen) >= 4, "the prompt and three thoughts; the head passes its own name on"


def test_an_answer_ends_at_the_tokenizers_end_as_well(tmp_path: Path) -> None:
    """Fault: as the card calls it, generate ran past an EOS that only the tokenizer has."""
    model = tiny_latent()
    model.save_pretrained(tmp_path)
    first = model.tokenizer(model.answer(QUESTIONS[:1], 1)[0])["input_ids"][0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side="left")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(first)
    tokenizer.save_pretrained(tmp_path)
    inputs = {**tokenizer([QUESTIONS[0] + "\n"], return_tensors="pt"), "token_type_ids": None}
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    answers = plain.generate(**inputs, custom_generate=str(tmp_path), trust_remote_code=True, max_new_tokens=6)
    assert answers.tolist() == [[first]]


def test_the_card_names_a_tokenizer_class_that_gives_the_models_ids(tmp_path: Path) -> None:
    """Fault: AutoTokenizer takes Qwen2's own class for any model of this type, and splits words otherwise."""
    model = tiny_latent("qwen2")
    save_latent_model(model, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert 'tokenizer = PreTrainedTokenizerFast.from_pretrained("CHECKPOINT", padding_side="left")' in card
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert tokenizer([QUESTIONS[0]])["input_ids"] == [model.tokenizer(QUESTIONS[0])["input_ids"]]


def test_an_answer_is_greedy_whatever_the_base_samples_with(tmp_path: Path) -> None:
    """Fault: a base's sampling and penalties, made for its answers in words, held for those after thoughts too."""
    model = tiny_latent(latent_steps=3)
    model.model.generation_config.update(
        do_sample=True, temperature=9.0, repetition_penalty=9.0, no_repeat_ngram_size=1
    )
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.generation_config.repetition_penalty == 9
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, padding_side="left")
    inputs = tokenizer([q + "\n" for q in QUESTIONS], return_tensors="pt", padding=True)
    inputs.pop("token_type_ids", None)
    more = {"custom_generate": str(tmp_path), "trust_remote_code": True, "max_new_tokens": 6}
    answers = plain.generate(**inputs, **more)
    assert tokenizer.batch_decode(answers, skip_special_tokens=True) == model.answer(QUESTIONS, 6)
    assert not torch.equal(plain.generate(**inputs, **more, repetition_penalty=9.0), answers), (
        "the caller's option holds"
    )


def test_the_number_of_thoughts_is_that_of_the_folder_now(tmp_path: Path) -> None:
    """Fault: in one process a folder kept the number that it was first read with."""
    model = tiny_latent(latent_steps=3)
    for steps in (3, 0):
        model.latent_steps = steps
        model.save_pretrained(tmp_path)
        assert transformers_answers(tmp_path, QUESTIONS) == model.answer(QUESTIONS, 6)


@pytest.mark.parametrize("card", [b"---\nname: a: b\n---\n", b"---\n- 1\n---\n", b"---\n1: a\n---\n", b"\xff"])
def test_a_bases_card_that_cannot_be_read_has_no_licence(tmp_path: Path, card: bytes) -> None:
    """Fault: a training ended in a traceback."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_bytes(card)
    save_latent_model(tiny_latent(), tmp_path / "saved", CardFacts(base=str(tmp_path / "base")))
    assert ModelCard.load(tmp_path / "saved" / "README.md").data.license is None
