"""What every part of a running command works with."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from dropout_grpo.commands.shared.options import recipe_of
from dropout_grpo.commands.shared.problems import settings_without_effect
from dropout_grpo.commands.shared.smoke import with_stand_ins
from dropout_grpo.config.choices import TrackerName
from dropout_grpo.config.needs import without_effect
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.data.problem import Problem, problem_fingerprint
from dropout_grpo.distributed.device import default_device, describe_device, unused_gpu
from dropout_grpo.distributed.processes import connected, is_main, on_main
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.latent.attention_choice import attention_for, fix_attention
from dropout_grpo.runs.files import CONFIG_FILE
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.read import read_config
from dropout_grpo.training.machine import bf16_for, bf16_or_not
from dropout_grpo.training.progress import console


def settled(recipe: Recipe, device: torch.device | None = None, rows: int | None = None) -> Recipe:
    """The recipe with ``bf16`` and ``attention`` decided: as recorded in the run that it resumes, else for the device.

    Args:
        recipe: the options of a run.
        device: where the run computes; ``default_device()`` if None.
        rows: sequences in its largest batch; None for the batches of training.
    """
    bf16, attention = on_main(lambda: _decided(recipe, device or default_device(), rows))
    return replace(recipe, bf16=bf16, attention=attention)


def _decided(recipe: Recipe, device: torch.device, rows: int | None) -> tuple[bool, Any]:
    """``bf16`` and ``attention``."""
    run = Path(recipe.run_dir)
    if recipe.resume and (run / CONFIG_FILE).is_file():
        recorded = read_config(run)["config"]
        if recipe.bf16 is None:
            recipe = replace(recipe, bf16=recorded.get("bf16"))
        if recipe.attention is None:
            recipe = replace(recipe, attention=recorded.get("attention"))
    return bf16_or_not(recipe.bf16, device, rows), recipe.attention or attention_for(device.type)[0]


def _reasons(given: Recipe, device: torch.device, rows: int | None) -> dict[str, str]:
    """Why ``settled`` decides as it does, to record with a new run."""
    return {
        "bf16": bf16_for(device, rows)[1] if given.bf16 is None else "given as an option",
        "attention": attention_for(device.type)[1] if given.attention is None else "given as an option",
    }


def tell_device(device: torch.device, bf16: bool) -> None:
    """Print the device of a command and its precision, and a warning if a GPU cannot be used."""
    console.print(f"device: {describe_device(device, bf16)}", markup=False)
    if (warning := unused_gpu()) is not None:
        console.print(f"warning: {warning}", markup=False)


@contextmanager
def started(options: Namespace, unused: Collection[str], splits: Collection[str]) -> Iterator[Recipe]:
    """Connect the processes of a command that reads a recipe, and name the options that have no effect.

    Yields the recipe. With ``--smoke`` the options get small stand-ins for it, the checkpoint and the files.

    Args:
        options: the command's.
        unused: sections and options of the recipe that the command ignores.
        splits: the splits of the problems that it reads.
    """
    with connected():
        console.quiet = not is_main()
        try:
            recipe = recipe_of(options)
            from_scratch = "model" not in unused and recipe.model.name_or_path is None  # the task makes its vocabulary
            settings = settings_without_effect(recipe.data, () if from_scratch else splits, options.typed)
            for line in (*without_effect(recipe, unused=unused), *settings):
                console.print(line, markup=False)
            yield with_stand_ins(options) if options.smoke else recipe
        except Exception:
            console.quiet = False  # each process tells its own error; that it was asked to stop, rank 0 tells for all
            raise


@dataclass(frozen=True, kw_only=True)
class Context:
    """A command while it runs.

    Attributes:
        recipe: its options; ``bf16`` and ``attention`` are decided.
        run: its run folder.
        device: where models compute.
        exploration: the noise that makes the rollouts of a question differ.
    """

    recipe: Recipe
    run: RunFolder
    device: torch.device
    exploration: Exploration

    @classmethod
    def start(
        cls,
        command: str,
        recipe: Recipe,
        exploration: Exploration,
        *,
        device: torch.device,
        options: Mapping[str, Any] | None = None,
        report_to: Sequence[TrackerName] | None = None,
        problems: Mapping[str, Sequence[Problem]] | None = None,
        digests: Mapping[str, str | None] | None = None,
        joins: bool = False,
        rows: int | None = None,
    ) -> "Context":
        """Make or resume the run folder of a command.

        Args:
            command: name of the command, recorded in the folder.
            recipe: its options.
            exploration: built from the recipe, or another one.
            device: where models compute.
            options: further options to record, such as the checkpoint.
            report_to: experiment trackers; those of the recipe if None.
            problems: by split; a resumed run must have the same.
            digests: SHA-256 of what else must be the same, by name.
            joins: this process does a part of a run whose folder its parent process holds.
            rows: sequences in its largest batch, which decide on bf16; None for the batches of training.

        Raises:
            UserError: see ``RunFolder``.
        """
        reasons, recipe = _reasons(recipe, device, rows), settled(recipe, device, rows)
        fix_attention(recipe.attention)
        if not joins:
            tell_device(device, bool(recipe.bf16))
        record: Any = recipe if options is None else {**options, **vars(recipe)}
        trackers = recipe.report_to if report_to is None else report_to
        run = RunFolder(
            recipe.run_dir,
            command,
            record,
            resume=recipe.resume or joins,
            report_to=trackers,
            digests={
                **{f"data.{split}": problem_fingerprint(each) for split, each in (problems or {}).items()},
                **(digests or {}),
            },
            reasons=reasons,
            joins=joins,
        )
        return cls(recipe=recipe, run=run, device=device, exploration=exploration)

    @property
    def seed(self) -> int:
        """Seed of weights, data order, masks and samples."""
        return self.recipe.seed

    @property
    def bf16(self) -> bool:
        """Whether matrix products are computed in bf16."""
        assert self.recipe.bf16 is not None, "the recipe is not settled"
        return self.recipe.bf16

    def exploring(self, exploration: Exploration) -> "Context":
        """The same context with another exploration."""
        return replace(self, exploration=exploration)
