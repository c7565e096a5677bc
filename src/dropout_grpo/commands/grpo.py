"""``dropout-grpo grpo``: post-train a checkpoint with Dropout-GRPO."""

import time
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.commands.shared.options import (
    CURRICULUM_ONLY,
    add_config,
    add_dry_run,
    add_recipe,
    checkpoint_options_of,
)
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.errors import UserError

HELP = "post-train a checkpoint with Dropout-GRPO"
UNUSED = (*CURRICULUM_ONLY, "data.test")

_FIRST = (
    *("checkpoint", "recipe", "run_dir", "data.grpo", "data.valid", "reward_funcs", "exploration.kind"),
    *("exploration.p", "grpo.max_steps", "grpo.prompts_per_step", "grpo.num_generations", "grpo.learning_rate"),
    *("grpo.max_completion_length", "grpo.micro_batch_size", "grpo.beta"),
)


def add_options(parser: ArgumentParser) -> None:
    latent = "folder or hub name of a latent model (required, except with --smoke)"
    parser.add_argument("--checkpoint", type=str | None, default=None, help=latent)
    add_config(parser, CheckpointOptions)
    add_dry_run(parser)
    add_recipe(parser, hidden=UNUSED, first=_FIRST)


def run(options: Namespace) -> None:
    if options.checkpoint is None and not options.smoke:
        hint = " --resume true needs all options that the run began with: add it to the same command."
        raise UserError(f"missing: --checkpoint.{hint if options.resume else ''}")
    from dropout_grpo.commands.shared.context import started

    with started(options, UNUSED, ("grpo", "valid")) as recipe:
        if options.dry_run:
            from dropout_grpo.commands.shared.dry_run import grpo_plan

            print(grpo_plan(recipe, options.checkpoint, checkpoint_options_of(options)).table())
        else:
            grpo(recipe, options.checkpoint, checkpoint_options_of(options))


def grpo(recipe: Recipe, checkpoint: str, options: CheckpointOptions) -> dict[str, Any]:
    """Post-train a checkpoint with GRPO; returns ``results.json``, with pass@1 on the validation problems.

    Raises:
        UserError: bad options, files or checkpoint, before anything is trained.
    """
    from dropout_grpo.commands.shared.context import Context
    from dropout_grpo.commands.shared.models import load_model
    from dropout_grpo.commands.shared.problems import problems_of, require_readable
    from dropout_grpo.commands.shared.training import finish, train_grpo
    from dropout_grpo.distributed.device import default_device
    from dropout_grpo.exploration.build import build_exploration
    from dropout_grpo.latent.lora.adapter import add_lora

    device = default_device()
    exploration = build_exploration(recipe.exploration)
    problems = problems_of(recipe.data, ("grpo", "valid"))
    model = load_model(checkpoint, options, data=recipe.data, device=device)
    require_readable(model.tokenizer, recipe.data, model.prompt_format, problems)
    if recipe.lora.r is not None:
        model = add_lora(model, recipe.lora, seed=recipe.seed)
    record = {"checkpoint": checkpoint, **vars(options)}
    context = Context.start("grpo", recipe, exploration, device=device, options=record, problems=problems)
    start = time.monotonic()
    model = train_grpo(context, model, problems["grpo"], problems["valid"], "grpo")
    return finish(context, model, problems["valid"], "grpo", start)
