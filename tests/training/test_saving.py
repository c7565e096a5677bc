"""What saving and loading cost: no copy of the weights, no second model; and what a checkpoint's manifest says."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dropout_grpo.latent.io.checkpoint import load_in_place, save_latent_model
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.training.checkpoint import restore_optimizer, save_checkpoint
from dropout_grpo.training.optimizer import build_optimizer, optimizer_tensors
from helpers.tiny_latent import assert_same_weights, tiny_latent, weights_of
from helpers.tiny_lora import as_if_trained, tiny_lora

CLEAR = Path("/proc/self/clear_refs")


@pytest.mark.parametrize(
    ("kind", "thought"), [("gpt2", "hidden_state"), ("llama", "projection")]
)  # tied and untied tables; a thought with weights of its own, which are in another file
def test_weights_are_loaded_into_the_model_that_exists(
    kind: str, thought: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, model = tiny_latent(kind, thought=thought), tiny_latent(kind, thought=thought, seed=1)
    if thought == "projection":
        as_if_trained(saved)  # or the projections of both have the same seed
    sharded = _Sharded(saved)
    monkeypatch.setattr(saved.model, "save_pretrained", sharded)
    save_latent_model(saved, tmp_path)
    assert len([*tmp_path.glob("model*.safetensors")]) == sharded.files > 1
    monkeypatch.setattr(LatentModel, "from_pretrained", None)
    where = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    assert load_in_place(model, tmp_path)
    assert_same_weights(weights_of(model), weights_of(saved))
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == where


class _Sharded:
    """``save_pretrained`` of a model that is too large for one file."""

    def __init__(self, model: LatentModel) -> None:
        self._save, self.files = model.model.save_pretrained, 0

    def __call__(self, folder: Path, **options: Any) -> None:
        self._save(folder, max_shard_size="10KB", **options)
        self.files = len({*json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()})


def test_an_adapter_is_loaded_into_the_model_that_exists(tmp_path: Path) -> None:
    saved, model = tiny_lora(tmp_path / "a", trained=True), tiny_lora(tmp_path / "b")
    save_latent_model(saved, tmp_path / "adapter")
    assert load_in_place(model, tmp_path / "adapter")
    assert_same_weights(weights_of(model), weights_of(saved))


@pytest.mark.parametrize(
    "other",
    [tiny_latent(n_layer=1), tiny_latent("llama"), tiny_latent(thought="pause")],
    ids=["layers", "kind", "pause"],
)
def test_weights_that_do_not_fit_change_nothing(other: LatentModel, tmp_path: Path) -> None:
    save_latent_model(other, tmp_path)
    model = tiny_latent(seed=1)
    before = weights_of(model)
    assert not load_in_place(model, tmp_path)
    assert_same_weights(weights_of(model), before)


def test_the_manifest_has_the_digests_of_the_files_and_a_running_part_has_no_card(tmp_path: Path) -> None:
    model = tiny_latent()
    optimizer = build_optimizer(model.parameters(), learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.999))
    sum(weight.square().sum() for weight in model.parameters()).backward()
    optimizer.step()
    reference = {"a": torch.randn(3, 2), "b": torch.ones(3, dtype=torch.float64)}  # float64 is written first
    save_checkpoint(tmp_path / "step", model, optimizer, {"step": 1}, reference)
    files = {
        str(f.relative_to(tmp_path / "step")): f.read_bytes() for f in (tmp_path / "step").rglob("*") if f.is_file()
    }
    written = json.loads(files.pop("manifest.json"))
    assert written == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    assert load_file(tmp_path / "step" / "reference.safetensors").keys() == {"a", "b"}
    assert "README.md" not in files
    save_checkpoint(tmp_path / "final", model)
    assert (tmp_path / "final" / "README.md").is_file()


def peak_beyond(before: float) -> float:
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """A size of this process in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


@pytest.mark.skipif(not CLEAR.exists(), reason="the system does not reset the peak of a process")
def test_saving_and_loading_copy_no_weights(tmp_path: Path) -> None:
    weights = [nn.Parameter(torch.ones(5, 1024, 1024)) for _ in range(3)]  # 3 x 20 MiB
    optimizer = torch.optim.AdamW(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()  # 120 MiB
    model = tiny_latent()
    save_checkpoint(tmp_path / "step", model)  # what is imported on first use
    CLEAR.write_text("5")
    before = _status("VmRSS")
    save_checkpoint(tmp_path / "step", model, optimizer, {"step": 1})
    assert peak_beyond(before) < 10
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(optimizer).items()}
    fresh = torch.optim.AdamW(weights)
    CLEAR.write_text("5")
    before = _status("VmRSS")
    restore_optimizer(tmp_path / "step", fresh)
    assert peak_beyond(before) < 120 + 10  # the state itself
    assert_same_weights(optimizer_tensors(fresh), saved)
