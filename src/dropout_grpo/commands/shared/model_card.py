"""The model card of a checkpoint, from what its run folder and an eval run say."""

import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dropout_grpo.config.recipe import Recipe
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.card import CARD, CardFacts, Measured, card_of, without_folder
from dropout_grpo.latent.io.checkpoint import latent_config
from dropout_grpo.latent.thought import HiddenStateThought
from dropout_grpo.latent.tokens import COCONUT
from dropout_grpo.runs.files import CONFIG_FILE, checkpoint_folder, flat_options, jsonable, writing
from dropout_grpo.runs.read import read_config, read_results, read_run

_METHODS = {"sft": "Coconut's curriculum", "grpo": "Dropout-GRPO", "demo": "the dropout-grpo demo"}
_MEASURED = {
    "sft": {"coconut": "evaluations"},
    "grpo": {"grpo": "evaluations"},
    "demo": {"coconut": "baseline", "dropout_grpo": "dropout_grpo", "temperature_only": "temperature_only"},
}
"""The checkpoints that a command measures at its end, and their names in its results."""


def describe_measured(run: Path, command: str) -> None:
    """Write the model cards of the checkpoints that a training command has measured; see ``describe``."""
    for name in _MEASURED[command]:
        describe(checkpoint_folder(run, name))


def describe(
    checkpoint: Path,
    eval_run: Path | None = None,
    is_on_hub: Callable[[str], bool] = lambda name: True,
    *,
    write: bool = True,
) -> str:
    """Write the model card of a checkpoint, and return its text.

    Args:
        checkpoint: a latent checkpoint. If it is in a run folder, the card has the run's method, base and command.
        eval_run: run folder of an ``eval`` of this checkpoint; None takes the results of the checkpoint's own run.
        is_on_hub: whether the Hub has a model of this name. A base that is neither here nor there is left out.
        write: replace the file; False for the text alone.

    Raises:
        UserError: a file is damaged or cannot be written, or the eval run measured another checkpoint.
    """
    checkpoint = Path(os.path.abspath(checkpoint))  # "." has no name and no parents
    config = latent_config(checkpoint)
    facts = facts_of(checkpoint, eval_run)
    if facts.base and not Path(facts.base).exists() and not is_on_hub(facts.base):
        facts = replace(facts, base=None)
    card = card_of(
        checkpoint,
        latent_steps=config["latent_steps"],
        thought=config.get("thought", HiddenStateThought.kind),
        prompt_format=config.get("prompt_format", COCONUT),
        facts=facts,
    )
    if write:
        with writing(checkpoint):
            card.save(checkpoint / CARD)
    return str(card)


def facts_of(checkpoint: Path, eval_run: Path | None = None) -> CardFacts:
    """What the run two folders above a checkpoint, and an eval run, say for its model card; see ``describe``."""
    run = checkpoint.parent.parent
    rows = [] if eval_run is None else _eval_rows(eval_run, checkpoint)
    if not (run / CONFIG_FILE).is_file():
        return CardFacts(measured=_measured(rows))
    started = read_config(run)
    command: str = started["command"]
    options: dict[str, Any] = started["config"]
    return CardFacts(
        base=_base(run, options),
        method=_METHODS.get(command),
        command=_command_line(command, options) if "run_dir" in options else None,  # a trainer in Python has no command
        measured=_measured(rows or _own_rows(run, command, checkpoint.name)),
    )


def _base(run: Path, options: Mapping[str, Any]) -> str | None:
    """What the run started from: a name on the Hub, or a path that also holds in another working folder."""
    base: str | None = options.get("checkpoint") or options.get("model", {}).get("name_or_path")
    where, recorded = run.resolve(), Path(options.get("run_dir", ""))
    if (
        base is not None
        and not recorded.is_absolute()
        and where.parts[-len(recorded.parts) or None :] == recorded.parts
    ):
        there = Path(*where.parts[: len(where.parts) - len(recorded.parts)], base)
        return str(there) if there.exists() else base
    return base


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[Measured]:
    return [
        Measured(file=row["file"], n=row["n"], pass_at_1=row["pass@1"], ci95=(row["ci95"][0], row["ci95"][1]))
        for row in rows
    ]


def _own_rows(run: Path, command: str, checkpoint: str) -> list[dict[str, Any]]:
    """What a training command measured of its checkpoint of this name; empty before it has ended."""
    name = _MEASURED.get(command, {}).get(checkpoint)
    found = [] if name is None else dict(read_results(run)).get(name, [])
    return found if isinstance(found, list) else [{"file": "test.json", **found}]


def _eval_rows(eval_run: Path, checkpoint: Path) -> list[dict[str, Any]]:
    results: dict[str, Any] = dict(read_run(eval_run).results)
    if not {"evaluations", "checkpoint"} <= results.keys():
        raise UserError(f"{eval_run} has no results of `dropout-grpo eval`: give the run folder of an eval.")
    if Path(results["checkpoint"]).resolve() != checkpoint.resolve():
        raise UserError(
            f"{eval_run} measured {results['checkpoint']}, not {checkpoint}: give the eval of this checkpoint."
        )
    rows: list[dict[str, Any]] = results["evaluations"]
    return rows


def _command_line(command: str, options: dict[str, Any]) -> str:
    """A command line that gives these options: those that differ from the defaults, without this machine's folders."""
    default = flat_options(jsonable(Recipe()))
    given = {n: _without_folders(value) for n, value in flat_options(options).items() if default.get(n) != value}
    words = [
        word
        for name, value in given.items()
        for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]
    return shlex.join(["dropout-grpo", command, *words])


def _without_folders(value: Any) -> Any:
    """An option's value in which each absolute path is its last name."""
    if isinstance(value, dict):
        return {name: _without_folders(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_folders(part) for part in value]
    return without_folder(value) if isinstance(value, str) else value
