"""The built-in tasks, which make their problems from a seed: every module of this folder that has a ``TASK``.

To add a task, add its module. The command line (``--task``, ``--data.task``, ``--data.NAME.SETTING``), ``data``,
``--smoke`` and the demo read this table. Nothing here imports torch.
"""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from dropout_grpo.tasks.base import Task

_SHARED = ("base", "registry", "word_tokenizer")
"""Modules that are not tasks."""

DEFAULT_TASK = "word_problems"

_names = {module.name for module in iter_modules([str(Path(__file__).parent)])} - {DEFAULT_TASK, *_SHARED}
_tasks: list[Task] = [import_module(f"dropout_grpo.tasks.{name}").TASK for name in (DEFAULT_TASK, *sorted(_names))]

TASKS = {task.name: task for task in _tasks}
"""By name, the default first."""
