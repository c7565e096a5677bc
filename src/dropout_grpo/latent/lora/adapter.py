"""LoRA (Hu et al. 2021) through PEFT: a small adapter is trained, the model under it stays as it is.

The adapter is injected into the model, which stays a ``PreTrainedModel``: layers are wrapped where they stand, so
sites, caches and the shared prompt work as they do without. Besides the low-rank factors of linear layers, an adapter
has rows of its own for the latent tokens, in the input embeddings and in the output head. In a base that never saw the
tokens these rows are copies of another token's, and as they are the head would hold all copies equally probable.

There is no LoRA dropout: noise is an argument here, never a layer's own.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dropout_grpo.errors import UserError
from dropout_grpo.latent.config import LoRAConfig
from dropout_grpo.latent.lora.checkpoint import ADAPTER_NAME, has_adapter, is_adapter, peft_config, require_peft
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import LatentTokens, missing_latent_tokens
from dropout_grpo.latent.weights.causal_lm import load_tokenizer


def add_lora(model: LatentModel, config: LoRAConfig, *, seed: int) -> LatentModel:
    """The model with a fresh adapter: from here on it alone is trained, with what the thought has of its own.

    The adapter starts as no change at all: logits stay as they are. An adapter that the model has already is kept, to
    be trained further.

    Args:
        model: as it was loaded from a folder or hub name, which becomes the adapter's base. It is changed in place:
            use what is returned.
        config: the adapter.
        seed: of its first weights.

    Raises:
        UserError: PEFT is missing, an adapter other than ``config``, a base that could not be loaded again, or
            ``target_modules`` that are not there.
    """
    require_peft()
    from peft import LoraConfig, LoraModel

    from dropout_grpo.latent.lora.token_rows import without_copies

    assert config.r is not None, "no adapter is wanted"
    inner = model.model
    if has_adapter(inner):
        _refuse_another(model, config)
        return model
    adapter = LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear" if config.target_modules is None else list(config.target_modules),
        trainable_token_indices=_token_rows(inner, model.tokens),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in inner.modules()),
        base_model_name_or_path=_base(inner),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):  # PEFT initialises from the global generator
        torch.manual_seed(seed)
        try:
            LoraModel(inner, adapter, ADAPTER_NAME)
        except ValueError as error:
            raise UserError(f"lora does not fit {model.name}: {error}") from error
    without_copies(inner, ADAPTER_NAME)
    adapted = LatentModel(inner, model.tokenizer, latent_steps=model.latent_steps)  # finds the wrapped sites
    adapted.thought = model.thought
    return adapted


def _refuse_another(model: LatentModel, config: LoRAConfig) -> None:
    has = peft_config(model.model)
    there, given = (has.r, has.lora_alpha), (config.r, config.lora_alpha)
    if given != there or (config.target_modules and set(config.target_modules) != has.target_modules):
        raise UserError(
            f"{model.name} is an adapter already, with r={has.r} and lora_alpha={has.lora_alpha}, and lora asks for "
            "another: ask for the same to train it further, or merge it "
            f"(dropout-grpo merge {model.name} --out FOLDER) and start from FOLDER."
        )


def _base(model: PreTrainedModel) -> str:
    """What the adapter records as its base; a folder in full, so that it is found from wherever one is."""
    name = str(model.name_or_path)
    if not name or Path(name).is_file() or is_adapter(name):
        raise UserError(
            f"{name or type(model).__name__} is no plain Hugging Face folder, and an adapter needs one to be loaded "
            "with again: write the model to a folder with save_pretrained, and start from there."
        )
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _token_rows(model: PreTrainedModel, tokens: LatentTokens) -> dict[str, list[int]]:
    """Rows of the latent tokens by the name of the table: embeddings and head, which PEFT keeps tied if they are."""
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise UserError(
            f"the output head of {type(model).__name__} has a bias, and PEFT cannot train single rows of such a head: "
            "train all weights, without lora."
        )
    tables, rows = (model.get_input_embeddings(), head), sorted((tokens.start, tokens.latent, tokens.end))
    return {name: rows for name, module in model.named_modules() if any(module is table for table in tables)}


def reference_of(model: LatentModel) -> LatentModel:
    """What a KL compares the model with while it is trained: the model as it is now, frozen.

    Of a model with an adapter nothing large is copied: its reference is its base, the same weights, and is to be run
    inside ``adapter_off``.

    Raises:
        UserError: an adapter on a base without latent tokens, which says nothing about a model that thinks.
    """
    if not has_adapter(model.model):
        return copy.deepcopy(model).requires_grad_(False)
    base = str(peft_config(model.model).base_model_name_or_path)
    if missing_latent_tokens(load_tokenizer(base)):
        raise UserError(
            f"{model.name} is an adapter on {base}, which has no latent tokens: with beta above 0 the KL would pull "
            f"towards a model that never had a thought. Merge first (dropout-grpo merge {model.name} --out FOLDER) and "
            "start from FOLDER."
        )
    shared = {id(part): part for part in (model.model, model.sites, model.tokenizer)}
    reference = copy.deepcopy(model, shared)  # the thought alone is copied
    reference.thought.requires_grad_(False)
    return reference


@contextmanager
def adapter_off(model: LatentModel) -> Iterator[None]:
    """The base alone inside the block, its own rows of the latent tokens too. Nothing where there is no adapter."""
    if not has_adapter(model.model):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
