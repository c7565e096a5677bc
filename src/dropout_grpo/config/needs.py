"""What an option needs to have an effect: declared in its config, and told in one line where it is set in vain.

@dataclass(frozen=True, kw_only=True)
class Config:
    NEEDS: ClassVar = (Need(("kl_delta",), "beta above 0", lambda config: config.beta > 0),)
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any


class WithoutEffect(UserWarning):
    """An option is set, and something that it needs is not."""


@dataclass(frozen=True, slots=True)
class Need:
    """What some options of a config need.

    Attributes:
        options: their names.
        what: what they need, in words.
        met: whether a config has it.
    """

    options: tuple[str, ...]
    what: str
    met: Callable[[Any], bool]


def without_effect(config: Any, section: str = "", *, unused: Collection[str] = ()) -> Iterator[str]:
    """One line for each need that is not met, with the options that differ from their defaults.

    Args:
        config: a dataclass; the configs in it are checked too.
        section: its name on the command line, such as ``grpo``.
        unused: sections and options that the command ignores.
    """
    above = f"{section}." if section else ""
    for need in getattr(config, "NEEDS", ()):
        given = {f"{above}{name}": getattr(config, name) for name in need.options if _is_set(config, name)}
        given = {name: value for name, value in given.items() if not within(name, unused)}
        if given and not need.met(config):
            named = ", ".join(f"{name}={_text(value)}" for name, value in given.items())
            yield f"warning: {named}: no effect; {'it needs' if len(given) == 1 else 'they need'} {need.what}."
    for option in fields(config):
        if is_dataclass(getattr(config, option.name)) and not within(above + option.name, unused):
            yield from without_effect(getattr(config, option.name), above + option.name, unused=unused)


def changed(config: Any, section: str) -> list[str]:
    """``section.option=value`` of the options of a config that differ from their defaults."""
    names = [option.name for option in fields(config) if _is_set(config, option.name)]
    return [f"{section}.{name}={_text(getattr(config, name))}" for name in names]


def within(name: str, sections: Collection[str]) -> bool:
    """Whether an option is one of these sections and options, or in one of them."""
    return any(name == section or name.startswith(f"{section}.") for section in sections)


def warn_without_effect(config: Any, above: int = 0) -> None:
    """Warn in Python, at the line that makes the config: to be called by its ``__post_init__``.

    Args:
        config: the config.
        above: calls between that line and the config's ``__init__``.
    """
    for line in without_effect(config):
        warnings.warn(line.removeprefix("warning: "), WithoutEffect, stacklevel=4 + above)


def _is_set(config: Any, name: str) -> bool:
    option: Field[Any] = config.__dataclass_fields__[name]
    default = option.default if option.default_factory is MISSING else option.default_factory()
    return bool(getattr(config, name) != default)


def _text(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)
