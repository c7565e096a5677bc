"""GGUF files as starting points: equal weights, the same tokenizer, and plain folders when saved."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dropout_grpo.cli.main import main
from dropout_grpo.commands.inspect import inspect
from dropout_grpo.commands.shared.smoke import architecture_of
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io import gguf as weights_gguf
from dropout_grpo.latent.io.causal_lm import load_causal_lm, load_tokenizer
from dropout_grpo.latent.io.gguf import gguf_file
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import LATENT_TOKENS, add_latent_tokens
from helpers.tiny_gguf import CHAT, SPECIAL, TOKENS, write_gguf
from helpers.tiny_latent import assert_same_weights

IDS = torch.tensor([[5, 9, 200, 17, 3, 3, 88, 260]])


@pytest.mark.parametrize(("architecture", "tied"), [("llama", True), ("llama", False), ("qwen2", True)])
def test_weights_and_logits_are_those_that_the_file_holds(tmp_path: Path, architecture: str, tied: bool) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", architecture, tied=tied, quantized=tied)
    before = torch.get_rng_state()
    model, _ = load_causal_lm(tmp_path / "tiny.gguf")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(model) is type(expected)
    assert_same_weights(dict(model.state_dict()), dict(expected.state_dict()))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=1e-5, atol=1e-5)
    config = model.config
    assert config.tie_word_embeddings is tied
    assert (config.max_position_embeddings, config.num_key_value_heads) == (128, 2)
    assert config.rope_parameters["rope_theta"] == 5000.0
    assert (config.eos_token_id, config.pad_token_id) == (2, 2)


def test_the_tokenizer_keeps_merges_chat_tokens_and_template(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama")
    tokenizer = load_tokenizer(tmp_path / "tiny.gguf")
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.bos_token) == (len(TOKENS), "<|im_end|>", "<|im_start|>")
    assert tokenizer.chat_template == CHAT
    said = tokenizer.apply_chat_template([{"role": "user", "content": "Ann has 1"}], tokenize=False)
    ids = tokenizer(said)["input_ids"]
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 1, 1)  # <|im_start|> and <|im_end|> are one token each
    assert tokenizer.convert_ids_to_tokens(tokenizer("n has")["input_ids"]) == ["n", "Ġhas"]
    assert tokenizer.decode(ids) == said
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nAnn has 1\n"


def test_what_is_saved_is_a_plain_folder(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama")
    model, tokenizer = load_causal_lm(tmp_path)  # the folder means the one file in it
    add_latent_tokens(model, tokenizer)
    latent = LatentModel(model, tokenizer, latent_steps=2)
    said = latent.answer(["Ann has 12?"], max_new_tokens=4)
    latent.save_pretrained(tmp_path / "saved")
    assert "quantization" not in (tmp_path / "saved" / "config.json").read_text(encoding="utf-8")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert_same_weights(dict(plain.state_dict()), dict(model.state_dict()))
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert reloaded.chat_template == CHAT
    text = "".join(LATENT_TOKENS) + "".join(SPECIAL) + " has 12"
    assert reloaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert LatentModel.from_pretrained(tmp_path / "saved").answer(["Ann has 12?"], max_new_tokens=4) == said


def test_a_folder_with_a_config_is_a_plain_one_and_two_files_have_to_be_chosen_from(tmp_path: Path) -> None:
    first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
    first.touch()
    assert gguf_file(tmp_path) == first
    assert gguf_file(first) == first
    assert gguf_file("HuggingFaceTB/SmolLM2-135M") is None
    second.touch()
    with pytest.raises(UserError, match=r"2 GGUF files \(a.gguf, b.gguf\): name one of them"):
        gguf_file(tmp_path)
    (tmp_path / "config.json").touch()
    assert gguf_file(tmp_path) is None
    assert gguf_file(second) == second


def test_a_missing_package_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setattr(weights_gguf, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"needs the package gguf and accelerate: pip install 'dropout-grpo\[gguf\]'"):
        load_causal_lm(tmp_path / "a.gguf")


def test_a_stand_in_has_the_architecture_of_the_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "qwen2")
    assert architecture_of(str(tmp_path / "tiny.gguf")) == architecture_of(str(tmp_path)) == "qwen2"


def test_a_gguf_without_latent_tokens_is_no_checkpoint(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama")
    with pytest.raises(UserError, match="has no latent tokens"):
        LatentModel.from_pretrained(tmp_path / "tiny.gguf", latent_steps=2)


@pytest.mark.parametrize("size", [0, 4000])
def test_cut_files_are_refused_by_name(tmp_path: Path, size: int) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, "llama")
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UserError, match=r"cannot load a language model from the GGUF file .*tiny\.gguf: "):
        load_causal_lm(file)


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama", missing="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(
        UserError, match=r"lacks weights: model.layers.1.mlp.up_proj.weight: give the complete checkpoint"
    ):
        load_causal_lm(tmp_path / "tiny.gguf")


def test_the_curriculum_starts_from_a_gguf_file_and_its_checkpoint_is_a_plain_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dropout_grpo.report.page.inline_svg", lambda figure, **options: "")  # figures take long
    write_gguf(tmp_path / "tiny.gguf", "llama")
    problems = [{"question": f"Ann has {n}. And 1?", "steps": [f"<<{n}+1={n + 1}>>"], "answer": n + 1} for n in (1, 2)]
    (tmp_path / "data.json").write_text(json.dumps(problems), encoding="utf-8")
    options = {
        "model.name_or_path": tmp_path / "tiny.gguf",
        "data.train": tmp_path / "data.json",
        "data.valid": tmp_path / "data.json",
        "curriculum.max_latent_stage": 1,
        "curriculum.c_thought": 1,
        "curriculum.cot_epochs": 0,
        "curriculum.epochs_per_stage": 0,
        "curriculum.final_epochs": 1,
        "curriculum.batch_size": 2,
        "run_dir": tmp_path / "run",
    }
    assert main(["sft", *[f"--{name}={value}" for name, value in options.items()]]) == 0
    saved = tmp_path / "run" / "checkpoints" / "coconut"
    assert LatentModel.from_pretrained(saved).latent_steps == 1
    assert AutoModelForCausalLM.from_pretrained(saved).config.model_type == "llama"


def test_inspect_reads_a_gguf_file(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama")
    actual = inspect(str(tmp_path / "tiny.gguf"), CheckpointOptions())
    assert (actual["class"], actual["latent_tokens_added"]) == ("LlamaForCausalLM", list(LATENT_TOKENS))


def test_a_file_is_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_gguf(tmp_path / "once.gguf", "llama", quantized=True)
    first, tokenizer = load_causal_lm(tmp_path / "once.gguf")
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith(f"{tmp_path}/once.gguf is converted, once: ")
    monkeypatch.setattr(weights_gguf, "_load", None)
    again, reloaded = load_causal_lm(tmp_path / "once.gguf", dtype=torch.float64)
    assert len(caplog.messages) == 1
    assert_same_weights(dict(again.state_dict()), {n: w.double() for n, w in first.state_dict().items()})
    assert again.name_or_path == first.name_or_path == str(tmp_path / "once.gguf")
    assert reloaded.get_vocab() == tokenizer.get_vocab()


def test_a_file_where_the_cache_should_be_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: an error of huggingface_hub, without the remedy."""
    write_gguf(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "cache").touch()
    whole = weights_gguf.cached_assets_path
    monkeypatch.setattr(weights_gguf, "cached_assets_path", lambda *names: whole(*names, assets_dir=tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cannot be written.*Set HF_ASSETS_CACHE to a folder with room"):
        load_causal_lm(tmp_path / "tiny.gguf")
