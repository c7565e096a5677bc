"""An adapter's folder: ``adapter_model.safetensors`` and ``adapter_config.json``, in PEFT's format.

It does not contain the base; ``adapter_config.json`` records where the base is.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.distributed.sharding import whole_state
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import file_of, load_causal_lm, load_tokenizer
from dropout_grpo.latent.io.load_errors import some
from dropout_grpo.latent.tokens import LATENT_TOKENS, add_latent_tokens, embedding_table, is_tied, record_tied, untie

if TYPE_CHECKING:
    from peft import LoraConfig, LoraModel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_NAME = "default"
"""PEFT's name for a model's only adapter; no file contains it."""

_WRAPPERS = "base_model.model."
"""The prefix of every name in a file, from the two objects that PEFT wraps around a model."""


def require_peft() -> None:
    """Check that PEFT is installed.

    Raises:
        UserError: says what to install.
    """
    try:
        import peft  # noqa: F401  # an extra, and slow to import: everywhere imported only where there is an adapter
    except ImportError as error:
        raise UserError("LoRA needs PEFT, which is not installed: pip install 'dropout-grpo[lora]'.") from error


def has_adapter(model: PreTrainedModel) -> bool:
    """True if the model has an adapter."""
    return hasattr(model, "peft_config")


def peft_config(model: PreTrainedModel) -> "LoraConfig":
    """The config of the model's adapter."""
    configs: Any = model.peft_config
    config: LoraConfig = configs[ADAPTER_NAME]
    return config


def put_adapter(model: PreTrainedModel, config: "LoraConfig") -> "LoraModel":
    """Give a model a new adapter; returns PEFT's object around the two.

    Raises:
        ValueError: the config does not fit the model.
    """
    from peft import LoraModel

    from dropout_grpo.latent.lora.token_rows import without_copies

    tuner = LoraModel(model, config, ADAPTER_NAME)
    without_copies(model, ADAPTER_NAME)
    return tuner


def is_adapter(path: str | Path) -> bool:
    """True for the folder or hub name of an adapter; False also if there is no such folder."""
    try:
        return file_of(path, ADAPTER_CONFIG) is not None
    except (OSError, ValueError):
        return False


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter without its base; ``adapter_config.json`` records where the base is."""
    named = {_WRAPPERS + name: tensor.detach().contiguous() for name, tensor in _weights(model).items()}
    save_file(named, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    peft_config(model).save_pretrained(str(folder))


def load_with_adapter(
    path: str | Path, *, merge: bool = False, **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Base and adapter from an adapter's folder or hub name, ready to train further, and its tokenizer.

    Args:
        path: folder that ``save_adapter`` wrote, which also contains a tokenizer.
        merge: add the adapter to the base's weights and remove it, which gives a plain model.
        **options: options of ``load_causal_lm``, for the base.

    Raises:
        UserError: PEFT or the base is missing, or the adapter is damaged or does not fit the base.
    """
    require_peft()
    config = adapter_config(path)
    base = str(config.base_model_name_or_path)
    try:
        model, tokenizer = load_causal_lm(base, **options)
    except UserError as error:
        remedy = f"If it has moved, correct base_model_name_or_path in {ADAPTER_CONFIG}."
        raise UserError(f"the base of the adapter {path} is gone or damaged: {error} {remedy}") from error
    own = load_tokenizer(path)
    if own.get_vocab().keys() - tokenizer.get_vocab().keys() - set(LATENT_TOKENS):
        tokenizer = own  # it has words that the base's lacks, such as a padding token
    add_latent_tokens(model, tokenizer)  # as when the adapter was made, so that the base is the same model
    weights = _load_weights(path)
    tied = merge and is_tied(model)
    if tied:
        untie(model)  # or what an adapter adds to the head would be added to the embeddings too
    try:
        tuner = put_adapter(model, config)
        _fill(model, weights)
    except Exception as error:  # PEFT raises almost any type for an odd config
        raise UserError(f"the adapter {path} does not fit its base {base}: {error}") from error
    if merge:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
            try:
                tuner.merge_and_unload(safe_merge=True)  # in place
            except (RuntimeError, ValueError) as error:
                raise UserError(f"the adapter {path} cannot be merged: {error}") from error
    if tied:
        _tie_if_equal(model)
    model.name_or_path = str(path)
    return model, own


def fill_adapter(model: PreTrainedModel, path: str | Path) -> None:
    """Copy the adapter in a folder into a model that has an equal one.

    Raises:
        UserError: the adapter cannot be read or does not fit.
    """
    try:
        _fill(model, _load_weights(path))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the adapter {path} does not fit the model that is trained: {error}") from error


def _tie_if_equal(model: PreTrainedModel) -> None:
    """Tie embeddings and head again if the adapter did the same to both; otherwise the model keeps both, untied."""
    if torch.equal(model.get_output_embeddings().weight, embedding_table(model)):
        record_tied(model, tied=True)
        model.tie_weights()
    else:
        record_tied(model, tied=False)


def adapter_config(path: str | Path) -> "LoraConfig":
    """The config in an adapter's folder or hub name.

    Raises:
        UserError: it cannot be read, is not of the kind LORA, or names no base.
    """
    from peft import LoraConfig, PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(path))
    except Exception as error:  # PEFT raises almost any type for a malformed file
        raise UserError(f"{ADAPTER_CONFIG} of {path} cannot be read: {error}") from error
    if not isinstance(config, LoraConfig):
        raise UserError(f"{path} is an adapter of the kind {config.peft_type}, and only LORA is supported.")
    if not config.base_model_name_or_path:
        raise UserError(f"{ADAPTER_CONFIG} of {path} has no base_model_name_or_path: write there where the base is.")
    config.inference_mode = False  # PEFT's own folders say True, which would freeze the adapter
    return config


def _load_weights(path: str | Path) -> dict[str, Tensor]:
    try:
        file = file_of(path, ADAPTER_WEIGHTS)
        saved = None if file is None else load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{ADAPTER_WEIGHTS} of {path} cannot be read: {error}") from error
    if saved is None:
        raise UserError(f"the adapter {path} has no {ADAPTER_WEIGHTS}.")
    return {name.removeprefix(_WRAPPERS): tensor for name, tensor in saved.items()}


def _fill(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Copy saved weights into the model's adapter.

    Raises:
        ValueError: a weight is missing, or does not belong to the adapter.
    """
    from peft import set_peft_model_state_dict

    if lacking := sorted(_weights(model).keys() - weights.keys()):
        raise ValueError(f"it lacks weights: {some(lacking)}.")
    result: Any = set_peft_model_state_dict(model, weights, adapter_name=ADAPTER_NAME)
    if result.unexpected_keys:
        raise ValueError(f"it has weights that fit nowhere: {some(result.unexpected_keys)}.")


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapter's tensors by name, without the whole embedding tables that PEFT would write for three new rows."""
    from peft import get_peft_model_state_dict

    weights: dict[str, Tensor] = get_peft_model_state_dict(
        model, state_dict=whole_state(model), adapter_name=ADAPTER_NAME, save_embedding_layers=False
    )
    return weights
