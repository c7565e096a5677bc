"""Loads a plain causal language model with its tokenizer, and says in one line why it cannot."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from dropout_grpo.errors import UserError

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_causal_lm(
    path: str | Path, *, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder or hub name.

    Raises:
        UserError: no such model, not a causal language model, damaged or missing weights.
    """
    tokenizer = load_tokenizer(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=dtype, attn_implementation=attn_implementation, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _cannot(path, error) from error
    model, found = loaded
    if lacking := sorted(found["missing_keys"]):
        raise UserError(f"{path} lacks weights: {some(lacking)}.")
    return model, tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder or hub name.

    Raises:
        UserError: no such model, or a damaged tokenizer.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot(path, error) from error
    return tokenizer


def beside(path: str | Path, name: str) -> str | None:
    """A file of the folder or hub repository, None where it has none."""
    return cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)


def some(names: list[str]) -> str:
    """The first five of some names."""
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _cannot(path: str | Path, error: Exception) -> UserError:
    if not Path(path).exists() and not _HUB_NAME.fullmatch(str(path)):
        return UserError(f"cannot load a causal language model from {path}: there is no such folder.")
    return UserError(f"cannot load a causal language model from {path}: {error}")
