"""``--dry_run``: the memory plan of a training, without its weights."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dropout_grpo.commands.shared.context import settled
from dropout_grpo.commands.shared.models import fresh_model, starting_tokenizer
from dropout_grpo.commands.shared.problems import problems_of, vocabulary
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.data.rewards import load_reward
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.build import build_exploration
from dropout_grpo.latent.attention_choice import fix_attention
from dropout_grpo.latent.io.causal_lm import file_of, load_tokenizer
from dropout_grpo.latent.io.checkpoint import latent_config
from dropout_grpo.latent.io.load_errors import loading
from dropout_grpo.latent.lora.adapter import add_lora
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import CHAT, COCONUT, add_latent_tokens
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.training.plan import Plan

_CPU = torch.device("cpu")


def sft_plan(recipe: Recipe) -> Plan:
    """The plan of ``dropout-grpo sft`` on this machine's CPUs.

    Raises:
        UserError: bad options or files, or a model that is not a folder or hub name.
    """
    recipe = settled(recipe, _CPU)
    fix_attention(recipe.attention)
    problems, curriculum = problems_of(recipe.data, ("train", "valid")), recipe.curriculum
    tokenizer, path = starting_tokenizer(recipe.model, vocabulary(recipe.data)), recipe.model.name_or_path
    if path is None:  # random weights are small
        model = fresh_model(
            recipe.model, tokenizer, curriculum.latent_steps, curriculum.thought, recipe.seed, device=_CPU
        )
    else:
        plain = _without_weights(path)
        add_latent_tokens(plain, tokenizer)
        model = LatentModel(
            plain,
            tokenizer,
            latent_steps=curriculum.latent_steps,
            thought=curriculum.thought,
            prompt_format=CHAT if recipe.data.chat_template else COCONUT,
        )
    if recipe.lora.r is not None:
        model = add_lora(model, recipe.lora, seed=recipe.seed)
    trainer = CurriculumTrainer(
        model,
        curriculum,
        problems["train"],
        recipe.run_dir,
        problems["valid"],
        seed=recipe.seed,
        bf16=bool(recipe.bf16),
        param_dtype=recipe.param_dtype,
        evaluation=recipe.evaluation,
    )
    return trainer.dry_run()


def grpo_plan(recipe: Recipe, checkpoint: str, options: CheckpointOptions) -> Plan:
    """The plan of ``dropout-grpo grpo`` on this machine's CPUs.

    Raises:
        UserError: bad options or files, or a checkpoint that is not a folder or hub name of a latent model.
    """
    recipe = settled(recipe, _CPU)
    fix_attention(recipe.attention)
    problems = problems_of(recipe.data, ("grpo", "valid"))
    written = latent_config(checkpoint)
    steps = written.get("latent_steps") if options.latent_steps is None else options.latent_steps
    if steps is None:
        raise UserError(f"{checkpoint} does not record its latent_steps: give --latent_steps.")
    model = LatentModel(
        _without_weights(checkpoint),
        load_tokenizer(checkpoint),
        latent_steps=steps,
        thought=written.get("thought", "hidden_state"),
        prj_dim=written.get("prj_dim"),
        prompt_format=CHAT if recipe.data.chat_template else written.get("prompt_format", COCONUT),
    )
    if recipe.lora.r is not None:
        model = add_lora(model, recipe.lora, seed=recipe.seed)
    trainer = GRPOTrainer(
        model,
        [load_reward(path) for path in recipe.reward_funcs],
        recipe.grpo,
        problems["grpo"],
        problems["valid"],
        exploration=build_exploration(recipe.exploration),
        run=recipe.run_dir,
        seed=recipe.seed,
        bf16=bool(recipe.bf16),
        param_dtype=recipe.param_dtype,
        evaluation=recipe.evaluation,
    )
    return trainer.dry_run()


def _without_weights(path: str | Path) -> PreTrainedModel:
    """The model that a folder's or hub name's config.json describes, on the device ``meta``."""
    if file_of(path, "config.json") is None:
        raise UserError(f"{path} has no config.json, from which --dry_run takes the sizes of a model: give a folder.")
    with loading(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=False)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model
