"""Builds an exploration from its config, and finds the config of an exploration."""

import inspect
from pathlib import Path
from typing import Any

from dropout_grpo.config.exploration import KINDS, ExplorationConfig
from dropout_grpo.errors import UserError, nearest
from dropout_grpo.exploration.base import PHASES, Exploration
from dropout_grpo.import_path import FILE_MODULE, load_object


def build_exploration(config: ExplorationConfig) -> Exploration:
    """Make an instance of the kind's class.

    The class gets those of ``p``, ``sites`` and ``phases`` that its constructor has parameters for, and all of
    ``options``, which override them.

    Raises:
        UserError: the class cannot be imported, lacks an option, or is not an exploration; or p, a site or a phase is
            out of range or unknown.
    """
    what = f"exploration.kind {config.kind!r}"
    kind = load_object(KINDS.get(config.kind, config.kind), noun="class", what=what, example="my_noise.py:Gaussian")
    if not inspect.isclass(kind):
        raise UserError(f"{what}: it is not a class. Name a class with phases and noise.")
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in () if takes_any else config.options:
        if name not in parameters:
            raise UserError(
                f"exploration.options: {config.kind} has no option {name!r}{nearest(name, tuple(parameters))}; "
                f"it takes {', '.join(parameters) or 'none'}."
            )
    common = {name: getattr(config, name) for name in ("p", "sites", "phases") if name in parameters}
    try:
        exploration = kind(**common | config.options)
    except UserError:
        raise
    except Exception as error:  # a user's class may fail in any way; the cause stays attached
        raise UserError(f"{what} with options {config.options}: {type(error).__name__}: {error}") from error
    return require_exploration(exploration, what)


def require_exploration(candidate: Any, what: str) -> Exploration:
    """The same object, checked.

    Args:
        candidate: what should be an exploration.
        what: the start of messages.

    Raises:
        UserError: it is not an exploration, or has a phase that is unknown.
    """
    if isinstance(candidate, str | type):
        shown = repr(candidate) if isinstance(candidate, str) else f"the class {candidate.__name__}"
        raise UserError(f"{what} is {shown}: give an object, such as SharedDropout(0.1) or NoExploration().")
    if not isinstance(candidate, Exploration):
        raise UserError(
            f"{what}: {type(candidate).__name__} must have phases and noise(seeds, sites); see exploration/base.py."
        )
    if isinstance(candidate.phases, str):
        raise UserError(f"{what}: its phases are the string {candidate.phases!r}: give a set of names.")
    if unknown := sorted(set(candidate.phases) - set(PHASES)):
        raise UserError(f"{what}: its phase {unknown[0]!r} is unknown; known are {', '.join(PHASES)}.")
    return candidate


def options_of(exploration: Exploration) -> dict[str, Any]:
    """The options of ``ExplorationConfig`` that make this exploration, as JSON values; the inverse of the above.

    It has the arguments that an object keeps as attributes of the same names, as all kinds here do. The kind of a
    class of another package is its import path, for a file without the folder.
    """
    cls = type(exploration)
    module, name = cls.__module__, cls.__qualname__
    if module.startswith(FILE_MODULE) and (file := inspect.getsourcefile(cls)):
        module = Path(file).name
    kinds = {path: kind for kind, path in KINDS.items()}
    options: dict[str, Any] = {"kind": kinds.get(f"{module}:{name}", f"{module}:{name}")}
    for parameter in inspect.signature(cls).parameters:
        value = getattr(exploration, parameter, None)
        if isinstance(value, frozenset | set):
            value = sorted(value)
        elif isinstance(value, tuple):
            value = list(value)
        if isinstance(value, str | int | float | list):
            section = options if parameter in ("p", "sites", "phases") else options.setdefault("options", {})
            section[parameter] = value
    return options
