"""Checks YAML before it is read: no tags, no aliases that grow without bound, no deep nesting, no key twice."""

import re
from dataclasses import dataclass, field
from typing import cast

import yaml
from jsonargparse import get_loader, set_loader
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    MappingStartEvent,
    ScalarEvent,
)

_MAX_VALUES = 10_000
_MAX_DEPTH = 20
_MAX_CHARACTERS = 1_000_000
_CORE = "tag:yaml.org,2002:"
_TAGS = {_CORE + name for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_ODD_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|0[0-7_]*[0-7])")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Collection:
    """A sequence or mapping that is open while the text is scanned."""

    is_mapping: bool
    anchor: str | None
    values: int = 1  # with those inside, aliases expanded
    children: int = 0
    keys: set[str] = field(default_factory=set)


def check_yaml(text: str) -> None:
    """Check a YAML text without building anything from it.

    Raises:
        yaml.YAMLError: a syntax error, or YAML that no recipe needs and that could run code or use up memory.
    """
    if len(text) > _MAX_CHARACTERS:
        raise yaml.YAMLError(f"the text has more than {_MAX_CHARACTERS} characters")
    sizes: dict[str, int] = {}  # anchor -> values, of collections that are complete
    above = [_Collection(is_mapping=False, anchor=None)]
    for event in yaml.parse(text, Loader=_LOADER):
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _TAGS:
            raise _refused(event, f"the tag {tag!r} is not allowed")
        if isinstance(event, DocumentStartEvent) and above[0].children:
            raise _refused(event, "a second document begins")
        if isinstance(event, CollectionStartEvent):
            if above[-1].is_mapping and above[-1].children % 2 == 0:
                raise _refused(event, "a key must be text")
            above.append(_Collection(isinstance(event, MappingStartEvent), event.anchor))
            if len(above) > _MAX_DEPTH:
                raise _refused(event, f"more than {_MAX_DEPTH} levels")
            continue
        if isinstance(event, CollectionEndEvent):
            closed = above.pop()
            values, anchor = closed.values, closed.anchor
        elif isinstance(event, AliasEvent):
            if event.anchor not in sizes:
                raise _refused(event, f"the alias *{event.anchor} refers to a value that contains it")
            values, anchor = sizes[event.anchor], None
        elif isinstance(event, ScalarEvent):
            if event.value == "=" and event.implicit[0]:
                raise _refused(event, "write = in quotes")
            if event.implicit[0] and _ODD_NUMBER.fullmatch(event.value):
                raise _refused(event, f"{event.value} is a number of base 60 or 8 in YAML: write it in quotes")
            values, anchor = 1, event.anchor
        else:
            continue
        parent = above[-1]
        if parent.is_mapping and parent.children % 2 == 0 and isinstance(event, ScalarEvent):
            if event.value in parent.keys:
                raise _refused(event, f"{event.value!r} stands here twice")
            parent.keys.add(event.value)
        parent.children += 1
        parent.values += values
        if parent.values > _MAX_VALUES:
            raise _refused(event, f"more than {_MAX_VALUES} values, aliases included")
        if anchor is not None:
            sizes[anchor] = values


def yaml_problem(error: yaml.YAMLError) -> str:
    """An error of YAML in one line: ``line 3: ...`` where the line is known."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        problem = error.problem or error.context or "it is not YAML"
        return f"line {mark.line + 1}: {problem}" if mark else problem
    if isinstance(error, yaml.reader.ReaderError):
        return f"character {error.position + 1}: {error.reason}"
    return " ".join(str(error).split())


def guard_yaml() -> None:
    """Make jsonargparse check every YAML text that it reads: recipes, their sections, values of options."""
    set_loader("yaml", _load_checked, exceptions=(yaml.YAMLError,))


_load = get_loader("yaml")  # jsonargparse's own


def _load_checked(text: str) -> object:
    check_yaml(text)
    try:
        return _load(text)
    except (TypeError, ValueError, RecursionError) as error:  # such as a number of more digits than Python reads
        raise yaml.YAMLError(str(error)) from error


def _refused(event: Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=cast("yaml.Mark", event.start_mark))
