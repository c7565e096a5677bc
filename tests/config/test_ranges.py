"""Ranges of numeric options: refused values, messages, and that every numeric option has a range."""

import math
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import pytest

from dropout_grpo.commands.ask import AskOptions
from dropout_grpo.commands.data import VaryOptions
from dropout_grpo.config.checkpoint import CheckpointOptions
from dropout_grpo.config.ranges import MAX_INT, check_ranges, number_types, range_of, ranged, seed_field
from dropout_grpo.config.recipe import Recipe
from dropout_grpo.errors import UserError
from evidence.bench.config import BenchConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    count: int = ranged(1, at_least=1)
    rate: float = ranged(0.5, above=0, at_most=1, why="it is a share")
    limit: int | None = ranged(None, at_least=2)
    weights: tuple[float, ...] | None = ranged(None, at_least=0, below=9)
    ends: tuple[float, float] | None = ranged(None)
    seed: int = seed_field()

    def __post_init__(self) -> None:
        check_ranges(self, "part")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "part.count=0 must be at least 1."),
        ({"count": 1.5}, "part.count=1.5 must be a whole number."),
        ({"count": True}, "part.count=True must be a whole number."),
        ({"count": None}, "part.count must have a value: give it one, or leave it out for its default."),
        ({"count": 2**63}, "part.count=9223372036854775808 must be at least 1 and below 2^63."),
        ({"rate": 0}, "part.rate=0 must be above 0 and at most 1: it is a share."),
        ({"rate": math.inf}, "part.rate=inf must be above 0 and at most 1: it is a share."),
        ({"rate": "1"}, "part.rate='1' must be a number."),
        ({"limit": 1}, "part.limit=1 must be at least 2."),
        ({"weights": (1.0, 9)}, "part.weights=9 must be at least 0 and below 9."),
        ({"weights": (1.0, math.nan)}, "part.weights=nan must be at least 0 and below 9."),
        ({"weights": 1.0}, "part.weights=1.0 must be a list of numbers."),
        ({"ends": 0.2}, "part.ends=0.2 must be a list of 2 numbers."),
        ({"ends": (0.2,)}, "part.ends=(0.2,) must be a list of 2 numbers."),
        ({"ends": (0.2, "1")}, "part.ends='1' must be a number."),
        ({"seed": -1}, "part.seed=-1 must be at least 0."),
        ({"seed": 2**63}, "part.seed=9223372036854775808 must be at least 0 and below 2^63."),
        ({"count": 10**400}, "part.count=a number of more than 40 digits must be at least 1 and below 2^63."),
        ({"count": -(10**5000)}, "part.count=a number of more than 40 digits must be at least 1."),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Config(**options)
    assert str(caught.value) == message


def test_what_is_accepted() -> None:
    for options in (
        {},
        {"count": MAX_INT},
        {"rate": 1},
        {"limit": 2},
        {"weights": (0, 8.9)},
        {"ends": [0, 1]},
        {"seed": MAX_INT},
    ):
        assert Config(**options)


def numeric_options(config: type[Any]) -> list[tuple[type[Any], Any]]:
    """Every numeric field of a config and of its sections."""
    found = []
    for option in fields(config):
        if is_dataclass(option.default_factory):
            found += numeric_options(option.default_factory)  # type: ignore[arg-type]
        elif number_types(option.type):
            found.append((config, option))
    return found


@pytest.mark.parametrize("config", [Recipe, CheckpointOptions, AskOptions, VaryOptions, BenchConfig])
def test_every_numeric_option_has_a_range_that_is_checked(config: type[Any]) -> None:
    options = numeric_options(config)
    assert options
    for owner, option in options:
        assert range_of(option) is not None, f"{owner.__name__}.{option.name}"
        for value in (math.nan, math.inf, 10**400):
            given: Any = (value,) if "tuple" in str(option.type) else value
            with pytest.raises(UserError, match=option.name):
                owner(**{option.name: given})
