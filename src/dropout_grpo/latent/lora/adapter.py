"""LoRA (Hu et al. 2021) through PEFT: a small adapter is trained, and the base model does not change.

The adapter is injected into the model, which stays a ``PreTrainedModel``: layers are wrapped in place, so sites, caches
and the shared prompt work as without an adapter. In addition to the low-rank factors of linear layers, an adapter has
its own rows for the latent tokens, in the input embeddings and in the output head. In a base that was not trained with
these tokens, their rows are copies of another token's row, and without training the head would give all copies the same
probability.

There is no LoRA dropout: noise is an argument here and never part of a layer.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dropout_grpo.config.lora import LoRAConfig
from dropout_grpo.errors import UserError
from dropout_grpo.latent.casts import product_weights
from dropout_grpo.latent.io.causal_lm import load_tokenizer
from dropout_grpo.latent.lora.checkpoint import has_adapter, is_adapter, peft_config, put_adapter, require_peft
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import LatentTokens, missing_latent_tokens


def add_lora(model: LatentModel, config: LoRAConfig, *, seed: int) -> LatentModel:
    """Add a new adapter to a model. Only the adapter and the thought's own parameters are then trained.

    A new adapter does not change the logits. If the model already has an adapter, it is kept and trained further.

    Args:
        model: a model loaded from a folder or hub name, which becomes the adapter's base. It is changed in place; use
            the returned model.
        config: options of the adapter.
        seed: seed of the adapter's initial weights.

    Raises:
        UserError: PEFT is missing, ``r`` is not set, the model has an adapter that differs from ``config``, its base
            could not be loaded again, or it has no layers with the names in ``target_modules``.
    """
    require_peft()
    from peft import LoraConfig

    if config.r is None:
        raise UserError("lora: r, the rank of the adapter, is not set: give a number, such as 16.")
    inner = model.model
    if has_adapter(inner):
        _refuse_another(model, config)
        return model
    rows = _token_rows(inner, model.tokens)
    tables = {name.rpartition(".")[2] for name in rows}
    if several := sorted(tables & set(config.target_modules or ())):
        raise UserError(
            f"lora: target_modules has {several[0]}, the embeddings or the head, and of these only the rows of the "
            "latent tokens are trained: leave it out."
        )
    adapter = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear" if config.target_modules is None else list(config.target_modules),
        trainable_token_indices=rows,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in inner.modules()),
        base_model_name_or_path=_base(model),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # PEFT initialises from the global generator
        torch.default_generator.manual_seed(seed)
        try:
            put_adapter(inner, adapter)
        except (TypeError, ValueError) as error:
            raise UserError(f"lora does not fit {model.name}: {error}") from error
    inner.eval()
    model.find_sites()  # the layers are wrapped
    return model


def _refuse_another(model: LatentModel, config: LoRAConfig) -> None:
    has = peft_config(model.model)
    differs = (has.r, has.lora_alpha) != (config.r, config.lora_alpha)
    names = [has.target_modules] if isinstance(has.target_modules, str) else sorted(has.target_modules or ())
    layers = {name.rpartition(".")[2] for name in names}  # PEFT writes "all-linear" of a small model as whole names
    if differs or (config.target_modules and set(config.target_modules) != layers):
        raise UserError(
            f"{model.name} is an adapter already, with r={has.r}, lora_alpha={has.lora_alpha} and target_modules "
            f"{', '.join(sorted(layers))}, and lora asks for another: ask for the same to train it further, or "
            f"merge it (dropout-grpo merge {model.name} --out FOLDER) and start from FOLDER."
        )


def _base(model: LatentModel) -> str:
    """The base that the adapter records: a hub name, or the absolute path of a folder."""
    name = str(model.model.name_or_path)
    if model.trained or not name or Path(name).is_file() or is_adapter(name):
        what = "has been trained since it was loaded" if model.trained else "is not a plain Hugging Face folder"
        raise UserError(
            f"{model.name} {what}, and an adapter needs a folder of its base to be loaded with again: write the model "
            "to a folder with save_pretrained, and start from there."
        )
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _token_rows(model: PreTrainedModel, tokens: LatentTokens) -> dict[str, list[int]]:
    """Rows of the latent tokens by name of the table, embeddings or head. PEFT keeps tied tables tied."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise UserError(
            f"the output head of {type(model).__name__} has a bias, and PEFT cannot train single rows of such a head: "
            "train all weights, without lora."
        )
    tables, rows = (model.get_input_embeddings(), head), sorted((tokens.start, tokens.latent, tokens.end))
    return {name: rows for name, module in model.named_modules() if any(module is table for table in tables)}


def reference_of(model: LatentModel, *, bf16: bool = False) -> LatentModel:
    """The reference of a KL during training: a frozen copy of the current model.

    For a model with an adapter the reference is its base, which shares the model's weights and must be run inside
    ``adapter_off``. Nothing large is copied.

    Args:
        model: the policy.
        bf16: the copy is only run under autocast, so the weights that only matrix products read are copied in bf16.

    Raises:
        UserError: the base of the adapter has no latent tokens, so it is of no use as a reference for a latent model.
    """
    if not has_adapter(model.model):
        # deepcopy looks up an object here before it copies it
        rounded = {id(p): nn.Parameter(p.detach().bfloat16()) for p in product_weights(model)} if bf16 else {}
        return copy.deepcopy(model, rounded).requires_grad_(False)
    base = str(peft_config(model.model).base_model_name_or_path)
    if missing_latent_tokens(load_tokenizer(base)):
        if is_adapter(model.name):
            name = model.name
            remedy = f"Merge first (dropout-grpo merge {name} --out FOLDER) and start from FOLDER."
        else:  # made in memory
            name = "the model"
            remedy = (
                "Train the curriculum first, merge its adapter (dropout-grpo merge), and start from there; or set beta "
                "to 0."
            )
        raise UserError(
            f"{name} is an adapter on {base}, which has no latent tokens: with beta above 0 the KL would pull towards "
            f"a model that never had a thought. {remedy}"
        )
    shared = {id(part): part for part in (model.model, model.sites, model.tokenizer)}
    reference = copy.deepcopy(model, shared)  # only the thought is copied
    reference.thought.requires_grad_(False)
    return reference


@contextmanager
def adapter_off(model: LatentModel) -> Iterator[None]:
    """Use only the base inside the block, with its own rows of the latent tokens. No effect without an adapter."""
    if not has_adapter(model.model):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper  # of modules_to_save

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers = [module for module in model.model.modules() if isinstance(module, kinds)]
    frozen = [parameter for layer in layers for parameter in layer.parameters() if not parameter.requires_grad]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in frozen:  # PEFT has switched on the gradients of all of the adapter
            parameter.requires_grad_(False)
