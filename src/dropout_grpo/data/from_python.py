"""Problems that are given in Python: as problems, as dicts, or as a Hugging Face dataset."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dropout_grpo.data.columns import COCONUT_COLUMNS, Columns
from dropout_grpo.data.mixture import Mixture
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.records import SOLUTION, check_golds, described, problems_of_records
from dropout_grpo.errors import UserError


def as_problems(
    dataset: Iterable[Any],
    name: str,
    columns: Columns = COCONUT_COLUMNS,
    *,
    require_steps: bool = False,
    require_answers: bool = True,
) -> Sequence[Problem]:
    """The problems of a dataset, read as `records.problems_of_records` says.

    Args:
        dataset: problems, dicts with the columns of a problem file, or a ``datasets.Dataset``. A ``Mixture`` stays one.
        name: name of the dataset, for messages, such as ``train_dataset``.
        columns: names of the columns.
        require_steps: as there.
        require_answers: whether rows must have answers; if not, and no row has a column of answers, all are empty text,
            as in TRL's datasets, whose reward functions read other columns.

    Raises:
        UserError: the dataset is empty or not iterable, or a row is not a problem or has an answer that no completion
            can match; the message names the row.
    """
    if isinstance(dataset, Mixture):
        check_golds(dataset, name, columns)
        return dataset
    if isinstance(dataset, str | Mapping) or not isinstance(dataset, Iterable):
        raise UserError(
            f"{name} is {described(dataset)}: give a list of problems or dicts, or a datasets.Dataset with one split. "
            "load_problems(FILE) reads a file."
        )
    rows = list(dataset)
    if not rows:
        raise UserError(f"{name} is empty.")
    answered = require_answers or any(_has_answer(row, columns) for row in rows)
    return problems_of_records(
        ((f"{name}, row {i}", row) for i, row in enumerate(rows)),
        name,
        columns,
        require_steps=require_steps,
        require_answers=answered,
    )


def _has_answer(row: Any, columns: Columns) -> bool:
    return not isinstance(row, Mapping) or columns.answer in row or SOLUTION in row


def as_sets(dataset: Iterable[Any] | Mapping[str, Iterable[Any]], name: str) -> dict[str, Sequence[Problem]]:
    """Validation problems by the name of their set; one set without a name if the dataset is not a dict of sets.

    Raises:
        UserError: see ``as_problems``.
    """
    if isinstance(dataset, Mapping):
        return {key: as_problems(one, f"{name}[{key!r}]") for key, one in dataset.items()}
    return {"": as_problems(dataset, name)}
