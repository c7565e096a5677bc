"""Ranges of numeric options: declared on the field of a config, checked when it is made, and shown by ``--help``.

@dataclass(frozen=True, kw_only=True)
class Config:
    batch_size: int = ranged(128, at_least=1)
    p: float = ranged(0.1, at_least=0, below=1)

    def __post_init__(self) -> None:
        check_ranges(self, "grpo")
"""

import math
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from dropout_grpo.errors import UserError

MAX_INT = 2**63 - 1
"""The largest whole number that any option may be: a 64-bit integer."""

_KEY = "range"


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """The values that a number may have; every bound that is None is open.

    Attributes:
        at_least: lower bound, included.
        above: lower bound, excluded.
        at_most: upper bound, included.
        below: upper bound, excluded.
        why: reason or remedy, appended to the message.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    why: str = ""

    def __str__(self) -> str:
        bounds = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        texts = [f"{words} {bound}" for words, bound in bounds.items() if bound is not None]
        return " and ".join(texts) or "finite"

    def contains(self, number: float) -> bool:
        """Whether the number is finite, within the bounds and, if it is whole, within 64 bits."""
        finite = abs(number) <= MAX_INT if isinstance(number, int) else math.isfinite(number)
        return (
            finite
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def ranged(default: Any, **bounds: Any) -> Any:
    """A dataclass field with a default and a range, which also holds for every number of a list.

    Args:
        default: default value of the field.
        bounds: the arguments of ``Range``.
    """
    return field(default=default, metadata={_KEY: Range(**bounds)})


def seed_field(default: int = 0) -> Any:
    """A dataclass field for a seed: 0 to 2^63 - 1."""
    return ranged(default, at_least=0)


def range_of(option: "Field[Any]") -> Range | None:
    """The range of a dataclass field, or None if none is declared."""
    bounds: Range | None = option.metadata.get(_KEY)
    return bounds


def number_types(option: Any) -> set[type]:
    """The number types in a field's type: int, float or both; empty for an option that holds no number."""
    return {int, float} & {option, *get_args(option)} or {
        kind for part in get_args(option) for kind in number_types(part)
    }


def check_ranges(config: Any, section: str = "") -> None:
    """Check every option of a config that has a range or is a switch, and that none is None that must have a value.

    Args:
        config: a dataclass.
        section: its name on the command line, such as ``grpo``.

    Raises:
        UserError: a value is missing, outside its range, not finite, not a number, or not one of the choices.
    """
    for option in fields(config):
        bounds, value = range_of(option), getattr(config, option.name)
        name = f"{section}.{option.name}" if section else option.name
        if value is None and type(None) not in get_args(option.type):
            raise UserError(f"{name} must have a value: give it one, or leave it out for its default.")
        if get_origin(option.type) is Literal and value not in get_args(option.type):
            raise UserError(f"{name}={value!r:.40} must be one of {', '.join(map(str, get_args(option.type)))}.")
        if bool in (option.type, *get_args(option.type)) and not isinstance(value, bool | None):
            raise UserError(f"{name}={value!r:.40} must be True or False.")
        if bounds is None or value is None:
            continue
        if (numbers := _list_type(option.type)) and not _fits(value, numbers):
            many = "numbers" if Ellipsis in numbers else f"{len(numbers)} numbers"
            raise UserError(f"{name}={value!r:.40} must be a list of {many}.")
        whole = number_types(option.type) == {int}
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(number, bool) or not isinstance(number, int if whole else (int, float)):
                raise UserError(f"{name}={number!r} must be a {'whole ' if whole else ''}number.")
            if not bounds.contains(number):
                limit = " and below 2^63" if isinstance(number, int) and number > MAX_INT else ""
                raise UserError(f"{name}={_text(number)} must be {bounds}{limit}{bounds.why and ': '}{bounds.why}.")


def _list_type(option: Any) -> tuple[Any, ...]:
    """The arguments of the tuple in an option's type, such as (float, float); empty without one."""
    parts = [part for part in (option, *get_args(option)) if get_origin(part) is tuple]
    return get_args(parts[0]) if parts else ()


def _fits(value: Any, numbers: tuple[Any, ...]) -> bool:
    return isinstance(value, (list, tuple)) and (Ellipsis in numbers or len(value) == len(numbers))


def _text(number: float) -> str:
    if isinstance(number, int) and abs(number) >= 10**40:
        return "a number of more than 40 digits"  # Python refuses to print thousands of them
    return repr(number)
