"""``dropout-grpo data``: write a built-in task's problems, or variations of a file's problems, to files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.commands.shared.options import add_config
from dropout_grpo.config.data import DataConfig, TaskName
from dropout_grpo.config.needs import Need, changed, without_effect
from dropout_grpo.config.ranges import check_ranges, ranged, seed_field
from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.data.formats import COCONUT_COLUMNS, Columns
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.vary import vary
from dropout_grpo.errors import UserError
from dropout_grpo.tasks.base import SPLIT_NAMES
from dropout_grpo.tasks.registry import DEFAULT_TASK, TASKS
from dropout_grpo.training.progress import console, tell

HELP = "write a built-in task's problems, or variations of a file's problems, as Coconut JSON"


@dataclass(frozen=True, kw_only=True)
class VaryOptions:
    """Options of ``data --vary``.

    Args:
        vary: file or hf: dataset of problems with calculator marks (GSM8K as published, or Coconut's JSON); writes
            variations of them with other numbers, instead of a built-in task's problems.
        copies: maximum number of variations of a problem.
        seed: seed of the numbers.
    """

    vary: str | None = None
    copies: int = ranged(4, at_least=1, at_most=100)
    seed: int = seed_field()

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(("copies", "seed"), "--vary; a task has a seed of its own", lambda options: options.vary is not None),
    )

    def __post_init__(self) -> None:
        check_ranges(self)


def add_options(parser: ArgumentParser) -> None:
    files = "folder to write train, grpo, valid and test .json to, or vary.json"
    parser.add_argument("--out", type=str, required=True, help=files)
    add_config(parser, VaryOptions)
    add_config(parser, Columns, "data.columns")
    parser.add_argument("--task", type=TaskName, default=DEFAULT_TASK, help="which built-in task")
    for name, task in TASKS.items():
        add_config(parser, task.config, name)


def run(options: Namespace) -> None:
    out = Path(options.out)
    varied = VaryOptions(**{option.name: options[option.name] for option in fields(VaryOptions)})
    config = DataConfig(task=options.task, **{name: options[name] for name in TASKS})
    idle = [name for name in TASKS if varied.vary is not None or name != options.task]
    settings = [one for name in idle for one in changed(options[name], name)]
    if varied.vary is None:
        settings += changed(options.data.columns, "data.columns")
    if settings:
        made_by = f"--task {options.task}" if varied.vary is None else "--vary"
        console.print(f"warning: {', '.join(settings)}: no effect with {made_by}.", markup=False)
    for line in without_effect(varied):
        console.print(line, markup=False)
    written = write_data(out, config) if varied.vary is None else write_variations(out, varied, options.data.columns)
    for file, count in written.items():
        tell(f"{file}: {count} problems")


def write_data(out: Path, config: DataConfig) -> dict[Path, int]:
    """Write a built-in task's splits; existing files are not replaced.

    Returns:
        The files written, with their numbers of problems.

    Raises:
        UserError: a file exists, the folder cannot be created, or the task has too few problems.
    """
    from dropout_grpo.commands.shared.problems import problems_of

    targets = {name: out / f"{name}.json" for name in SPLIT_NAMES}
    _require_new(targets.values())
    made = problems_of(config, SPLIT_NAMES)
    return _write(out, {targets[name]: problems for name, problems in made.items()})


def write_variations(out: Path, options: VaryOptions, columns: Columns = COCONUT_COLUMNS) -> dict[Path, int]:
    """Write variations of a file's problems to ``vary.json``; an existing file is not replaced.

    Returns:
        The file written, with its number of problems.

    Raises:
        UserError: the file exists, the folder cannot be created, or no problem can be varied.
    """
    assert options.vary is not None, "there is a source"
    target = out / "vary.json"
    _require_new([target])
    made = vary(load_problems(options.vary, columns=columns), options.copies, seed=options.seed, columns=columns)
    if not made:
        raise UserError(
            f"{options.vary}: none of the problems can be varied: the steps of a problem must be calculator marks such "
            "as <<48/2=24>> that lead from the question's numbers to the answer."
        )
    return _write(out, {target: made})


def _require_new(targets: Iterable[Path]) -> None:
    for target in targets:
        if target.exists():
            raise UserError(f"{target} exists already: choose another --out, or remove it.")


def _write(out: Path, made: Mapping[Path, Sequence[Problem]]) -> dict[Path, int]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be created: {error.strerror}; choose another.") from error
    drafts = {file: file.with_name(f".{file.stem}.part.json") for file in made}
    try:  # all or none: a file that a full disk has cut would be in the way of the next try
        for file, problems in made.items():
            save_problems(drafts[file], problems)
        for file, draft in drafts.items():
            draft.rename(file)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return {file: len(problems) for file, problems in made.items()}
