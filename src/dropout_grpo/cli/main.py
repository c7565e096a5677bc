"""``dropout-grpo COMMAND``: parse the options, run the command, and print errors that the user can fix in one line."""

import argparse
import contextlib
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.cli.failures import describe
from dropout_grpo.cli.messages import explain, names_in, one_line
from dropout_grpo.cli.parser import build_parser, commands, with_recipe_paths
from dropout_grpo.config.needs import WithoutEffect, within
from dropout_grpo.config.recipe_file import instantiated, require_sections
from dropout_grpo.errors import SAME_COMMAND, LostProcess, UserError, nearest
from dropout_grpo.training.interrupt import handled_signals
from dropout_grpo.training.machine import imports_kept, keep_freed_memory, wait_asleep
from dropout_grpo.training.progress import console, results_are_json

_UNTIL_SEEN = 2.0
"""Seconds before a process that has lost another one ends, so that torchrun's report names the lost one, not this."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after the program's name; those of this process if None.

    Returns:
        The exit status: 0 for success, 1 if another process of the run is lost, 2 for a mistake or a failure that the
        user can fix, 130 after Ctrl-C, 143 after SIGTERM, 141 if the reader of standard output has closed it.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words:
        words = ["--help"]
    parser, parsers = build_parser(words[0], shows_help=bool({"-h", "--help"} & {*words[1:]}))
    try:
        name, options = _parsed(parser, parsers, words)
        wait_asleep()
        keep_freed_memory()
        with imports_kept():
            _prepare(name, options)
        with handled_signals():
            if _reads_recipe(name) or os.environ.get("RANK", "0") == "0":
                commands()[name].run(options)
        if sys.stdout is not None:  # as it is where standard output was closed before the start
            sys.stdout.flush()  # here, so that a full disk or a closed pipe is noticed
    except UserError as error:
        return _complain(str(error))
    except argparse.ArgumentError as error:
        return _complain(explain(str(error), parsers.get("".join(words[:1])), words))
    except KeyboardInterrupt as interrupt:
        hint = f"; continue with {SAME_COMMAND}" if _reads_recipe("".join(words[:1])) else ""
        console.print(f"{str(interrupt) or 'interrupted'}{hint}", markup=False)
        return getattr(interrupt, "status", 130)
    except LostProcess as error:
        console.print(f"dropout-grpo: error: {one_line(str(error))}", markup=False)
        time.sleep(_UNTIL_SEEN)
        return 1
    except BrokenPipeError:
        return _without_reader()
    except Exception as error:
        if (message := describe(error)) is None:
            raise
        return _complain(message)
    return 0


def _prepare(name: str, options: Namespace) -> None:
    """Import torch and transformers, which takes seconds and is done before the signals have handlers."""
    from transformers.utils import logging as transformers_logging

    from dropout_grpo.distributed.device import choose_device

    if _reads_recipe(name):
        import_module("dropout_grpo.commands.shared.context")  # which imports most of what such a command needs

    # Progress bars and advice of transformers would break ours; its warnings and errors stay.
    transformers_logging.disable_progress_bar()
    results_are_json(bool(options.get("json")))
    if options.get("device") is not None:
        choose_device(options.device)
    warnings.simplefilter("ignore", WithoutEffect)  # the command names the options, once


def _reads_recipe(name: str) -> bool:
    """Whether a command reads a recipe. It then runs in all processes of torchrun, in a run folder, and can resume."""
    return hasattr(commands().get(name), "UNUSED")


def _parsed(
    parser: ArgumentParser, parsers: Mapping[str, ArgumentParser], words: Sequence[str]
) -> tuple[str, Namespace]:
    """The command and its options, with sections as dataclasses; ``given`` has those that the user has given, and
    ``typed`` the names of those on the command line.

    Raises:
        UserError: a value that no option can have.
        argparse.ArgumentError: a mistake that jsonargparse finds.
    """
    for word in words:
        _require_text("an option", word)
    if not words[0].startswith("-") and words[0] not in commands():
        near = nearest(words[0], tuple(commands()))
        raise UserError(f"there is no command {words[0]!r}{near}; there are {', '.join(commands())}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's notes to developers
        given = with_recipe_paths(words)
        try:
            arguments = parser.parse_args(given)
        except OverflowError:  # of jsonargparse: a whole number where a float is asked for
            raise UserError("an option has a number above 1e308: give a smaller one.") from None
        name = arguments.command
        flags = [action.dest for action in parsers[name]._actions if isinstance(action, argparse._StoreTrueAction)]
        for option, value in arguments[name].items():
            _require_text(option, value)
            if option in flags and not isinstance(value, bool):
                raise UserError(f"{option}: {value!r} must be true or false.")
        if _reads_recipe(name):
            require_sections(arguments[name])
            _warn_of_unused(name, words)
        options = instantiated(parser, arguments)[name]
        options.typed = names_in(words)
        options.given = parser.parse_args(given, defaults=False)[name].as_dict()
        return name, options


def _warn_of_unused(command: str, words: Sequence[str]) -> None:
    """Name the options of the command line that only other commands use. A recipe may hold them: it is for all."""
    if os.environ.get("RANK", "0") != "0" or "--smoke" in words:  # a smoke run's stand-in has the recipe's model
        return
    for name in dict.fromkeys(names_in(words)):
        if within(name, commands()[command].UNUSED):
            console.print(f"warning: --{name}: no effect; {command} does not use it.", markup=False)


def _require_text(option: str, value: Any) -> None:
    """Check that a text, or every text of a list, can be part of a path and of a file."""
    for text in value if isinstance(value, (list, tuple)) else (value,):
        if isinstance(text, str) and ("\0" in text or text != text.encode(errors="replace").decode()):
            raise UserError(f"{option} has the text {text[:60]!r}: NUL and bytes that are not UTF-8 cannot be used.")


def _without_reader() -> int:
    """The exit status of a program that SIGPIPE ends. Standard output is replaced, since Python flushes it again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _complain(message: str) -> int:
    console.print(f"dropout-grpo: error: {one_line(message)}", markup=False)
    return 2


if __name__ == "__main__":
    sys.exit(main())
