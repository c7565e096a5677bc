"""A training checkpoint: a plain Hugging Face folder of the model, plus what a resumed run needs. No pickle."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.weights.checkpoint import save_latent_model
from dropout_grpo.runs.write import write_json
from dropout_grpo.training.optimizer import load_optimizer_tensors, optimizer_tensors

_OPTIMIZER, _STATE, _REFERENCE = "optimizer.safetensors", "trainer_state.json", "reference.safetensors"


def save_checkpoint(
    path: Path,
    model: LatentModel,
    optimizer: Optimizer | None = None,
    state: dict[str, Any] | None = None,
    reference: Mapping[str, Tensor] | None = None,
) -> None:
    """Write to a folder beside it, then move: a killed run leaves the old checkpoint or the new one, never a half."""
    draft = path.with_name(path.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    save_latent_model(model, draft)
    if optimizer is not None:
        save_file(optimizer_tensors(optimizer), draft / _OPTIMIZER)
    if reference:
        save_file(dict(reference), draft / _REFERENCE)
    if state is not None:
        write_json(draft / _STATE, state)
    old = _old(path)
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    draft.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def trainer_state(path: Path) -> dict[str, Any] | None:
    """What ``save_checkpoint`` was given as ``state``; None if there is no such checkpoint.

    A run killed between the two moves of ``save_checkpoint`` gets its old checkpoint back here.
    """
    if not path.exists() and _old(path).exists():
        _old(path).rename(path)
    file = path / _STATE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def restore_optimizer(path: Path, optimizer: Optimizer) -> None:
    """Load the optimiser's state saved beside the model."""
    load_optimizer_tensors(optimizer, load_file(path / _OPTIMIZER))


def saved_reference(path: Path) -> dict[str, Tensor]:
    """The reference's weights by name, as ``save_checkpoint`` was given them; empty if there were none."""
    file = path / _REFERENCE
    return load_file(file) if file.is_file() else {}
