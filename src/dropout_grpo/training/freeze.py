"""Trains some of a model's weights and keeps the others unchanged."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dropout_grpo.errors import UserError, nearest
from dropout_grpo.latent.model import LatentModel

VALUE_WEIGHTS = "value_weights"
"""A pattern for W_V of every layer, under any architecture's name for it."""


def trained_weights(model: LatentModel, patterns: Sequence[str]) -> dict[str, Tensor | None]:
    """The parameters selected by ``patterns``.

    Args:
        model: the model; its parameters are named as in the Hugging Face model, such as
            ``transformer.h.0.attn.c_attn.weight``.
        patterns: names with shell wildcards, such as ``*.v_proj.weight``; or ``value_weights``.

    Returns:
        For each selected parameter, by name, None if the whole tensor is trained, else a bool tensor of its shape that
        is True for the trained entries (the values' part of a matrix that also holds queries and keys).

    Raises:
        UserError: a pattern matches no parameter that is trained, or a layer has no value projection.
    """
    names = {_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: dict[str, Tensor | None] = {}
    for pattern in patterns:
        if pattern == VALUE_WEIGHTS:
            matched = _value_weights(model, names)
        else:
            matched = {name: None for name in names if fnmatchcase(name, pattern)}
        if not matched:
            raise UserError(
                f"train_only: {pattern!r} matches no parameter that is trained{nearest(pattern, tuple(names))}. Give "
                f"names or patterns such as *.v_proj.weight, or {VALUE_WEIGHTS}; the parameters are "
                f"{', '.join(names)}."
            )
        for name, part in matched.items():
            found[name] = None if part is None or (name in found and found[name] is None) else part
    return found


def _value_weights(model: LatentModel, names: dict[str, nn.Parameter]) -> dict[str, Tensor | None]:
    name_of = {id(parameter): name for name, parameter in names.items()}
    found: dict[str, Tensor | None] = {}
    for projection in model.sites.value_projections():
        weight = projection.module.weight
        assert isinstance(weight, Tensor)
        if id(weight) not in name_of:  # frozen
            continue
        part = None
        if projection.columns is not None:
            part = torch.zeros_like(weight, dtype=torch.bool)
            outputs = part if isinstance(projection.module, Conv1D) else part.T  # [in, out]
            outputs[:, projection.columns] = True
        found[name_of[id(weight)]] = part
    return found


def require_trainable(model: LatentModel) -> None:
    """Check that updates can train a model, and that nothing around the trainer changes what is computed.

    Raises:
        UserError: the model has no thoughts, or float16 weights; or the caller has switched off gradients, or switched
            on autocast, which the option bf16 does where it belongs.
    """
    if model.latent_steps < 0:
        raise UserError(f"latent_steps={model.latent_steps} of {model.name}: the number of thoughts must be 0 or more.")
    name, weight = next(iter(model.named_parameters()))
    if weight.dtype == torch.float16:
        raise UserError(
            f"the weights of {model.name} are float16 ({_name(name)}): small updates would be lost. Load the model in "
            "float32, and set bf16 for fast matrix products."
        )
    if torch.is_inference_mode_enabled() or weight.is_inference():
        raise UserError(
            "train() has no gradients inside torch.inference_mode(), or for a model that was loaded there: call both "
            "outside of it."
        )
    if not torch.is_grad_enabled():
        raise UserError("train() has no gradients inside torch.no_grad(): call it outside.")
    if torch.is_autocast_enabled(model.device.type):
        raise UserError(
            "train() inside torch.autocast() computes rollouts and updates in other precisions than its own: call it "
            "outside, and set bf16."
        )


def check_trained(model: LatentModel, patterns: Sequence[str] | None, *, weight_decay: float, fsdp: bool) -> None:
    """Check that ``only_trained`` can train the selected parameters exactly.

    Raises:
        UserError: see ``trained_weights``; with FSDP; or with weight decay if only a part of a matrix is trained.
    """
    if patterns is None:
        return
    parts = [name for name, part in trained_weights(model, patterns).items() if part is not None]
    if fsdp:
        raise UserError(
            "train_only does not work with fsdp, which would shard the weights that are not trained too: leave one out."
        )
    if parts and weight_decay > 0:
        raise UserError(
            f"train_only: {VALUE_WEIGHTS} is a part of {parts[0]}, and weight_decay={weight_decay} would change the "
            "rest of that matrix: set weight_decay to 0."
        )


@contextmanager
def only_trained(model: LatentModel, patterns: Sequence[str] | None) -> Iterator[None]:
    """Inside the block only the selected parameters get gradients; all trainable ones if ``patterns`` is None.

    If only a part of a matrix is selected, the gradient of the rest is exactly 0. AdamW without weight decay then does
    not change a bit of the rest. The optimiser holds state for the whole matrix, which is 0 for the rest.
    """
    if patterns is None:
        yield
        return
    chosen = trained_weights(model, patterns)
    frozen, handles = [], []
    for name, parameter in model.named_parameters():
        if _name(name) not in chosen and parameter.requires_grad:
            parameter.requires_grad_(False)
            frozen.append(parameter)
        elif (part := chosen.get(_name(name))) is not None:
            handles.append(parameter.register_hook(lambda gradient, rest=~part: gradient.masked_fill(rest, 0.0)))
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _name(name: str) -> str:
    """A parameter's name in the Hugging Face model."""
    return name.removeprefix("model.")
