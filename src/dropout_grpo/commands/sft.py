"""``dropout-grpo sft``: train a latent model through Coconut's curriculum."""

import time
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.commands.shared.options import GRPO_ONLY, SAMPLES_ONLY, add_dry_run, add_recipe
from dropout_grpo.config.recipe import Recipe

HELP = "train a latent model through Coconut's curriculum"
UNUSED = (*GRPO_ONLY, *SAMPLES_ONLY, "exploration")

_FIRST = ("recipe", "run_dir", "data.train", "data.valid", "model.name_or_path", "lora.r", "curriculum.learning_rate")


def add_options(parser: ArgumentParser) -> None:
    add_dry_run(parser)
    add_recipe(parser, hidden=UNUSED, first=_FIRST)


def run(options: Namespace) -> None:
    from dropout_grpo.commands.shared.context import started

    with started(options, UNUSED, ("train", "valid")) as recipe:
        if options.dry_run:
            from dropout_grpo.commands.shared.dry_run import sft_plan

            print(sft_plan(recipe).table())
        else:
            sft(recipe)


def sft(recipe: Recipe) -> dict[str, Any]:
    """Train a model through the curriculum; returns ``results.json``, with pass@1 on the validation problems.

    Raises:
        UserError: bad options or files, before anything is trained.
    """
    from dropout_grpo.commands.shared.context import Context
    from dropout_grpo.commands.shared.models import format_of, refuse_lora_from_scratch, starting_tokenizer
    from dropout_grpo.commands.shared.problems import problems_of, require_readable, vocabulary
    from dropout_grpo.commands.shared.training import finish, train_curriculum
    from dropout_grpo.distributed.device import default_device
    from dropout_grpo.exploration.base import NoExploration

    device = default_device()
    refuse_lora_from_scratch(recipe)
    problems = problems_of(recipe.data, ("train", "valid"))
    tokenizer = starting_tokenizer(recipe.model, vocabulary(recipe.data), recipe.data.chat_template_kwargs)
    require_readable(tokenizer, recipe.data, format_of(recipe.data.chat_template), problems)
    context = Context.start("sft", recipe, NoExploration(), device=device, problems=problems)
    start = time.monotonic()
    model = train_curriculum(context, problems["train"], problems["valid"], tokenizer)
    return finish(context, model, problems["valid"], "sft", start)
