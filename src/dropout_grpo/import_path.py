"""Imports a function or class that a user names: ``package.module:name`` or ``path/to/file.py:name``."""

import importlib
import importlib.util
import inspect
import sys
import warnings
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from dropout_grpo.errors import UserError
from dropout_grpo.old_names import current_path

FILE_MODULE = "dropout_grpo_user_"
"""How the names of modules begin that are imported from a file."""


def load_object(path: str, *, noun: Literal["function", "class"], what: str, example: str) -> Any:
    """The callable that ``path`` names. Runs the module's code.

    Args:
        path: ``package.module:name`` or ``path/to/file.py:name``; both may be in the working folder.
        noun: what is expected, for messages.
        what: the start of messages, such as ``reward 'a.py:f'``.
        example: a right path, for messages.

    Raises:
        UserError: the text has another form, the module cannot be imported, or it has no such function or class.
    """
    if (now := current_path(path)) != path:
        warnings.warn(f"{what}: it is {now} now; the old path works until version 0.3.", FutureWarning, stacklevel=2)
    place, _, name = now.rpartition(":")
    if not place or not name.isidentifier():
        raise UserError(f"{what}: expected package.module:{noun} or path/to/file.py:{noun}, for example {example}")
    module = _import_file(place, what) if place.endswith(".py") else _import_module(place, what)
    found = getattr(module, name, None)
    if not callable(found):
        fits = inspect.isclass if noun == "class" else inspect.isfunction
        named = [key for key, value in vars(module).items() if fits(value) and key[0] != "_"]
        raise UserError(f"{what}: {place} has no {noun} {name!r}; it has: {', '.join(named) or 'none'}")
    return found


def _import_module(place: str, what: str) -> ModuleType:
    if (here := str(Path.cwd())) not in sys.path:  # as `python -m` has it, and the installed command does not
        sys.path.append(here)
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way; the cause stays attached
        raise UserError(
            f"{what}: importing {place} failed: {type(error).__name__}: {_text(error)}; "
            "install the package, be in its folder, or give the path of a .py file"
        ) from error


def _import_file(place: str, what: str) -> ModuleType:
    file = Path(place)
    try:
        found = file.is_file()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL character
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{what}: {place!r} cannot be read: {reason}") from error
    if not found:
        raise UserError(f"{what}: no such file: {place}; the path is relative to the working folder")
    name = f"{FILE_MODULE}{blake2b(str(file.resolve()).encode(), digest_size=8).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # as above
        del sys.modules[name]
        raise UserError(f"{what}: running {place} failed: {type(error).__name__}: {_text(error)}") from error
    return module


def _text(error: BaseException) -> str:
    """The error's message, also where it cannot be printed."""
    try:
        return str(error)
    except Exception as other:
        return f"({type(other).__name__} while printing the message)"
