"""``dropout-grpo push``: a checkpoint with its model card goes to the Hugging Face Hub."""

import json
import shlex
from pathlib import Path
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.jobs.recipe import Recipe
from dropout_grpo.latent.weights.card import CardFacts, Measured, write_card
from dropout_grpo.latent.weights.checkpoint import LATENT_CONFIG, latent_config
from dropout_grpo.latent.weights.publish import push_folder
from dropout_grpo.runs.layout import CONFIG_FILE, flat_options
from dropout_grpo.runs.read import read_run, started_with
from dropout_grpo.runs.write import jsonable

_METHODS = {"sft": "Coconut's curriculum", "grpo": "Dropout-GRPO", "demo": "the dropout-grpo demo"}


def push(checkpoint: Path, repo_id: str, *, eval_run: Path | None = None, private: bool = False) -> str:
    """Write the model card of a checkpoint with what its run says, and upload the folder.

    Args:
        checkpoint: a folder that ``sft``, ``grpo`` or ``merge`` wrote.
        repo_id: ``user/name`` on the Hub.
        eval_run: run folder of an ``eval`` of this checkpoint; its results go into the card.
        private: whether a new repository is private.

    Returns:
        The address of the repository.

    Raises:
        UserError: the folder is not a latent checkpoint, the eval run is of another checkpoint, or the upload fails.
    """
    if not (checkpoint / LATENT_CONFIG).is_file():
        raise UserError(f"{checkpoint} has no {LATENT_CONFIG}: give a checkpoint folder that sft, grpo or merge wrote.")
    config = latent_config(checkpoint)
    facts = facts_of(checkpoint, eval_run)
    write_card(checkpoint, latent_steps=config["latent_steps"], thought=config["thought"], facts=facts)
    return push_folder(checkpoint, repo_id, private=private)


def facts_of(checkpoint: Path, eval_run: Path | None = None) -> CardFacts:
    """What a checkpoint's run, two folders up, and an eval run say for its model card.

    Raises:
        UserError: a file is damaged, or the eval run measured another checkpoint.
    """
    run = checkpoint.parent.parent
    if not (run / CONFIG_FILE).is_file():
        return CardFacts(measured=[] if eval_run is None else measured_in(eval_run, checkpoint))
    started = started_with(run)
    command: str = started["command"]
    options: dict[str, Any] = started["config"]
    base = options.get("checkpoint") or options.get("model", {}).get("name_or_path")
    return CardFacts(
        base=base,
        method=_METHODS.get(command),
        command=_command_line(command, options),
        measured=[] if eval_run is None else measured_in(eval_run, checkpoint),
    )


def _command_line(command: str, options: dict[str, Any]) -> str:
    """A command line that gives these options: those that differ from the defaults."""
    default = flat_options(jsonable(Recipe()))
    given = {name: value for name, value in flat_options(options).items() if default.get(name) != value}
    words = [
        word
        for name, value in given.items()
        for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]
    return shlex.join(["dropout-grpo", command, *words])


def measured_in(eval_run: Path, checkpoint: Path) -> list[Measured]:
    """The results of an eval run of this checkpoint.

    Raises:
        UserError: the folder is not an eval run, or the run measured another checkpoint.
    """
    results: dict[str, Any] = dict(read_run(eval_run).results)
    if "evaluations" not in results:
        raise UserError(f"{eval_run} has no results of `dropout-grpo eval`: give the run folder of an eval.")
    if Path(results["checkpoint"]).resolve() != checkpoint.resolve():
        raise UserError(
            f"{eval_run} measured {results['checkpoint']}, not {checkpoint}: give the eval of this checkpoint."
        )
    return [
        Measured(file=row["file"], n=row["n"], pass_at_1=row["pass@1"], ci95=tuple(row["ci95"]))
        for row in results["evaluations"]
    ]
