"""Problems that are given in Python: as problems, as dicts, or as a Hugging Face dataset."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.problems.columns import COCONUT_COLUMNS, Columns
from dropout_grpo.problems.mixture import Mixture
from dropout_grpo.problems.problem import Problem
from dropout_grpo.problems.records import described, problem_of

_PROMPT, _SOLUTION = "prompt", "solution"  # what TRL's datasets call question and answer


def as_problems(dataset: Iterable[Any], name: str, columns: Columns = COCONUT_COLUMNS) -> Sequence[Problem]:
    """The problems of a dataset; steps are optional.

    Args:
        dataset: problems, dicts with the columns of a problem file, or a ``datasets.Dataset``. Where a row has no
            column ``question`` or ``answer``, TRL's ``prompt`` and ``solution`` are read. Other columns go to the
            reward functions. A ``Mixture`` stays one.
        name: name of the dataset, for messages, such as ``train_dataset``.
        columns: names of the columns.

    Raises:
        UserError: the dataset is empty or not iterable, or a row is not a problem; the message names the row.
    """
    if isinstance(dataset, Mixture):
        return dataset
    if isinstance(dataset, str | Mapping) or not isinstance(dataset, Iterable):
        raise UserError(
            f"{name} is {described(dataset)}: give a list of problems or dicts, or a datasets.Dataset with one split. "
            "load_problems(FILE) reads a file."
        )
    rows = list(dataset)
    if not rows:
        raise UserError(f"{name} is empty.")
    if all(isinstance(row, Problem) for row in rows):
        return rows
    return [
        problem_of(_renamed(row, columns), i, f"{name}, row {i}", columns, require_steps=False)
        for i, row in enumerate(rows)
    ]


def _renamed(row: Any, columns: Columns) -> Any:
    if not isinstance(row, Mapping):
        return row
    record = dict(row)
    for name, theirs in ((columns.question, _PROMPT), (columns.answer, _SOLUTION)):
        if name not in record and theirs in record:
            record[name] = record.pop(theirs)
    return record
