"""Checks folders from other sources, and turns the exceptions of libraries that read them into messages.

Code in a checkpoint is never run: all loaders pass ``trust_remote_code=False``.
"""

import json
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dropout_grpo.errors import UserError, reading

_OBJECTS = (
    *("config.json", "generation_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("latent_config.json", "adapter_config.json"),
)
"""Small files of a checkpoint that are JSON objects."""

_MAX_LAYERS, _MAX_SIZE = 10_000, 10**9


def check_folder(path: str | Path) -> None:
    """Check the JSON files of a checkpoint folder before a library reads them. Hub names are not checked.

    Raises:
        UserError: a file is not a JSON object, an index names a file outside the folder, or a size is impossible.
    """
    for name in _OBJECTS:
        file = Path(path) / name
        content = json_object(file)
        if name.endswith("index.json") and file.is_file():
            _check_index(file, content)
        if name == "config.json":
            _check_sizes(file, content)


def json_object(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is no such file.

    Raises:
        UserError: it is not a JSON object.
    """
    if not file.is_file():
        return {}
    with reading(file):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise UserError(f"{file} must be a JSON object: the checkpoint is damaged.")
    return content


def _check_index(file: Path, content: dict[str, Any]) -> None:
    files = content.get("weight_map")
    if not isinstance(files, dict):
        raise UserError(f"{file} has no weight_map: the checkpoint is damaged.")
    for weight, name in files.items():
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise UserError(f"{file} places {weight} in {name!r}, which is not a file name in the folder.")


def _check_sizes(file: Path, content: dict[str, Any]) -> None:
    for name, value in content.items():
        if isinstance(value, dict):
            _check_sizes(file, value)
        most = _MAX_LAYERS if name.endswith(("layer", "layers")) else _MAX_SIZE
        if isinstance(value, int) and abs(value) > most and "token_id" not in name:
            raise UserError(f"{file}: {name}={str(value)[:30]} is larger than any model's ({most}).")


@contextmanager
def loading(path: str | Path) -> Iterator[None]:
    """Turn any exception that a library raises inside the block, while reading a checkpoint, into a UserError.

    Malformed files make transformers, tokenizers and PEFT raise exceptions of almost every type.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of tokenizers' Rust code
            raise
        raise UserError(f"cannot load a causal language model from {path}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return (
            "it needs its own code (auto_map in config.json), and code of a checkpoint is never run. Use a "
            "checkpoint whose model_type transformers has a class for."
        )
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return (
            "its weights are a pickle with more than tensors in it, which could run code. Use a checkpoint with "
            "safetensors, or convert the weights to safetensors where you trust them."
        )
    if isinstance(error, (OSError, ValueError, RuntimeError)) or type(error).__name__ == "SafetensorError":
        return text
    return f"a file of it is malformed ({type(error).__name__}: {text})."


def some(names: list[str]) -> str:
    """The first five of some names."""
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def require_all(path: str | Path, missing: list[str]) -> None:
    """Check that the model lacks no weight; the message names the first ones."""
    if missing:
        raise UserError(f"{path} lacks weights: {some(missing)}: give the complete checkpoint.")


def require_whole(path: str | Path, known: Iterable[str], unexpected: Iterable[str]) -> None:
    """Check that the checkpoint has no weights of layers that are missing in the config: the model would be truncated.

    Args:
        path: path of the checkpoint, for the message.
        known: names of the model's weights.
        unexpected: names of weights in the checkpoint that the model does not have.

    Raises:
        UserError: there are such weights; the message names one.
    """
    layered = {_pattern(name) for name in known if _pattern(name) != name}
    extra = sorted(name for name in unexpected if _pattern(name) in layered)
    if extra:
        raise UserError(
            f"{path} has weights of layers that its config.json does not have ({extra[0]} and {len(extra) - 1} more): "
            "the config or the weights are of another model."
        )


def _pattern(name: str) -> str:
    """The name of a weight with every layer number replaced."""
    return re.sub(r"\.\d+(?=\.)", ".*", name)
