"""Loads a plain causal language model with its tokenizer, and says in one line why it cannot."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file

from dropout_grpo.errors import UserError
from dropout_grpo.latent.weights.foreign import check_folder, loading, require_whole
from dropout_grpo.latent.weights.gguf import gguf_file, load_gguf, load_gguf_tokenizer


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
    with loading(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            trust_remote_code=False,
        )
    model, found = loaded
    _require_all(path, sorted(found["missing_keys"]))
    require_whole(path, model.state_dict(), found["unexpected_keys"])
    return model, tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer of a folder, a hub name or a GGUF file.

    Raises:
        UserError: no such model, or a damaged tokenizer.
    """
    if file := gguf_file(path):
        return load_gguf_tokenizer(file)
    check_folder(path)
    with loading(path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        if _is_generic(path) and type(tokenizer) is not PreTrainedTokenizerFast:
            # AutoTokenizer prefers the class of the model's type, such as Qwen2's, which splits words in its own way.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path))
    return tokenizer


def _is_generic(path: str | Path) -> bool:
    """Whether a folder's tokenizer was saved as what its tokenizer.json says, and as no class of a model."""
    file = file_of(path, "tokenizer_config.json")
    config = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return isinstance(config, dict) and config.get("tokenizer_class") == "TokenizersBackend"


def file_of(path: str | Path, name: str) -> str | None:
    """The local path of a file of a folder or hub repository, None if there is no such file. A GGUF file has none."""
    return None if Path(path).is_file() else cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)


def some(names: list[str]) -> str:
    """The first five of some names."""
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def _require_all(path: str | Path, missing: list[str]) -> None:
    if missing:
        raise UserError(f"{path} lacks weights: {some(missing)}.")
