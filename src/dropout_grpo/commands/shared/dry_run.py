"""``--dry_run``: the memory plan of a training, without its weights."""

import torch

from dropout_grpo.commands.shared.context import settled
from dropout_grpo.commands.shared.models import format_of, starting_tokenizer, without_weights
from dropout_grpo.commands.shared.problems import problems_of, vocabulary
from dropout_grpo.commands.shared.training import curriculum_trainer, grpo_trainer
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.build import build_exploration
from dropout_grpo.latent.attention_choice import fix_attention
from dropout_grpo.latent.io.causal_lm import load_tokenizer
from dropout_grpo.latent.io.checkpoint import latent_config
from dropout_grpo.latent.lora.adapter import add_lora
from dropout_grpo.latent.lora.checkpoint import adapter_config, is_adapter, put_adapter
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import COCONUT, add_latent_tokens, set_template_variables
from dropout_grpo.training.plan import Plan

_CPU, _META = torch.device("cpu"), torch.device("meta")


def sft_plan(recipe: Recipe) -> Plan:
    """The plan of ``dropout-grpo sft`` on this machine's CPUs.

    Raises:
        UserError: bad options or files, or a model that is not a folder or hub name.
    """
    recipe = settled(recipe, _CPU)
    fix_attention(recipe.attention)
    problems = problems_of(recipe.data, ("train", "valid"))
    tokenizer = starting_tokenizer(recipe.model, vocabulary(recipe.data), recipe.data.chat_template_kwargs)
    return curriculum_trainer(recipe, recipe.run_dir, _META, problems["train"], problems["valid"], tokenizer).dry_run()


def grpo_plan(recipe: Recipe, checkpoint: str, options: CheckpointOptions) -> Plan:
    """The plan of ``dropout-grpo grpo`` on this machine's CPUs.

    Raises:
        UserError: bad options or files, or a checkpoint that is not a folder or hub name of a latent model; of an
            adapter, that ``lora`` asks for another.
    """
    recipe = settled(recipe, _CPU)
    fix_attention(recipe.attention)
    problems = problems_of(recipe.data, ("grpo", "valid"))
    written = latent_config(checkpoint)
    steps = written.get("latent_steps") if options.latent_steps is None else options.latent_steps
    if steps is None:
        raise UserError(f"{checkpoint} does not record its latent_steps: give --latent_steps.")
    adapter = adapter_config(checkpoint) if is_adapter(checkpoint) else None
    base = checkpoint if adapter is None else str(adapter.base_model_name_or_path)
    inner, tokenizer = without_weights(base), load_tokenizer(base)
    if adapter is not None:
        add_latent_tokens(inner, tokenizer)
        put_adapter(inner, adapter)
    set_template_variables(tokenizer, recipe.data.chat_template_kwargs)
    model = LatentModel(
        inner,
        tokenizer,
        latent_steps=steps,
        thought=written.get("thought", "hidden_state"),
        prj_dim=written.get("prj_dim"),
        prompt_format=format_of(recipe.data.chat_template, written.get("prompt_format", COCONUT)),
    )
    if recipe.lora.r is not None:
        model = add_lora(model, recipe.lora, seed=recipe.seed)
    exploration = build_exploration(recipe.exploration)
    return grpo_trainer(
        recipe, recipe.run_dir, exploration, model, problems["grpo"], problems["valid"], "grpo"
    ).dry_run()
