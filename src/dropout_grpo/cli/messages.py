"""Rewrites the messages of jsonargparse about wrong options, in plain words.

Only the option's name and value are read from the message; tests/cli/test_messages.py notices a change of its wording.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

from dropout_grpo.config.needs import within
from dropout_grpo.errors import nearest
from dropout_grpo.old_names import REMOVED_OPTIONS

_LONGEST = 1_000  # characters of a message
_KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}
_WRONG_VALUE = re.compile(
    r"""Parser key "([\w.]+)":.*?(?:Got value:|Given value:|Unable to load config) ['"]?([^\n]*?)['"]?(\n|$)""",
    re.DOTALL,
)


def names_in(words: Sequence[str]) -> list[str]:
    """The names of the options among the words of a command line."""
    return [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")]


def explain(message: str, parser: ArgumentParser | None, words: Sequence[str] = ()) -> str:
    """Rewrite an error message of jsonargparse.

    Args:
        message: the message of an ArgumentError.
        parser: the parser of the command; None if there is no such command.
        words: the words of the command line; an option that is not among them comes from the recipe.

    Returns:
        What a wrong value must be, or the message with a suggestion for an unknown option, or else the message itself.
    """
    actions = {} if parser is None else {action.dest: action for action in parser._actions}
    if (wrong := _WRONG_VALUE.match(message)) and wrong[1] in actions:
        action: Any = actions[wrong[1]]
        kind = getattr(action, "_typehint", None) or getattr(action, "basetype", None)  # of an option; of a section
        if "Literal[" in message and get_origin(kind) in (tuple, list):
            kind = get_args(kind)[0]  # it is a list, with an entry that is not one of the choices
        choices = get_args(kind) if get_origin(kind) is Literal else ()
        recipe = "" if within(wrong[1], names_in(words)) else _recipe(words)
        return f"{recipe or '--'}{wrong[1]} {wrong[2]}: it must be {_words(kind)}{nearest(wrong[2], choices)}."
    if required := re.match(r"the following arguments are required: (.*)", message):
        names = [name.rpartition(".")[2] for name in required[1].split(", ")]
        options = {name for name, action in actions.items() if action.option_strings}
        return f"missing: {', '.join(f'--{name}' if name in options else name for name in names)}."
    for name in re.findall(r"(?:option '|--)([\w.-]+)", message):
        if name in REMOVED_OPTIONS:
            return f"--{name} is no longer an option: {REMOVED_OPTIONS[name]}."
        if unknown := re.match(r"Subcommand '\w+' does not accept option ", message):
            message = f"{_recipe(words)}there is no option {message[unknown.end() :]}"
        if name not in actions and (near := _near(name, actions)):
            return message + near
    return message


def _recipe(words: Sequence[str]) -> str:
    """The recipe of a command line, as the place of a mistake; empty if none is named."""
    named = re.findall(r"--recipe[ =](\S+)", " ".join(words))
    return f"recipe {named[-1]}: " if named else ""


def one_line(message: str) -> str:
    """The message on one line without control characters, shortened if it is very long."""
    text = "  ".join(line.strip() for line in message.splitlines() if line.strip())
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 100]} ... {text[-90:]}"


def _words(kind: Any) -> str:
    """What an option of this type takes."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) in (tuple, list):
        entry = get_args(kind)[0]
        return f"a list such as [{','.join(get_args(entry)) if get_origin(entry) is Literal else 'a,b'}]"
    if is_dataclass(kind) or get_origin(kind) is dict:
        return "options with values, such as {seed: 1}"
    return _KINDS.get(kind) or " or ".join(_words(part) for part in get_args(kind))


def _near(name: str, known: Collection[str]) -> str:
    """A suggestion: the option that ends in the name (exploration.p for p), else the most similar one.

    In a section that exists it is one of the section's, whose initials may be given: grpo.learning_rate for grpo.lr.
    """
    section, _, last = name.rpartition(".")
    if section in known:
        own = {option.rpartition(".")[2]: option for option in known if option.rpartition(".")[0] == section}
        short = [option for leaf, option in own.items() if "".join(part[0] for part in leaf.split("_")) == last]
        return f" (did you mean {short[0]!r}?)" if short else nearest(name, tuple(own.values()))
    ends = [option for option in known if option.endswith(f".{name}")]
    return f" (did you mean {ends[0]!r}?)" if len(ends) == 1 else nearest(name, tuple(known))
