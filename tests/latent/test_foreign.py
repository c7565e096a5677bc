"""Checkpoints from other sources: malformed, truncated or hostile ones are refused; none of their code runs."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.errors import UserError
from dropout_grpo.latent import LatentModel
from helpers.tiny_latent import assert_same_weights, tiny_latent, weights_of


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny_latent("gpt2").save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def edit(file: Path, **changes: Any) -> None:
    """Change values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(checkpoint: Path) -> str:
    with pytest.raises(UserError) as caught:
        LatentModel.from_pretrained(checkpoint)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("latent_config.json", text) for text in ("", "{", "null", "[" * 100_000, "\udcff")]
    + [(name, "[]") for name in ("config.json", "tokenizer.json", "tokenizer_config.json")],
)
def test_a_file_that_is_not_a_json_object(checkpoint: Path, name: str, text: str) -> None:
    (checkpoint / name).write_bytes(text.encode(errors="surrogateescape"))
    assert name in refusal(checkpoint)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"model_type": 3}),
        ("config.json", {"model_type": None, "architectures": 4}),
        ("config.json", {"n_embd": -3}),
        ("config.json", {"n_head": 0}),
        ("config.json", {"n_layer": 10**9}),
        ("config.json", {"vocab_size": 10**15}),
        ("config.json", {"activation_function": "no-such-function"}),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": [1], "unk_token": 3}}),
        ("tokenizer.json", {"pre_tokenizer": {"type": "NoSuchType"}}),
        ("latent_config.json", {"latent_steps": -1}),
        ("latent_config.json", {"latent_steps": 10**9}),
        ("latent_config.json", {"thought": "no_such_thought"}),
        ("latent_config.json", {"thought": "projection", "prj_dim": "wide"}),
    ],
)
def test_a_value_that_cannot_be(checkpoint: Path, name: str, changes: dict[str, Any]) -> None:
    edit(checkpoint / name, **changes)
    assert len(refusal(checkpoint)) > 20


def test_fewer_layers_in_the_config_than_in_the_weights(checkpoint: Path) -> None:
    layers = json.loads((checkpoint / "config.json").read_text())["n_layer"]
    edit(checkpoint / "config.json", n_layer=layers - 1)
    assert "has weights of layers that its config.json does not have" in refusal(checkpoint)


@pytest.mark.parametrize("outside", ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..", 3])
def test_weights_outside_the_folder(checkpoint: Path, outside: Any) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": outside}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "which is not a file name in the folder" in refusal(checkpoint)


CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import GPT2Config as C, GPT2LMHeadModel as M, GPT2Tokenizer as T
"""


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_a_checkpoint_never_runs(checkpoint: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask for permission on a terminal; it must neither ask nor run."""

    def ask(*args: Any) -> str:
        raise AssertionError("asked")

    monkeypatch.setattr("builtins.input", ask)
    marker = checkpoint.parent / "ran"
    (checkpoint / "own.py").write_text(CODE.format(marker=str(marker)))
    classes = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": [None, "own.T"]}
    edit(checkpoint / file, auto_map=classes, model_type="own", tokenizer_class="OwnTokenizer")
    if file == "config.json":
        message = refusal(checkpoint)
        assert "code of a checkpoint is never run" in message
        assert "trust_remote_code" not in message
    else:
        LatentModel.from_pretrained(checkpoint)  # with the class that transformers itself has
    assert not marker.exists()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def test_a_pickle_that_runs_code(checkpoint: Path) -> None:
    marker = checkpoint.parent / "ran"
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Payload(marker)}, protocol=2))
    message = refusal(checkpoint)
    assert not marker.exists()
    assert "weights_only" not in message
    assert "convert the weights to safetensors" in message


def test_a_pickle_of_tensors_is_read(checkpoint: Path) -> None:
    model = LatentModel.from_pretrained(checkpoint)
    torch.save(model.model.state_dict(), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    assert_same_weights(weights_of(LatentModel.from_pretrained(checkpoint)), weights_of(model))


def test_adapters_are_checked_too(checkpoint: Path) -> None:
    for text in ("[]", '{"peft_type": "NO_SUCH_TYPE"}', '{"peft_type": "LORA", "r": "few"}', '{"peft_type": 3}'):
        (checkpoint / "adapter_config.json").write_text(text)
        assert "adapter_config.json" in refusal(checkpoint) or "adapter" in refusal(checkpoint)
