"""The command ``data``: write an embedded task's problems to files."""

from pathlib import Path

from dropout_grpo.errors import UserError
from dropout_grpo.jobs.problem_sources import problems_of
from dropout_grpo.jobs.recipe import DataConfig
from dropout_grpo.problems.files import save_problems
from dropout_grpo.tasks.splits import SPLITS


def write_data(out: Path, config: DataConfig) -> dict[Path, int]:
    """Write an embedded task's splits; existing files are not replaced.

    Returns:
        The files written, with their numbers of problems.

    Raises:
        UserError: a file exists, the folder cannot be made, or the task has too few problems.
    """
    targets = {name: out / f"{name}.json" for name in SPLITS}
    for target in targets.values():
        if target.exists():
            raise UserError(f"{target} exists already: choose another --out, or remove it.")
    made = problems_of(config, SPLITS)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}; choose another.") from error
    for name, problems in made.items():
        save_problems(targets[name], problems)
    return {targets[name]: len(problems) for name, problems in made.items()}
