"""Language models from GGUF files (llama.cpp's format), as plain Hugging Face models.

transformers reads the file but marks the model as quantized, and refuses to save it. Here the weights are dequantized
and copied into a model without that mark: everything saved later is a plain Hugging Face folder. This takes a minute
for half a billion weights, so the result is kept as such a folder in Hugging Face's cache.
"""

import fcntl
import hashlib
import logging
import shutil
import struct
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import cached_assets_path, constants
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.load_errors import require_all

SUFFIX = ".gguf"
_LOG = logging.getLogger(__name__)

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


def converted(file: Path) -> Path:
    """The plain folder of a GGUF file's model and tokenizer in Hugging Face's cache, written when it is not there yet.

    It is found by the file's SHA-256, below ``HF_ASSETS_CACHE`` (by default ``~/.cache/huggingface/assets``).

    Raises:
        UserError: the folder cannot be written, the file is damaged or lacks weights, or see ``_load``.
    """
    _source(file)
    facts = file.stat()
    digest = _digest(file.resolve(), facts.st_size, facts.st_mtime_ns)
    try:
        folder = cached_assets_path("dropout-grpo", "gguf", f"{file.stem}-{digest[:16]}")
        lock = folder.with_name(f"{folder.name}.lock").open("w")
    except (OSError, ValueError) as error:  # ValueError: there is a file where the cache should be
        raise _unwritable(file, Path(constants.HF_ASSETS_CACHE), error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several processes converts, and the others wait
        if (folder / "config.json").is_file():
            return folder
        model, tokenizer = _load(file), _load_tokenizer(file)
        draft = folder.with_name(f"{folder.name}.part")
        try:
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
            draft.rename(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise _unwritable(file, folder, error) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    _LOG.warning("%s is converted, once: its weights in float32 are in %s", file, folder)
    return folder


def _unwritable(file: Path, folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} is converted to a plain folder once, and {folder} cannot be written: {error}. Set HF_ASSETS_CACHE to "
        "a folder with room."
    )


@lru_cache
def _digest(file: Path, size: int, changed: int) -> str:
    """SHA-256 of a file of this size, last changed at this time: tokenizer and weights ask for it in turn."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _load(file: Path) -> PreTrainedModel:
    """The model of a GGUF file with all weights dequantized.

    Raises:
        UserError: the package gguf or accelerate is missing, the file is damaged, or the architecture is unknown.
    """
    source = _source(file)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            trust_remote_code=False,
        )
        config = AutoConfig.from_pretrained(**source, trust_remote_code=False)
    except _UNREADABLE as error:
        raise _cannot(file, error) from error
    dequantized, info = loaded
    with torch.random.fork_rng(devices=[]):  # the initial weights, which are replaced, come from the global generator
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config
    require_all(file, sorted(info["missing_keys"]))
    return model


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


def _load_tokenizer(file: Path) -> PreTrainedTokenizerBase:
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
