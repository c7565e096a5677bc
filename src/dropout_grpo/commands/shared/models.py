"""Loads and makes the models of a command, each placed on the command's device."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo import old_names
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.data import DataConfig
from dropout_grpo.config.exploration import KINDS, ExplorationConfig
from dropout_grpo.config.model import ModelConfig
from dropout_grpo.config.needs import without_effect
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.distributed.device import default_device
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import file_of, load_causal_lm, load_tokenizer
from dropout_grpo.latent.io.checkpoint import latent_config, load_thought
from dropout_grpo.latent.io.load_errors import loading
from dropout_grpo.latent.io.scratch import scratch_model
from dropout_grpo.latent.lora.adapter import require_peft
from dropout_grpo.latent.lora.checkpoint import is_adapter
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.thought import HiddenStateThought
from dropout_grpo.latent.tokens import CHAT, COCONUT, add_latent_tokens, missing_latent_tokens, set_template_variables
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from dropout_grpo.training.progress import console


def load_model(
    checkpoint: str | Path,
    options: CheckpointOptions | None = None,
    *,
    data: DataConfig | None = None,
    device: torch.device | None = None,
) -> LatentModel:
    """A latent model from a folder, a hub name or a Coconut ``state_dict`` file, placed on a device.

    Args:
        checkpoint: the folder, name or file.
        options: what the checkpoint does not record.
        data: whether questions go through the tokenizer's chat template, and with which variables; as the checkpoint
            records if None.
        device: ``default_device()`` if None.

    Raises:
        UserError: the checkpoint cannot be loaded, or an option is missing.
    """
    options, data = options or CheckpointOptions(), data or DataConfig()
    model = LatentModel.from_pretrained(
        checkpoint,
        latent_steps=options.latent_steps,
        base=options.base,
        prompt_format=CHAT if data.chat_template else None,
    )
    model.prompt_format = format_of(data.chat_template, model.prompt_format)
    set_template_variables(model.tokenizer, data.chat_template_kwargs)
    return model.to(device or default_device())


def format_of(chat_template: bool | None, recorded: str = COCONUT) -> str:
    """The prompt format that ``data.chat_template`` makes of the recorded one."""
    if chat_template:
        return CHAT
    return COCONUT if chat_template is False and recorded == CHAT else recorded


def exploration_for(model: LatentModel, told: Mapping[str, Any]) -> ExplorationConfig:
    """The exploration to measure a model under: what the user said, and for the rest what it was trained with.

    It is printed, since a result under masks means nothing without it.

    Args:
        model: records the options of its exploration.
        told: the options that the user has given.

    Raises:
        UserError: the record is damaged; or it names a class outside of this package, whose code runs only if it is
            given as an option.
    """
    recorded = dict(model.exploration or {})
    if recorded.get("p") == 0 and "p" not in told:
        recorded = {}  # masks that change nothing
    kind = recorded.get("kind")
    same = Path(told.get("kind", kind or "")).name == kind  # a file's class is recorded without the file's folder
    if kind in (None, "none") or not same:
        config, why = ExplorationConfig(**told), "as given" if told else "the default; the checkpoint records none"
    elif "kind" not in told and kind not in KINDS and kind not in old_names.KINDS:
        raise UserError(
            f"{model.name} was trained with exploration.kind {kind!r:.80}, which is not of this package: give it with "
            "--exploration.kind, if you trust its code, or another kind."
        )
    else:
        try:
            config = ExplorationConfig(**{**recorded, **told})
        except TypeError as error:
            raise UserError(f"latent_config.json of {model.name}: exploration is damaged: {error}") from error
        if "kind" not in told:  # otherwise the command has told it
            for line in without_effect(config, "exploration"):
                console.print(line, markup=False)
        others = [name for name in told if name != "kind"]
        why = "as the checkpoint was trained" + (f", but for {', '.join(others)}" if others else "")
    settings = [f"p {config.p}"] if "dropout" in config.kind else []
    settings += [f"{name} {value}" for name, value in config.options.items()]
    settings += [f"sites {', '.join(config.sites)}", f"phases {', '.join(config.phases)}"]
    console.print(f"masks: {config.kind}, {'; '.join(settings)} ({why})", markup=False)
    return config


def starting_tokenizer(
    config: ModelConfig, words: Sequence[str], template: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that the curriculum starts from.

    Args:
        config: the model.
        words: vocabulary of a model made from scratch.
        template: variables of the chat template.

    Raises:
        UserError: ``name_or_path`` has no tokenizer that can be loaded, or is an adapter.
    """
    if config.name_or_path is None:
        tokenizer: PreTrainedTokenizerBase = word_tokenizer(words)
    elif is_adapter(config.name_or_path):
        raise UserError(
            f"model.name_or_path {config.name_or_path!r} is an adapter: merge it first "
            f"(dropout-grpo merge {config.name_or_path} --out FOLDER)."
        )
    else:
        tokenizer = load_tokenizer(config.name_or_path)
    set_template_variables(tokenizer, template)
    return tokenizer


def fresh_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    latent_steps: int,
    thought: str,
    seed: int,
    *,
    chat_template: bool | None = None,
    device: torch.device | None = None,
) -> LatentModel:
    """The model that the curriculum starts from, with latent tokens, placed on a device.

    Args:
        config: the model.
        tokenizer: its ``starting_tokenizer``, which gets the latent tokens.
        latent_steps: number of thoughts.
        thought: what is fed back.
        seed: seed of the new weights.
        chat_template: whether questions go through the tokenizer's chat template.
        device: ``default_device()`` if None. A named model has no weights on the device ``meta``.

    Raises:
        UserError: ``name_or_path`` cannot be loaded, or its tokenizer has no chat template.
    """
    device = device or default_device()
    saved: Mapping[str, Any] = {}
    if config.name_or_path is not None and not missing_latent_tokens(tokenizer):
        saved = latent_config(config.name_or_path)
    if config.name_or_path is None:
        model = scratch_model(
            tokenizer,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_positions=config.n_positions,
            model_type=config.model_type,
            seed=seed,
        )
    elif device.type == "meta":
        model = without_weights(config.name_or_path)
    else:
        model, _ = load_causal_lm(config.name_or_path, tokenizer=tokenizer)
    add_latent_tokens(model, tokenizer)
    latent = LatentModel(
        model,
        tokenizer,
        latent_steps=latent_steps,
        thought=thought,
        seed=seed,
        prj_dim=saved.get("prj_dim"),
        prompt_format=format_of(chat_template, saved.get("prompt_format", COCONUT)),
    )
    if saved and config.name_or_path is not None:  # a curriculum goes on with the thoughts that it has
        load_thought(latent, config.name_or_path, saved_kind=saved.get("thought", HiddenStateThought.kind))
    return latent.to(device)


def without_weights(path: str | Path) -> PreTrainedModel:
    """The model that a folder's or hub name's config.json describes, on the device ``meta``."""
    if file_of(path, "config.json") is None:
        raise UserError(f"{path} has no config.json, from which --dry_run takes the sizes of a model: give a folder.")
    with loading(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def refuse_lora_from_scratch(recipe: Recipe) -> None:
    """Check, before a run begins, that the adapter of a recipe can be made.

    Raises:
        UserError: PEFT is missing, or the base would be random weights that are in no folder.
    """
    if recipe.lora.r is None:
        return
    require_peft()
    if recipe.model.name_or_path is None:
        raise UserError(
            "lora needs a model to adapt: give model.name_or_path, or leave lora out to train from scratch."
        )
