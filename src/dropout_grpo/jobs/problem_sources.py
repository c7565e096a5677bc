"""The problems of a command: from files and datasets where given, else made by the embedded task."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from dropout_grpo.errors import UserError
from dropout_grpo.jobs.recipe import DataConfig, WeightedSource
from dropout_grpo.problems.files import load_problems
from dropout_grpo.problems.mixture import Mixture
from dropout_grpo.problems.problem import Problem
from dropout_grpo.tasks.registry import TASKS
from dropout_grpo.tasks.word_tokenizer import require_known_words


def problems_of(data: DataConfig, wanted: Sequence[str]) -> dict[str, list[Problem]]:
    """Problems of the wanted splits.

    Raises:
        UserError: a file is missing or malformed, or problems to learn from are given and none to measure on.
    """
    given = {name: getattr(data, name) for name in wanted}
    learnt = [name for name in ("train", "grpo") if given.get(name) is not None]
    measured = [name for name in ("valid", "test") if name in given and given[name] is None]
    if learnt and measured:
        raise UserError(
            f"data.{learnt[0]} is given and data.{measured[0]} is not: the model would be measured on problems of the "
            f"embedded task. Give data.{measured[0]} too."
        )
    unnamed = [name for name, source in given.items() if source is None]
    made = TASKS[data.task].make_splits(getattr(data, data.task), unnamed)
    return {
        name: made[name] if source is None else _load(source, data, require_steps=name == "train")
        for name, source in given.items()
    }


def _load(source: str | tuple[WeightedSource, ...], data: DataConfig, *, require_steps: bool) -> list[Problem]:
    if isinstance(source, str):
        return load_problems(source, columns=data.columns, require_steps=require_steps)
    parts = [load_problems(one.source, columns=one.columns or data.columns, require_steps=False) for one in source]
    return Mixture(parts, [one.weight for one in source])


def vocabulary(data: DataConfig) -> list[str]:
    """The words of the embedded task, for a model made from scratch."""
    return TASKS[data.task].vocabulary(getattr(data, data.task))


def require_readable(
    tokenizer: PreTrainedTokenizerBase, data: DataConfig, problems: Mapping[str, Sequence[Problem]]
) -> None:
    """Check, before a run begins, that the tokenizer knows all words of the splits.

    Raises:
        UserError: see ``require_known_words``.
    """
    for name, split in problems.items():
        require_known_words(tokenizer, split, ", ".join(data.sources(name)) or f"{data.task} {name}")
