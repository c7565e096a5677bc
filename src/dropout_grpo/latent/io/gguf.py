"""Language models from GGUF files (llama.cpp's format), as plain Hugging Face models.

transformers reads the file but marks the model as quantized, and refuses to save it. Here the weights are dequantized
once, in memory, and copied into a model without that mark: everything saved later is a plain Hugging Face folder.
"""

import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dropout_grpo.errors import UserError

SUFFIX = ".gguf"

_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError, struct.error)
"""Exceptions of the parsers for damaged files; they have no specific type."""


def gguf_file(path: str | Path) -> Path | None:
    """The GGUF file of a path: the file itself, or the only one in a folder without a ``config.json``.

    None for everything else, including hub names.

    Raises:
        UserError: the folder has several GGUF files.
    """
    source = Path(path)
    if source.is_file():
        return source if source.suffix == SUFFIX else None
    if not source.is_dir() or (source / "config.json").exists():
        return None
    files = sorted(source.glob(f"*{SUFFIX}"))
    if len(files) > 1:
        raise UserError(
            f"{source} has {len(files)} GGUF files ({', '.join(file.name for file in files[:5])}): name one of them."
        )
    return files[0] if files else None


def load_gguf(file: Path, *, dtype: torch.dtype, attn_implementation: str | None) -> tuple[PreTrainedModel, list[str]]:
    """The model of a GGUF file with all weights dequantized, and the names of weights that the file lacks.

    Args:
        file: the GGUF file.
        dtype: dtype of the weights.
        attn_implementation: as in transformers.

    Raises:
        UserError: the package gguf or accelerate is missing, the file is damaged, or the architecture is unknown.
    """
    source = _source(file)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            trust_remote_code=False,
        )
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
    except _UNREADABLE as error:
        raise _cannot(file, error) from error
    dequantized, info = loaded
    with torch.random.fork_rng(devices=[]):  # the initial weights, which are replaced, come from the global generator
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config
    model.config.name_or_path = model.name_or_path = str(file)
    return model.eval(), sorted(info["missing_keys"])


def gguf_architecture(file: Path) -> str:
    """The ``model_type`` of transformers for the model in a GGUF file.

    Raises:
        UserError: the package gguf is missing, the file is damaged, or the architecture is unknown.
    """
    source = _source(file)
    try:
        return str(AutoConfig.from_pretrained(**source, trust_remote_code=False).model_type)
    except _UNREADABLE as error:
        raise _cannot(file, error) from error


def load_gguf_tokenizer(file: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file, with its special tokens and chat template.

    Raises:
        UserError: the package gguf is missing, or the file is damaged.
    """
    source = _source(file)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
    except _UNREADABLE as error:
        raise _cannot(file, error) from error
    return tokenizer


def _source(file: Path) -> dict[str, str]:
    """The arguments of transformers' loaders that name a GGUF file.

    Raises:
        UserError: a package is missing.
    """
    if missing := [package for package in ("gguf", "accelerate") if find_spec(package) is None]:
        raise UserError(
            f"{file} is a GGUF file, and reading it needs the package {' and '.join(missing)}: "
            "pip install 'dropout-grpo[gguf]'."
        )
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def _cannot(file: Path, error: Exception) -> UserError:
    reason = str(error) or type(error).__name__
    return UserError(f"cannot load a language model from the GGUF file {file}: {reason}")
