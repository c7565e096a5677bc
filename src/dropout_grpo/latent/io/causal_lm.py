"""Loads a plain causal language model with its tokenizer; failures raise a UserError of one line."""

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

from dropout_grpo.errors import UserError, reading
from dropout_grpo.latent.io.gguf import converted, gguf_file
from dropout_grpo.latent.io.hub import require_known
from dropout_grpo.latent.io.load_errors import check_folder, json_object, loading, require_all, require_whole


def load_causal_lm(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer, unless that is loaded already, from a folder, a hub name or a GGUF file.

    Raises:
        UserError: there is no such model, it is not a causal language model, or weights are damaged or missing.
    """
    tokenizer = tokenizer or load_tokenizer(path)
    file = gguf_file(path)
    with loading(path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(converted(file) if file else path),
            dtype=dtype,
            attn_implementation=attn_implementation,
            output_loading_info=True,
            trust_remote_code=False,
        )
    model, info = loaded
    require_all(path, sorted(info["missing_keys"]))
    require_whole(path, model.state_dict(), info["unexpected_keys"])
    if file:
        model.config.name_or_path = model.name_or_path = str(file)
    return model, tokenizer


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder, a hub name or a GGUF file.

    Raises:
        UserError: there is no such model, or the tokenizer is damaged.
    """
    require_known(path)
    if file := gguf_file(path):
        path = converted(file)
    check_folder(path)
    try:
        with loading(path):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
            if is_generic(path) and type(tokenizer) is not PreTrainedTokenizerFast:
                # AutoTokenizer prefers the class of the model's type, such as Qwen2's, which splits words differently.
                tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path))
    except UserError:
        json_object(Path(path) / "tokenizer.json")  # a plainer message, if it is damaged; parsing it takes 0.2 seconds
        raise
    return tokenizer


def is_generic(path: str | Path) -> bool:
    """Whether a folder's tokenizer is fully described by its tokenizer.json, without a model-specific class."""
    file = file_of(path, "tokenizer_config.json")
    with reading(file or path):
        config = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    return isinstance(config, dict) and config.get("tokenizer_class") == "TokenizersBackend"


def file_of(path: str | Path, name: str) -> str | None:
    """The local path of a file in a folder or hub repository; None if there is no such file, as for a GGUF file.

    Raises:
        UserError: there is no such folder or repository.
    """
    require_known(path)
    return None if Path(path).is_file() else cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
