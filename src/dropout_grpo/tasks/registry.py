"""The embedded tasks, which make their problems from a seed. To add a task, write its module and its entry here.

The command line (``--task``, ``--data.task``, ``--data.NAME.SETTING``), ``data``, ``--smoke`` and the demo read this
table. Nothing here imports torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dropout_grpo.data.problem import Problem
from dropout_grpo.tasks import prosqa, word_problems


@dataclass(frozen=True, kw_only=True)
class Task:
    """An embedded task.

    Attributes:
        name: the name on the command line and in recipes.
        config: its settings, a dataclass whose fields all have defaults; ``n_train``, ``n_grpo``, ``n_valid`` and
            ``n_test`` are the sizes of its splits.
        make_splits: makes the wanted splits from the settings; see `splits.deal_split`.
        vocabulary: every word of the questions, steps and answers, for the tokenizer of a model made from scratch.
    """

    name: str
    config: type[Any]
    make_splits: Callable[[Any, Sequence[str]], dict[str, list[Problem]]]
    vocabulary: Callable[[Any], list[str]]


_TASKS = (
    Task(
        name="word_problems",
        config=word_problems.WordProblemsConfig,
        make_splits=word_problems.make_splits,
        vocabulary=word_problems.vocabulary,
    ),
    Task(
        name="prosqa",
        config=prosqa.ProsqaConfig,
        make_splits=prosqa.make_splits,
        vocabulary=lambda config: prosqa.vocabulary(),
    ),
)

TASKS = {task.name: task for task in _TASKS}
"""By name."""

DEFAULT_TASK = _TASKS[0].name
