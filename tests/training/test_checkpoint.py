"""Checkpoints: plain Hugging Face folders from which the same model is loaded, or a clear error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from dropout_grpo.errors import UserError
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.io.checkpoint import save_latent_model
from dropout_grpo.training.checkpoint import save_checkpoint, trainer_state
from dropout_grpo.training.optimizer import build_optimizer
from helpers.tiny import KINDS, tiny_model, tiny_tokenizer
from helpers.tiny_latent import assert_same_weights, tiny_latent, weights_of

NO_QWEN2 = [kind for kind in KINDS if kind != "qwen2"]
"""AutoTokenizer loads any tokenizer in the folder of a Qwen2 model as Qwen2's own, and the tiny one is not."""


def answers_of(model: LatentModel) -> tuple[Tensor, list[str]]:
    """Log-probs of an answer after thinking, and answers to two questions."""
    with torch.no_grad():
        state = model.think(model.read(*model.encode(["Ann has 3", "Bob has 4 ? ?"])), model.latent_steps)
        return model.score(state, torch.tensor([[25, 10, 1]] * 2)), model.answer(["Ann has 3", "Bob ?"], 5)


@pytest.mark.parametrize(
    ("kind", "thought"),
    [("gpt2", "hidden_state"), ("gpt2", "pause"), ("llama", "projection"), ("qwen3", "hidden_state")],
)
def test_round_trip_gives_the_same_model_back(kind: str, thought: str, tmp_path: Path) -> None:
    model = tiny_latent(kind, latent_steps=3, thought=thought)
    with torch.no_grad():
        for parameter in model.thought.parameters():
            parameter.add_(0.5)  # as if trained: no longer the embedding it starts from
    model.save_pretrained(tmp_path / "a" / "b")
    loaded = LatentModel.from_pretrained(tmp_path / "a" / "b")
    assert (loaded.latent_steps, loaded.thought.kind, loaded.tokens) == (3, thought, model.tokens)
    assert_same_weights(weights_of(loaded), weights_of(model))
    (logprobs, said), (expected, expected_said) = answers_of(loaded), answers_of(model)
    assert torch.equal(logprobs, expected)
    assert said == expected_said


@pytest.mark.parametrize("thought", ["hidden_state", "projection"])
def test_a_checkpoint_is_safetensors_and_json(thought: str, tmp_path: Path) -> None:
    model = tiny_latent(thought=thought)
    optimizer = build_optimizer(model.parameters(), learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.999))
    model.answer(["Ann has 3"], 5)
    save_checkpoint(tmp_path / "last", model, optimizer, {"step": 1})
    files = [path.name for path in (tmp_path / "last").iterdir()]
    for_people = ["README.md", "custom_generate"]
    assert {Path(name).suffix for name in files if name not in for_people} == {".safetensors", ".json"}
    assert [*(tmp_path / "last" / "custom_generate").iterdir()] == [tmp_path / "last/custom_generate/generate.py"]
    assert ("thought.safetensors" in files) == (thought != "hidden_state")
    config = json.loads((tmp_path / "last" / "latent_config.json").read_text(encoding="utf-8"))
    assert config == {"latent_steps": 2, "thought": thought} | ({"prj_dim": 16} if thought == "projection" else {})


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_alone_can_load_it(kind: str, tmp_path: Path) -> None:
    model = tiny_latent(kind)
    model.save_pretrained(tmp_path)
    assert "shared_prefix" not in (tmp_path / "config.json").read_text(encoding="utf-8")  # ours alone
    plain, ids = AutoModelForCausalLM.from_pretrained(tmp_path), torch.tensor([[22, 24, 6, 17, model.tokens.start]])
    if kind in NO_QWEN2:
        assert AutoTokenizer.from_pretrained(tmp_path)("Ann has 3 ?<|start-latent|>").input_ids == ids[0].tolist()
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, model.model(ids).logits)


def test_what_is_given_outranks_what_is_written(tmp_path: Path) -> None:
    tiny_latent().save_pretrained(tmp_path)
    loaded = LatentModel.from_pretrained(tmp_path, latent_steps=5, thought="pause", dtype=torch.float64)
    assert (loaded.latent_steps, loaded.thought.kind) == (5, "pause")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float64}


def test_a_projection_keeps_the_width_it_was_saved_with(tmp_path: Path) -> None:
    plain = tiny_latent()
    model = LatentModel(plain.model, plain.tokenizer, latent_steps=2, thought="projection", prj_dim=5, seed=9)
    model.save_pretrained(tmp_path)
    loaded = LatentModel.from_pretrained(tmp_path)
    assert loaded.thought.prj_dim == 5
    assert_same_weights(weights_of(loaded), weights_of(model))
    assert not torch.equal(answers_of(loaded)[0], answers_of(plain)[0])
    fresh = LatentModel.from_pretrained(tmp_path, thought="pause")  # another than the one written begins anew
    assert fresh.thought.kind == "pause"


def test_a_plain_folder_with_latent_tokens_needs_only_its_number_of_thoughts(tmp_path: Path) -> None:
    # As Coconut's published checkpoints: tokens, but no latent_config.json.
    model = tiny_latent(latent_steps=3)
    model.save_pretrained(tmp_path)
    (tmp_path / "latent_config.json").unlink()
    with pytest.raises(UserError, match=r"has no latent_config\.json: give latent_steps"):
        LatentModel.from_pretrained(tmp_path)
    assert torch.equal(answers_of(LatentModel.from_pretrained(tmp_path, latent_steps=3))[0], answers_of(model)[0])


def test_a_model_without_latent_tokens_is_refused(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no latent tokens: <\|start-latent\|>.*sft") as error:
        LatentModel.from_pretrained(tmp_path, latent_steps=2)
    assert str(tmp_path) in str(error.value)
    with pytest.raises(UserError, match="has no latent tokens"):  # not that its number of thoughts is missing
        LatentModel.from_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"nowhere: there is no such folder: check the path"):
        LatentModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no/where: there is no such folder here, and with HF_HUB_OFFLINE"):
        LatentModel.from_pretrained("no/where")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a pause vector; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("good") / "checkpoint"
    save_latent_model(tiny_latent(thought="pause"), folder)
    return folder


WEIGHT = "transformer.h.0.mlp.c_fc.weight"


def change(file: Path, tensors: dict[str, Tensor | None]) -> None:
    """Replace tensors of a file, or remove those that are None."""
    changed = {name: tensor for name, tensor in {**load_file(file), **tensors}.items() if tensor is not None}
    save_file(changed, file, metadata={"format": "pt"})


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no weights": lambda c: (c / "model.safetensors").unlink(),
    "cut weights": lambda c: (c / "model.safetensors").write_bytes((c / "model.safetensors").read_bytes()[:9000]),
    "a tensor less": lambda c: change(c / "model.safetensors", {WEIGHT: None}),
    "another shape": lambda c: change(c / "model.safetensors", {WEIGHT: torch.zeros(16, 5)}),
    "no thought": lambda c: (c / "thought.safetensors").unlink(),
    "another thought": lambda c: change(c / "thought.safetensors", {"vector": torch.zeros(1, 1, 5)}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(good: Path, damage: str, tmp_path: Path) -> None:
    folder = shutil.copytree(good, tmp_path / "damaged")
    LatentModel.from_pretrained(folder)
    DAMAGES[damage](folder)
    with pytest.raises(UserError, match="damaged"):
        LatentModel.from_pretrained(folder)


def test_a_new_checkpoint_replaces_the_old_one_whole(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last", tiny_latent(thought="pause"), state={"step": 1})
    save_checkpoint(tmp_path / "last", tiny_latent(seed=1), state={"step": 2})
    assert trainer_state(tmp_path / "last") == {"step": 2}
    assert not (tmp_path / "last" / "thought.safetensors").exists()  # nothing of the old one is left
    assert_same_weights(weights_of(LatentModel.from_pretrained(tmp_path / "last")), weights_of(tiny_latent(seed=1)))
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_killed_while_the_old_checkpoint_goes_one_of_the_two_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "last", tiny_latent(), state={"step": 1})

    def killed(path: Path, **options: object) -> None:
        if Path(path).exists():  # a file of it is gone, and then the power
            (Path(path) / "model.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "last", tiny_latent(seed=1), state={"step": 2})
    LatentModel.from_pretrained(tmp_path / "last")
