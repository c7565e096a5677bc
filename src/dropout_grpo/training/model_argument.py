"""A trainer's argument ``model``: a latent model, a plain language model, or the name of either."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.config.choices import ParamDtype
from dropout_grpo.config.lora import LoRAConfig
from dropout_grpo.distributed import processes
from dropout_grpo.distributed.device import default_device
from dropout_grpo.distributed.sharding import is_sharded
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.causal_lm import load_causal_lm, load_tokenizer
from dropout_grpo.latent.io.checkpoint import latent_config
from dropout_grpo.latent.io.gguf import gguf_file
from dropout_grpo.latent.lora.adapter import add_lora
from dropout_grpo.latent.lora.checkpoint import has_adapter, is_adapter, require_peft
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.thought import HiddenStateThought
from dropout_grpo.latent.tokens import COCONUT, add_latent_tokens, missing_latent_tokens
from dropout_grpo.training.machine import bf16_for
from dropout_grpo.training.progress import console

_LORA = ("r", "lora_alpha", "target_modules")
_OF_NO_EFFECT = (
    "task_type",
    "peft_type",
    "base_model_name_or_path",
    "inference_mode",
    "fan_in_fan_out",
    "peft_version",
)


def as_latent_model(
    model: LatentModel | PreTrainedModel | str | Path,
    *,
    processing_class: PreTrainedTokenizerBase | None = None,
    latent_steps: int | None = None,
    thought: str = "hidden_state",
    peft_config: Any = None,
    seed: int = 0,
    untaught: str = "",
) -> LatentModel:
    """The latent model that is trained. A plain language model gets Coconut's tokens, and the console says so.

    Args:
        model: a latent model, which is returned as it is; or a plain one, or a folder, GGUF file or hub name. A model
            on the CPU is placed on ``default_device()``. Weights in half precision become float32, those of a latent
            model only if it gets an adapter.
        processing_class: the tokenizer of a plain model; loaded from where the model came from when not given.
        latent_steps: number of thoughts; what a latent model has when not given. For a name it replaces the saved one.
        thought: kind of thought of a plain model.
        peft_config: PEFT's ``LoraConfig``, or this package's ``LoRAConfig``: train an adapter.
        seed: seed of new weights.
        untaught: text appended to the message about a model that gets new tokens.

    Raises:
        UserError: the model cannot be trained or is quantised, the tokenizer is missing or another model's,
            ``latent_steps`` is missing or contradicts a ``LatentModel``, or the adapter has settings that are not
            supported.
    """
    if isinstance(model, LatentModel):
        latent = model
        _refuse_sharded(latent)
        _refuse_quantised(latent.model)
        if latent_steps not in (None, latent.latent_steps):
            raise UserError(
                f"latent_steps={latent_steps} contradicts the model, which has {latent.latent_steps}: leave it out, or "
                "set the model's."
            )
        _require_same(latent, processing_class)
        if latent.device.type == "cpu":
            latent.to(default_device())
        if peft_config is not None:
            _in_float32(latent, latent.name)
        _require_own_gpu(latent)
    else:
        latent = _wrapped(model, processing_class, latent_steps, thought, seed, untaught)
        if latent.device.type == "cpu" or processes.size() > 1:  # each process has its own GPU
            latent.to(default_device())
    return latent if peft_config is None else add_lora(latent, lora_of(peft_config, latent), seed=seed)


def require_param_dtype(param_dtype: ParamDtype | None, model: LatentModel, *, fsdp: bool) -> None:
    """Check that a model's weights can have a dtype in training, before anything is made of them.

    Raises:
        UserError: there is no such dtype; or it is bfloat16, and the model has an adapter, or its weights get sharded.
    """
    known = get_args(ParamDtype)
    if param_dtype not in (None, *known):
        raise UserError(f"param_dtype={param_dtype!r} must be one of {', '.join(known)}.")
    if param_dtype != "bfloat16":
        return
    if has_adapter(model.model):
        raise UserError(
            "param_dtype bfloat16 trains all weights; with bf16, an adapter's base is held in bf16 anyway: leave "
            "param_dtype out."
        )
    if fsdp and processes.size() > 1:
        raise UserError("param_dtype bfloat16 keeps whole weights, and fsdp shards them: leave one of them out.")


def bf16_products(bf16: bool | None, model: LatentModel, param_dtype: ParamDtype | None) -> bool:
    """Whether a trainer computes matrix products in bf16: its argument; if None, on a GPU that has bf16 units.

    On a CPU None is float32. With ``param_dtype`` bfloat16 there is nothing to cast.
    """
    if param_dtype == "bfloat16":
        return False
    if bf16 is None:
        return model.device.type == "cuda" and model.model.dtype == torch.float32 and bf16_for(model.device)[0]
    return bf16


def require_trainable(model: LatentModel, param_dtype: ParamDtype | None = None) -> None:
    """Check that updates can train a model, and that nothing around the trainer changes what is computed.

    Raises:
        UserError: the model has no thoughts, sharded or float16 weights, bf16 weights without masters, or no weight
            with ``requires_grad``; or the caller has switched off gradients, or switched on autocast, which the option
            bf16 does where it belongs.
    """
    if model.latent_steps < 0:
        raise UserError(f"latent_steps={model.latent_steps} of {model.name}: the number of thoughts must be 0 or more.")
    _refuse_sharded(model)
    name, weight = next(iter(model.named_parameters()))
    if weight.dtype == torch.float16 or (weight.dtype == torch.bfloat16 and param_dtype != "bfloat16"):
        raise UserError(
            f"the weights of {model.name} are {str(weight.dtype)[6:]} ({name.removeprefix('model.')}): small updates "
            "would be lost. Load the model in float32, and set bf16 for fast matrix products, or param_dtype "
            "'bfloat16' for bf16 weights with float32 masters."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"no weight of {model.name} has requires_grad: there is nothing to train.")
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


def _wrapped(
    model: PreTrainedModel | str | Path,
    tokenizer: PreTrainedTokenizerBase | None,
    latent_steps: int | None,
    thought: str,
    seed: int,
    untaught: str,
) -> LatentModel:
    """A latent model of a plain one, with new latent tokens if it has none; or the one that a name stands for."""
    if isinstance(model, str | Path):
        own = _own_tokenizer(model)
        if own is None or not missing_latent_tokens(own):
            latent = LatentModel.from_pretrained(model, latent_steps=latent_steps, tokenizer=own)
            _require_same(latent, tokenizer)
            return latent
        model, _ = load_causal_lm(model, tokenizer=own)
        tokenizer = tokenizer or own
    elif not isinstance(model, PreTrainedModel):
        remedy = "a LatentModel, a PreTrainedModel, a folder or a hub name"
        if hasattr(model, "peft_config"):
            remedy = "its base, and the adapter's config as peft_config"
        raise UserError(f"model is a {type(model).__name__}: give {remedy}.")
    _refuse_quantised(model)
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise UserError(
            f"the weights of {model.name_or_path or type(model).__name__} lie on several devices: load the model "
            "without device_map."
        )
    if tokenizer is None:
        if not model.name_or_path:
            raise UserError(f"processing_class is missing: give the tokenizer of the {type(model).__name__}.")
        tokenizer = load_tokenizer(model.name_or_path)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(f"processing_class is a {type(tokenizer).__name__}, not a tokenizer.")
    name, prompt_format = model.name_or_path or type(model).__name__, COCONUT
    if model.name_or_path and not missing_latent_tokens(tokenizer):
        saved = latent_config(model.name_or_path)
        if saved.get("thought", thought) != thought or saved.get("thought") not in (None, HiddenStateThought.kind):
            raise UserError(f"{name} has thoughts of its own kind: give its name as model, to load them.")
        latent_steps = saved.get("latent_steps") if latent_steps is None else latent_steps
        prompt_format = saved.get("prompt_format", COCONUT)
    if latent_steps is None:
        raise UserError(
            f"{name} is a plain language model: give latent_steps, the number of thoughts before an answer; the "
            "published GSM8K Coconut has 6."
        )
    _in_float32(model, name)
    if missing_latent_tokens(tokenizer):
        add_latent_tokens(model, tokenizer)
        console.print(f"{name} had no latent tokens: Coconut's three are added.{untaught}", markup=False)
    return LatentModel(
        model, tokenizer, latent_steps=latent_steps, thought=thought, seed=seed, prompt_format=prompt_format
    )


def _refuse_quantised(model: PreTrainedModel) -> None:
    if getattr(model, "is_quantized", False):
        raise UserError(
            f"the weights of {model.name_or_path or type(model).__name__} are quantised, and noise and gradients need "
            "real ones: load the model without quantization_config, and give peft_config to train an adapter."
        )


def _refuse_sharded(model: LatentModel) -> None:
    if is_sharded(model):
        raise UserError(
            f"the weights of {model.name} are sharded by an earlier training with fsdp: save the model, and load it "
            "for the next training."
        )


def _require_own_gpu(model: LatentModel) -> None:
    """Check that a model that a script has placed is on the GPU of this process."""
    if processes.size() > 1 and model.device.type == "cuda" and model.device.index != torch.cuda.current_device():
        raise UserError(
            f"rank {processes.rank()}: {model.name} is on {model.device}, and this process has "
            f"cuda:{torch.cuda.current_device()}: leave the model on the CPU, and the trainer places it."
        )


def _in_float32(model: PreTrainedModel | LatentModel, name: str) -> None:
    dtype = next(model.parameters()).dtype
    if dtype in (torch.bfloat16, torch.float16):
        console.print(f"{name}: weights of {str(dtype)[6:]} are trained in float32.", markup=False)
        model.float()


def _own_tokenizer(path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder, GGUF file or hub name; None for an adapter or a ``state_dict`` file."""
    if (Path(path).is_file() and gguf_file(path) is None) or is_adapter(path):
        return None
    return load_tokenizer(path)


def _require_same(latent: LatentModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    if tokenizer is None:
        return
    if tokenizer.get_vocab() != latent.tokenizer.get_vocab():
        raise UserError(f"processing_class is not the tokenizer of {latent.name}: leave it out.")
    for name in ("chat_template", "eos_token"):
        if getattr(tokenizer, name) != getattr(latent.tokenizer, name):
            raise UserError(
                f"processing_class has another {name} than the tokenizer of {latent.name}, which is used: leave it "
                f"out, or save the model with it: model = LatentModel.from_pretrained({latent.name!r}), "
                f"model.tokenizer.{name} = ..., model.save_pretrained(FOLDER)."
            )


def lora_of(config: Any, model: LatentModel) -> LoRAConfig:
    """This package's options of an adapter from PEFT's.

    Raises:
        UserError: it is not a ``LoraConfig``, or has other settings than rank, scale and layers.
    """
    if isinstance(config, LoRAConfig):
        return config
    require_peft()
    from peft import LoraConfig
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    if type(config) is not LoraConfig:
        raise UserError(f"peft_config is a {type(config).__name__}: only peft.LoraConfig is supported.")
    plain = LoraConfig()
    for option in fields(config):
        name, value = option.name, getattr(config, option.name)
        if name not in (*_LORA, *_OF_NO_EFFECT) and value != getattr(plain, name):
            why = "; noise is the trainer's exploration here" if name == "lora_dropout" else ""
            raise UserError(f"peft_config: {name}={value!r:.40} is not supported{why}: only {', '.join(_LORA)} are.")
    modules: Any = config.target_modules
    if modules is None:  # PEFT's choice for the type of model
        kind = model.model.config.model_type
        known: Mapping[str, Any] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
        if kind not in known:
            raise UserError(f"peft_config: PEFT has no target_modules for {kind}: name them, or give 'all-linear'.")
        modules = set(known[kind])
    if isinstance(modules, str) and modules != "all-linear":
        raise UserError(
            f"peft_config: target_modules={modules!r:.60} is a pattern: give a list of names, or 'all-linear'."
        )
    names = None if isinstance(modules, str) else tuple(sorted(modules))
    return LoRAConfig(r=config.r, lora_alpha=config.lora_alpha, target_modules=names)
