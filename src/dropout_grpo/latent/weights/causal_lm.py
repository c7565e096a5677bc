"""Loads a plain causal language model with its tokenizer, and says in one line why it cannot."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from dropout_grpo.errors import UserError
from dropout_grpo.latent.weights.gguf import gguf_file, load_gguf, load_gguf_tokenizer

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_causal_lm(
    path: str | Path, *, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder, a hub name or a GGUF file.

    Raises:
        UserError: no such model, not a causal language model, damaged or missing weights.
    """
    tokenizer = load_tokenizer(path)
    if file := gguf_file(path):
        model, missing = load_gguf(file, dtype=dtype, attn_implementation=attn_implementation)
        _require_all(path, missing)
        return model, tokenizer
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot(path, error) from error
    model, found = loaded
    _require_all(path, sorted(found["missing_keys"]))
    return model, tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder, a hub name or a GGUF file.

    Raises:
        UserError: no such model, or a damaged tokenizer.
    """
    if file := gguf_file(path):
        return load_gguf_tokenizer(file)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot(path, error) from error
    return tokenizer


def file_of(path: str | Path, name: str) -> str | None:
    """The local path of a file of a folder or hub repository, None if there is no such file. A GGUF file has none."""
    return None if Path(path).is_file() else cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)


def some(names: list[str]) -> str:
    """The first five of some names."""
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _require_all(path: str | Path, missing: list[str]) -> None:
    if missing:
        raise UserError(f"{path} lacks weights: {some(missing)}.")


def _cannot(path: str | Path, error: Exception) -> UserError:
    if not Path(path).exists() and not _HUB_NAME.fullmatch(str(path)):
        return UserError(f"cannot load a causal language model from {path}: there is no such folder.")
    return UserError(f"cannot load a causal language model from {path}: {error}")
