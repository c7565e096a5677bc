"""Reads the YAML of recipes and options: PyYAML's safe loader without aliases, repeated keys and deep nesting."""

import re
from typing import Any

import yaml
from jsonargparse import _loaders_dumpers

_MAX_DEPTH = 20
_MAX_CHARACTERS = 100_000
_CORE = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Numbers are decimal; YAML's numbers of base 60 (1:30) and 8 (010), and its dates, are text."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _refused("aliases are not allowed: write the value out", event)
        if self.depth == _MAX_DEPTH:
            raise _refused(f"more than {_MAX_DEPTH} levels", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise _refused(f"the key {key.value!r} is given twice; keep one", key)
                keys.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in forms if tag in (f"{_CORE}bool", f"{_CORE}null")]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_CORE}int", re.compile(r"[-+]?(0|[1-9][0-9_]{0,40})$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    f"{_CORE}float",
    re.compile(
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|[0-9][0-9_]*(?=[eE])|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf)$|\.(nan|NaN)$"
    ),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> Any:
    """The value that a YAML text describes: dicts, lists, texts, numbers, true, false and null.

    Raises:
        yaml.YAMLError: a syntax error, or YAML that no recipe needs and that could run code or use up memory.
    """
    if len(text) > _MAX_CHARACTERS:
        raise yaml.YAMLError(f"the text has more than {_MAX_CHARACTERS} characters")
    return yaml.load(text, Loader=_Loader)


def yaml_problem(error: yaml.YAMLError) -> str:
    """An error of YAML in one line: ``line 3: ...`` where the line is known."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def guard_yaml() -> None:
    """Make jsonargparse read every YAML text with this loader: recipes, their sections, values of options.

    Its public ``set_loader`` is not enough, since jsonargparse reads numbers with its own loader all the same.
    """
    _loaders_dumpers.yaml_default_loader = _Loader  # type: ignore[assignment]


def _refused(problem: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)
