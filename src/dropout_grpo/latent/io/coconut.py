"""Checkpoints as facebookresearch/coconut saves them: one ``state_dict`` file, such as ``checkpoint_33``.

Its keys are those of the language model with the prefix ``base_causallm.``, and ``embedding.weight``, a second copy of
the input embeddings. Config and tokenizer come from the base model. The three latent tokens follow the vocabulary in
the order in which Coconut's run.py adds them.

Files of Dropout-GRPO's authors hold the same ``state_dict`` as the entry ``model_state_dict`` of a dictionary.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import load_causal_lm
from dropout_grpo.latent.io.load_errors import some
from dropout_grpo.latent.tokens import add_latent_tokens, embedding_table, is_tied, record_tied, untie

INNER, DUPLICATE, WRAPPED = "base_causallm.", "embedding.weight", "model_state_dict"


def load_coconut_checkpoint(
    saved: Mapping[str, Tensor],
    file: str | Path,
    base: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model of a Coconut ``state_dict`` and its tokenizer, with the latent tokens.

    Args:
        saved: the ``state_dict``.
        file: its name, for messages.
        base: folder or hub name of the model that was trained (``model_id`` in Coconut's YAML).
        dtype: dtype of the weights.
        attn_implementation: as in transformers.

    Raises:
        UserError: the file is not a Coconut ``state_dict``, or its weights do not fit ``base`` with three more tokens.
    """
    weights = {name.removeprefix(INNER): tensor for name, tensor in saved.items() if name.startswith(INNER)}
    if not weights:
        raise UserError(
            f"{file} is not a Coconut checkpoint: none of its keys begins with {INNER} (they are "
            f"{some(sorted(saved))}). Checkpoints of Coconut's CoT stage are plain language models without thoughts."
        )
    model, tokenizer = load_causal_lm(base, dtype=dtype, attn_implementation=attn_implementation)
    rows_of_base = embedding_table(model).shape[0]
    add_latent_tokens(model, tokenizer)
    name = _embedding_name(model)
    if name in weights:
        rows = weights[name].shape[0]
        if rows not in (len(tokenizer), rows_of_base):
            raise UserError(
                f"{file} has {rows} embeddings, but {base} with the latent tokens has {len(tokenizer)}: give as base "
                "the model that it was trained from."
            )
        model.resize_token_embeddings(rows, mean_resizing=False)  # Coconut cuts a padded table to the vocabulary
    duplicate = saved.get(DUPLICATE)
    unexpected = [name for name in saved if not name.startswith(INNER) and name != DUPLICATE]
    if duplicate is not None and name in weights and not torch.equal(duplicate, weights[name]):
        raise UserError(f"{file} is damaged: {DUPLICATE} is not {INNER}{name}.")
    untie_what_differs(model, weights, file)
    fill(model, weights, unexpected, f"{file} does not fit {base}")
    model.name_or_path = str(file)
    return model, tokenizer


def state_dict_of(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a file that ``torch.save`` or safetensors wrote. With ``weights_only``, nothing in it is executed.

    Raises:
        UserError: the file does not hold a ``state_dict``.
    """
    try:
        if Path(file).suffix == ".safetensors":
            return load_file(file)
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        first = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{file} is not a state_dict that torch.load can read with weights_only: {first}.") from error
    if isinstance(saved, Mapping) and WRAPPED in saved:
        saved = saved[WRAPPED]
    if not isinstance(saved, Mapping) or not all(isinstance(tensor, Tensor) for tensor in saved.values()):
        raise UserError(f"{file} is not a state_dict: it holds a {type(saved).__name__}, not tensors by name.")
    return dict(saved)


def _embedding_name(model: PreTrainedModel) -> str:
    table = embedding_table(model)
    return next(name for name, parameter in model.named_parameters() if parameter is table)


def untie_what_differs(model: PreTrainedModel, weights: Mapping[str, Tensor], file: str | Path) -> None:
    """Untie the output head from the embeddings if the file has different values for them.

    Raises:
        UserError: the file has different values for other weights that are shared in the base.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in weights:
            names.setdefault(id(parameter), []).append(name)
    table = _embedding_name(model)
    for shared in names.values():
        differing = [name for name in shared[1:] if not torch.equal(weights[name], weights[shared[0]])]
        if not differing:
            continue
        if not (is_tied(model) and set(shared) == _both(model, table)):
            raise UserError(f"{file} has different values for {some(shared)}, which are one weight in the base.")
        untie(model)
        record_tied(model, tied=False)


def _both(model: PreTrainedModel, table: str) -> set[str]:
    """The names of the embeddings and of the output head."""
    head = model.get_output_embeddings()
    return {table} | {f"{name}.weight" for name, module in model.named_modules() if module is head}


def fill(
    model: PreTrainedModel, weights: Mapping[str, Tensor], unexpected: list[str], what: str, prefix: str = INNER
) -> None:
    """Copy all weights into the model; a tied weight may be given under either of its names.

    Args:
        model: the model.
        weights: by the model's own names.
        unexpected: names of the file that are no weights of the model.
        what: beginning of the message.
        prefix: of the names in the file, for the message.

    Raises:
        UserError: a weight is missing, unexpected, or of another shape.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    filled = {id(tensor) for name, tensor in parameters.items() if name in weights}
    saved = model.state_dict().keys()
    missing = sorted(name for name in saved if id(parameters[name]) not in filled)
    unexpected = sorted(unexpected) + sorted(prefix + name for name in weights.keys() - saved)
    shapes = [
        f"{name} {tuple(tensor.shape)} where the base has {tuple(parameters[name].shape)}"
        for name, tensor in weights.items()
        if name in saved and tensor.shape != parameters[name].shape
    ]
    complaints = [
        f"{title}: {some(names)}"
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if complaints:
        raise UserError(f"{what}; {'; '.join(complaints)}.")
    model.load_state_dict(weights, strict=False)
