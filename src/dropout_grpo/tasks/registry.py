"""The built-in tasks, which make their problems from a seed. Every module of this folder but the shared ones is a task.

To add a task, add its module with a ``TASK``. The command line (``--task``, ``--data.task``, ``--data.NAME.SETTING``),
``data``, ``--smoke`` and the demo read this table. Nothing here imports torch.
"""

from importlib import import_module
from pkgutil import iter_modules

from dropout_grpo import tasks
from dropout_grpo.tasks.base import Task

_SHARED = ("base", "registry", "word_tokenizer")
"""Modules that are not tasks."""

DEFAULT_TASK = "word_problems"

_names = {module.name for module in iter_modules(tasks.__path__)} - {DEFAULT_TASK, *_SHARED}
_tasks: list[Task] = [import_module(f"dropout_grpo.tasks.{name}").TASK for name in (DEFAULT_TASK, *sorted(_names))]

TASKS = {task.name: task for task in _tasks}
"""By name, the default first."""
