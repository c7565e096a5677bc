"""An adapter's folder: small, readable by PEFT, the same model again over its base, and mergeable into it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dropout_grpo.cli.main import main
from dropout_grpo.config.lora import LoRAConfig
from dropout_grpo.errors import UserError
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from dropout_grpo.latent.lora.adapter import adapter_off, add_lora
from dropout_grpo.latent.tokens import is_tied
from dropout_grpo.training.checkpoint import save_checkpoint
from dropout_grpo.training.model_argument import as_latent_model
from dropout_grpo.training.optimizer import build_optimizer
from helpers.tiny_latent import assert_same_weights, tiny_latent, weights_of
from helpers.tiny_lora import LORA, as_if_trained, said, saved_base, saved_raw_base, tiny_lora, tiny_lora_on_raw

KINDS = ("gpt2", "llama", "gemma2")


def make(folder: Path, kind: str, base: str) -> LatentModel:
    return tiny_lora_on_raw(folder, kind) if base == "raw" else tiny_lora(folder, kind, trained=True)


@pytest.mark.parametrize(("kind", "base"), [("gpt2", "raw"), ("llama", "latent")])
def test_round_trip_gives_the_same_model_back(kind: str, base: str, tmp_path: Path) -> None:
    model = make(tmp_path, kind, base)
    model.save_pretrained(tmp_path / "adapter")
    loaded = LatentModel.from_pretrained(tmp_path / "adapter")
    assert torch.equal(said(loaded), said(model))
    with adapter_off(loaded), adapter_off(model):
        assert torch.equal(said(loaded), said(model))  # the base too, with the rows that the latent tokens began with
    assert_same_weights(weights_of(loaded), weights_of(model))
    trainable = [[n for n, p in m.named_parameters() if p.requires_grad] for m in (loaded, model)]
    assert trainable[0] == trainable[1]  # in the same order: the optimiser's state is saved by place
    loaded.save_pretrained(tmp_path / "again")
    files = [(tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in ("adapter", "again")]
    assert files[0] == files[1]


def test_the_folder_holds_the_adapter_alone(tmp_path: Path) -> None:
    model = tiny_lora_on_raw(tmp_path, "gpt2")
    optimizer = build_optimizer(model.parameters(), learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.999))
    save_checkpoint(tmp_path / "adapter", model, optimizer, {"step": 1})
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "latent_config.json",
        "manifest.json",
        "optimizer.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tmp_path / "raw")
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 4, 0.0)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == 3 * 16 + 2 * 2 * (  # rows; layers times rank times
        (16 + 48) + (16 + 16) + (16 + 24) + (24 + 16)  # in + out of c_attn, c_proj, c_fc, c_proj
    )


def test_a_model_takes_the_place_of_another_in_its_folder(tmp_path: Path) -> None:
    """Fault: the folder kept the adapter, or the projection, of the model before."""
    tiny_lora(tmp_path, trained=True).save_pretrained(tmp_path / "out")
    plain = tiny_latent(seed=3)
    plain.save_pretrained(tmp_path / "out")
    assert torch.equal(said(LatentModel.from_pretrained(tmp_path / "out")), said(plain))
    projecting = tiny_latent(thought="projection")
    projecting.save_pretrained(tmp_path / "out")
    assert torch.equal(said(LatentModel.from_pretrained(tmp_path / "out")), said(projecting))
    plain.save_pretrained(tmp_path / "out")
    assert torch.equal(said(LatentModel.from_pretrained(tmp_path / "out")), said(plain))
    adapted = tiny_lora(tmp_path / "again", trained=True)
    adapted.save_pretrained(tmp_path / "out")
    assert torch.equal(said(LatentModel.from_pretrained(tmp_path / "out")), said(adapted))
    assert "This folder is an adapter" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_relative_base_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_lora(tmp_path)
    monkeypatch.chdir(tmp_path)
    add_lora(LatentModel.from_pretrained("base"), LORA, seed=0).save_pretrained("adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    LatentModel.from_pretrained("../adapter")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("kind", KINDS)
def test_peft_alone_can_load_it(kind: str, tmp_path: Path) -> None:
    model, ids = tiny_lora(tmp_path, kind, trained=True), torch.tensor([[22, 28, 29, 30, 7]])
    model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", attn_implementation="eager")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")(input_ids=ids).logits
        torch.testing.assert_close(theirs, model.model(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "thought"), [("gpt2", "hidden_state"), ("llama", "pause"), ("gemma2", "hidden_state")]
)
def test_merged_is_a_plain_folder_with_the_same_logits(kind: str, thought: str, tmp_path: Path) -> None:
    model = tiny_lora(tmp_path, kind, thought=thought, trained=True)
    model.save_pretrained(tmp_path / "adapter")
    assert main(["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "merged")]) == 0
    merged = LatentModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(said(merged), said(model), atol=1e-4, rtol=1e-5)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    base = LatentModel.from_pretrained(tmp_path / "base").model
    assert merged.model.config.tie_word_embeddings == base.config.tie_word_embeddings
    assert is_tied(merged.model) == is_tied(base)
    ids = torch.tensor([[22, 28, 29, 30, 7]])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.model(ids).logits, atol=1e-4, rtol=1e-5)
    assert set(plain.state_dict()) == set(AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict())
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == 31
    again = add_lora(merged, LORA, seed=1)
    expected = said(LatentModel.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(
        said(again), expected, atol=1e-6, rtol=1e-6
    )  # the rows' logits are products of their own


def test_merge_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_lora(tmp_path).save_pretrained(tmp_path / "adapter")
    adapter, base = str(tmp_path / "adapter"), str(tmp_path / "base")
    for arguments, message in (
        ([base, "--out", str(tmp_path / "new")], "base is not an adapter: there is nothing to merge"),
        ([adapter, "--out", base], "base exists already: choose another --out"),
        ([str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")], "nowhere: there is no such folder"),
    ):
        assert main(["merge", *arguments]) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    tiny_lora(folder, trained=True).save_pretrained(folder / "adapter")
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def configure(folder: Path, **values: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def cut_in_half(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


FACTOR = "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"
ROWS = "base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "factor lost": (lambda f: rewrite(f, lambda t: t.__delitem__(FACTOR)), "lacks weights: .*c_attn.lora_B"),
    "rows lost": (lambda f: rewrite(f, lambda t: t.__delitem__(ROWS)), "lacks weights: .*trainable_tokens_delta"),
    "too much": (lambda f: rewrite(f, lambda t: t.update(x=torch.ones(1))), "weights that fit nowhere: x"),
    "another shape": (lambda f: rewrite(f, lambda t: t.update({FACTOR: torch.ones(48, 3)})), "does not fit its base"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "half a file": (cut_in_half, "adapter_model.safetensors of .*damaged cannot be read"),
    "half a config": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json of .*damaged cannot"),
    "no base": (lambda f: configure(f, base_model_name_or_path=None), "has no base_model_name_or_path"),
    "base moved": (lambda f: configure(f, base_model_name_or_path="/gone"), "gone.*correct base_model_name_or_path"),
    "another kind": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "IA3", "task_type": null}'),
        "is an adapter of the kind .*IA3, and only LORA is supported",
    ),
    "other layers": (lambda f: configure(f, target_modules=["q_proj"]), "does not fit its base"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_adapter_is_named(good: Path, what: str, tmp_path: Path) -> None:
    damage, message = DAMAGES[what]
    folder = shutil.copytree(good / "adapter", tmp_path / "damaged")
    LatentModel.from_pretrained(folder)
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        LatentModel.from_pretrained(folder)
    assert "damaged" in str(error.value)


def test_dropout_of_a_foreign_adapter_is_switched_off(good: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(good / "adapter", tmp_path / "foreign")
    configure(folder, lora_dropout=0.5, inference_mode=True)  # as PEFT's own trainers leave it
    model = LatentModel.from_pretrained(folder).train()
    assert torch.equal(said(model), said(LatentModel.from_pretrained(good / "adapter")))
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("rows", [28, 40])
def test_an_adapter_made_with_more_tokens_than_its_base_knows(rows: int, tmp_path: Path) -> None:
    """Fault: a padding token of the user's shifted the latent tokens, which were loaded at the base's places."""
    model, tokenizer = load_causal_lm(saved_raw_base(tmp_path))
    model.resize_token_embeddings(rows)
    model.save_pretrained(tmp_path / "raw")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    adapted = as_latent_model(
        tmp_path / "raw", processing_class=tokenizer, latent_steps=2, peft_config=LoRAConfig(r=2), seed=0
    )
    assert adapted.tokens.start == 29
    as_if_trained(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    assert torch.equal(said(LatentModel.from_pretrained(tmp_path / "adapter")), said(adapted))


def test_with_the_adapter_off_its_saved_modules_are_off_too(tmp_path: Path) -> None:
    """Fault: the KL's reference had the policy's own head."""
    folder = foreign_adapter(tmp_path, "gemma2", target_modules=["q_proj"], modules_to_save=["lm_head"])
    model, base = LatentModel.from_pretrained(folder), LatentModel.from_pretrained(tmp_path / "base")
    assert not torch.equal(said(model), said(base))
    with adapter_off(model):
        assert torch.equal(said(model), said(base))


def test_an_adapter_that_cannot_be_merged_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_lora(tmp_path, trained=True).save_pretrained(tmp_path / "adapter")

    def refuse(*args: Any, **options: Any) -> None:
        raise RuntimeError("Impossible to merge LoRA with lora_bias=True")

    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", refuse)
    with pytest.raises(UserError, match="adapter cannot be merged: Impossible"):
        LatentModel.from_pretrained(tmp_path / "adapter", merge=True)


def foreign_adapter(folder: Path, kind: str, **options: Any) -> Path:
    """An adapter on a tied base, made, trained and written by PEFT alone."""
    base = saved_base(folder, kind)
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    adapted = get_peft_model(plain, LoraConfig(r=2, lora_alpha=4, task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder / "adapter")
    for name in ("tokenizer.json", "tokenizer_config.json", "latent_config.json"):
        shutil.copy(base / name, folder / "adapter" / name)
    return folder / "adapter"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {"target_modules": ["c_attn", "wte"]}),
        ("gemma2", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
        ("gemma2", {"target_modules": ["embed_tokens", "lm_head"]}),
    ],
)
def test_an_adapter_that_moves_one_of_two_tied_tables_keeps_both(kind: str, options: Any, tmp_path: Path) -> None:
    """Embeddings and head differ in the merged model, so it is no longer tied; neither is lost when it is written."""
    folder = foreign_adapter(tmp_path, kind, **options)
    model = LatentModel.from_pretrained(folder)
    assert main(["merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    merged = LatentModel.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(said(merged), said(model), atol=1e-4, rtol=1e-5)
    assert merged.model.config.tie_word_embeddings is False
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = torch.tensor([[22, 28, 29, 30, 7]])
    with torch.no_grad():
        expected = PeftModel.from_pretrained(base, str(folder))(ids).logits
        torch.testing.assert_close(merged.model(ids).logits, expected, atol=1e-4, rtol=1e-5)
