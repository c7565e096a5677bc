"""Rewrites the messages of jsonargparse about wrong options, in plain words.

The patterns below match the wording of jsonargparse 4 and of argparse; tests/cli/test_messages.py notices a change.
"""

import re
from collections.abc import Collection

from dropout_grpo.errors import nearest

_LONGEST = 1_000  # characters of a message
_REMOVED = {
    "grpo.train_only": "train an adapter (lora.r), or give the trainer a model with requires_grad set in Python",
}
_TYPES = {
    "int": "a whole number",
    "float": "a finite number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list such as [a,b]",
    "list": "a list such as [a,b]",
    "NoneType": "null",
}


def explain(message: str, known: Collection[str]) -> str:
    """Rewrite an error message of jsonargparse.

    Args:
        message: names an option, what it takes and what was given.
        known: names of the command's options, without dashes, to suggest from.

    Returns:
        The message in plain words, with a suggestion for an unknown option. An unknown message is returned unchanged.
    """
    if section := re.match(r"""Parser key "([\w.]+)":\s*Unable to load config ['"](.*?)['"]""", message, re.DOTALL):
        return f"--{section[1]} {section[2]}: it must be options with values, such as {{seed: 1}}, or a YAML file."
    if key := re.match(r'Parser key "([\w.]+)":\s', message):
        return _wrong_value(key[1], message[key.end() :]) or message
    if config := re.match(r"Unexpected config:(.*)", message, re.DOTALL):
        return f"the recipe must be options with values, such as `seed: 1`; found {config[1].strip()[:60]!r}."
    if required := re.match(r"the following arguments are required: (.*)", message):
        names = [name.rpartition(".")[2] for name in required[1].split(", ")]
        return f"missing: {', '.join(f'--{name}' if name in known else name for name in names)}."
    if command := re.match(r"argument command: invalid choice: '(.*)' \(choose from (.*)\)", message):
        commands = tuple(re.findall(r"\w+", command[2]))
        return f"there is no command {command[1]!r}{nearest(command[1], commands)}; there are {', '.join(commands)}."
    unknown = re.findall(r"option '([\w.-]+)'", message) + re.findall(r"(?:^|\s)--([\w.-]+)", message)
    for name in unknown:
        if name in _REMOVED:
            return f"--{name} is no longer an option: {_REMOVED[name]}."
        if name not in known and (near := _near(name, known)):
            return message + near
    return message


def one_line(message: str) -> str:
    """The message on one line without control characters, shortened if it is very long."""
    text = "  ".join(line.strip() for line in message.splitlines() if line.strip())
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 100]} ... {text[-90:]}"


def _wrong_value(option: str, what: str) -> str | None:
    given = re.search(r"(?:Got|Given) value: (.*)", what)
    types = [_TYPES[name] for name in re.findall(r"Expected a <class '(\w+)'>", what) if name in _TYPES]
    if given is None:
        return None
    if choices := re.search(r"Literal\[(.*?)\]", what):
        names = tuple(re.findall(r"'([^']+)'", choices[1]))
        return f"--{option} {given[1]}: it must be one of {', '.join(names)}{nearest(given[1], names)}."
    quotes = "; put an entry that contains brackets in quotes: ['a[:9]',b]" if given[1].count("[") > 1 else ""
    return f"--{option} {given[1]}: it must be {' or '.join(dict.fromkeys(types))}{quotes}." if types else None


def _near(name: str, known: Collection[str]) -> str:
    """A suggestion: the option that ends in the name (exploration.p for p), else the most similar one."""
    ends = [option for option in known if option.endswith(f".{name}")]
    return f" (did you mean {ends[0]!r}?)" if len(ends) == 1 else nearest(name, tuple(known))
