"""Latent models as plain Hugging Face folders: safetensors, a tokenizer and ``latent_config.json``.

Published layouts load as well: a folder with the latent tokens but no ``latent_config.json``
(ModalityDance/latent-tts-coconut), facebookresearch/coconut's ``state_dict`` over a base model, and CODI's.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.distributed.sharding import whole_state
from dropout_grpo.errors import UserError, reading
from dropout_grpo.latent.io.card import CARD, CardFacts, card_of, write_custom_generate
from dropout_grpo.latent.io.causal_lm import file_of, load_causal_lm
from dropout_grpo.latent.io.coconut import load_coconut_checkpoint, state_dict_of
from dropout_grpo.latent.io.codi import is_codi, load_codi_checkpoint
from dropout_grpo.latent.io.gguf import gguf_file
from dropout_grpo.latent.io.hub import require_known
from dropout_grpo.latent.io.load_errors import loading
from dropout_grpo.latent.lora.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    fill_adapter,
    has_adapter,
    is_adapter,
    load_with_adapter,
    save_adapter,
)
from dropout_grpo.latent.recurrence import Recurrence
from dropout_grpo.latent.thought import HiddenStateThought, ProjectionThought
from dropout_grpo.latent.tokens import COCONUT, latent_tokens

LATENT_CONFIG, THOUGHT_WEIGHTS = "latent_config.json", "thought.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentParts:
    """The parts that a latent model is built from."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    latent_steps: int
    thought: str
    """The kind of thought that was requested."""
    saved_thought: str
    """The kind of thought that the checkpoint was trained with."""
    thought_weights: dict[str, Tensor] | None
    """The thought's own weights, if they are not in the folder's file."""
    prj_dim: int | None
    prompt_format: str
    exploration: dict[str, Any] | None
    """Options of the exploration that the checkpoint was post-trained with; None if it was not."""


def save_latent_model(
    model: Recurrence, path: str | Path, facts: CardFacts | None = None, *, card: bool = True
) -> None:
    """Write weights, tokenizer and latent config to a folder that transformers can load.

    The folder also gets a model card and ``custom_generate``, which adds the thoughts to transformers' own
    ``generate``. For a model with an adapter the folder holds only the adapter, for PEFT to load.

    Args:
        model: the model to save.
        path: the folder; created if missing.
        facts: training and results, for the model card.
        card: whether to write a model card; without one the folder is for a run to resume from.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    if has_adapter(model.model):
        save_adapter(model.model, folder)
    else:
        # An earlier model's adapter would be loaded in place of this one.
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        model.model.save_pretrained(folder, state_dict=whole_state(model.model))
        write_custom_generate(folder)
    model.tokenizer.save_pretrained(folder)
    if card:
        card_of(
            folder,
            latent_steps=model.latent_steps,
            thought=model.thought.kind,
            prompt_format=model.prompt_format,
            facts=facts or CardFacts(),
        ).save(folder / CARD)
    config: dict[str, Any] = {"latent_steps": model.latent_steps, "thought": model.thought.kind}
    if isinstance(model.thought, ProjectionThought):
        config["prj_dim"] = model.thought.prj_dim
    if model.prompt_format != COCONUT:
        config["prompt_format"] = model.prompt_format
    if model.exploration is not None:
        config["exploration"] = dict(model.exploration)
    (folder / LATENT_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    parameters = {name: tensor.detach().contiguous() for name, tensor in whole_state(model.thought).items()}
    if parameters:
        save_file(parameters, folder / THOUGHT_WEIGHTS)
    else:
        (folder / THOUGHT_WEIGHTS).unlink(missing_ok=True)


@torch.no_grad()
def load_in_place(model: Recurrence, folder: Path) -> bool:
    """Copy the weights of a saved model into an equal one, tensor by tensor, without a second one in memory.

    Args:
        model: the model that gets the weights. It is unchanged if they do not fit.
        folder: written by ``save_latent_model``.

    Returns:
        Whether they fit: the files have exactly the model's weights, by the same names and with the same shapes.

    Raises:
        UserError: a file cannot be read, or an adapter does not fit.
    """
    if has_adapter(model.model) != is_adapter(folder) or latent_config(folder).get("thought") != model.thought.kind:
        return False
    mine = {f"thought.{name}": tensor for name, tensor in model.thought.state_dict().items()}
    patterns = {"thought.": THOUGHT_WEIGHTS}
    if not has_adapter(model.model):
        mine |= model.model.state_dict()
        patterns[""] = "model*.safetensors"
    with ExitStack() as opened:
        saved: dict[str, tuple[Any, str]] = {}
        for prefix, pattern in patterns.items():
            for file in folder.glob(pattern):
                with loading(file):
                    content = opened.enter_context(safe_open(file, framework="pt", backend="pread"))
                saved |= {prefix + name: (content, name) for name in content.keys()}  # noqa: SIM118  # not a dict
        present = {mine[name].data_ptr() for name in saved.keys() & mine.keys()}  # tied weights are saved by one name
        covered = {name for name, tensor in mine.items() if tensor.data_ptr() in present}
        if saved.keys() - mine.keys() or mine.keys() - covered:
            return False
        if any(list(mine[n].shape) != content.get_slice(name).get_shape() for n, (content, name) in saved.items()):
            return False
        for full_name, (content, name) in saved.items():
            mine[full_name].copy_(content.get_tensor(name))
    if has_adapter(model.model):
        fill_adapter(model.model, folder)
    return True


_KINDS = {int: "a whole number", str: "text", dict: "an object"}
_MOST = 65_536
"""Largest allowed number in latent_config.json; no model is so wide, or has so many thoughts."""


def load_parts(
    path: str | Path,
    *,
    base: str | Path | None,
    latent_steps: int | None,
    thought: str | None,
    merge: bool,
    dtype: torch.dtype,
    attn_implementation: str | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> LatentParts:
    """Load the parts of a latent model; see ``LatentModel.from_pretrained``.

    Raises:
        UserError: there is no such checkpoint, latent tokens or ``latent_steps`` are missing, a file is given without
            its ``base``, or there is nothing to ``merge``.
    """
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    is_file = Path(path).is_file() and gguf_file(path) is None
    if is_file and base is None:
        raise UserError(
            f"{path} is a file: a state_dict of Coconut or CODI needs base (on the command line --base), the folder or "
            "hub name of the model it was trained from; any other checkpoint is given by its folder."
        )
    if base is not None and not is_file:
        raise UserError(f"base {base} is for a state_dict file, and {path} is not a file: leave base out.")
    if not is_file:
        require_known(path)
    with_adapter = not is_file and is_adapter(path)
    if merge and not with_adapter:
        raise UserError(f"{path} is not an adapter: there is nothing to merge.")
    thought_weights: dict[str, Tensor] | None = None
    config: dict[str, Any] = {}
    if base is not None:
        saved = state_dict_of(path)
        if is_codi(saved):
            model, tokenizer, config, thought_weights = load_codi_checkpoint(saved, path, base, **options)
        else:
            model, tokenizer = load_coconut_checkpoint(saved, path, base, **options)
    elif with_adapter:
        model, tokenizer = load_with_adapter(path, merge=merge, **options)
        config = latent_config(path)
    else:
        model, tokenizer = load_causal_lm(path, tokenizer=tokenizer, **options)
        config = latent_config(path)
    latent_tokens(tokenizer, str(path))  # a missing token is the more basic mistake, so it is reported first
    steps = config.get("latent_steps") if latent_steps is None else latent_steps
    if steps is None:
        raise UserError(
            f"{path} has no {LATENT_CONFIG}: give latent_steps (on the command line --latent_steps), the number of "
            "thoughts it was trained with; the published GSM8K Coconut has 6."
        )
    saved_thought = config.get("thought", HiddenStateThought.kind)
    return LatentParts(
        model=model,
        tokenizer=tokenizer,
        latent_steps=steps,
        thought=thought or saved_thought,
        saved_thought=saved_thought,
        thought_weights=thought_weights,
        prj_dim=config.get("prj_dim"),
        prompt_format=config.get("prompt_format", COCONUT),
        exploration=config.get("exploration"),
    )


def load_thought(
    model: Recurrence, path: str | Path, *, saved_kind: str, weights: dict[str, Tensor] | None = None
) -> None:
    """Load the thought's own weights from a checkpoint. A thought of another kind than the saved one is not changed.

    Raises:
        UserError: the weights are damaged or missing, or have another shape.
    """
    if model.thought.kind != saved_kind:
        return
    try:
        file = None if Path(path).is_file() else file_of(path, THOUGHT_WEIGHTS)
        model.thought.load_state_dict(weights or ({} if file is None else load_file(file)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{THOUGHT_WEIGHTS} of {path} does not fit a {saved_kind} thought: {error}") from error


def latent_config(path: str | Path) -> dict[str, Any]:
    """The content of ``latent_config.json`` of a folder or hub name; empty if there is no such file.

    Raises:
        UserError: there is no such folder, or the file is damaged.
    """
    with reading(f"{LATENT_CONFIG} of {path}"):
        file = file_of(path, LATENT_CONFIG)
        config = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise UserError(f"{LATENT_CONFIG} of {path} is not a JSON object.")
    kinds = {"latent_steps": int, "thought": str, "prj_dim": int, "prompt_format": str, "exploration": dict}
    for name, kind in kinds.items():
        value = config.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise UserError(f"{LATENT_CONFIG} of {path}: {name}={value!r:.40} must be {_KINDS[kind]}.")
        if isinstance(value, int) and not 0 <= value <= _MOST:
            raise UserError(f"{LATENT_CONFIG} of {path}: {name}={str(value)[:40]} must be 0 to {_MOST}.")
    return config
