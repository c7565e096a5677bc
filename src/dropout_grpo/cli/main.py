"""``dropout-grpo COMMAND``: parse the options, run the command, and print errors that the user can fix in one line."""

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.cli.failures import describe
from dropout_grpo.cli.help import UNUSED
from dropout_grpo.cli.messages import explain, one_line
from dropout_grpo.cli.options import build_parser, with_recipe_paths
from dropout_grpo.config.needs import within
from dropout_grpo.config.recipe_file import instantiated, require_sections
from dropout_grpo.errors import LostProcess, UserError
from dropout_grpo.training.interrupt import handled_signals
from dropout_grpo.training.machine import keep_freed_memory, wait_asleep
from dropout_grpo.training.progress import console

_WITH_RECIPE = ("demo", "sft", "grpo", "eval")  # which have a run folder, and can resume
_WITH_CHECKPOINT = ("eval", "ask")  # which take from it what the user does not tell of the exploration
_FLAGS = ("smoke", "json", "sweep", "thoughts", "watch")


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
    parser, parsers = build_parser(help_of=words[0] if {"-h", "--help"} & {*words[1:]} else None)
    try:
        name, options = _parsed(parser, words)
        wait_asleep()
        keep_freed_memory()
        from dropout_grpo.cli.dispatch import run  # here, since torch and transformers take seconds to import

        with handled_signals():
            run(name, options)
        if sys.stdout is not None:  # as it is where standard output was closed before the start
            sys.stdout.flush()  # here, so that a full disk or a closed pipe is noticed
    except UserError as error:
        return _complain(str(error))
    except argparse.ArgumentError as error:
        return _complain(explain(str(error), parsers.get("".join(words[:1]))))
    except KeyboardInterrupt as interrupt:
        hint = "; continue with --resume true" if words[:1] and words[0] in _WITH_RECIPE else ""
        console.print(f"{str(interrupt) or 'interrupted'}{hint}", markup=False)
        return getattr(interrupt, "status", 130)
    except LostProcess as error:
        console.print(f"dropout-grpo: error: {one_line(str(error))}", markup=False)
        return 1
    except BrokenPipeError:
        return _without_reader()
    except Exception as error:
        if (message := describe(error)) is None:
            raise
        return _complain(message)
    return 0


def _parsed(parser: ArgumentParser, words: Sequence[str]) -> tuple[str, Namespace]:
    """The command and its options, with sections as dataclasses.

    Raises:
        UserError: a value that no option can have.
        argparse.ArgumentError: a mistake that jsonargparse finds.
    """
    for word in words:
        _require_text("an option", word)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jsonargparse's notes to developers
        arguments = parser.parse_args(with_recipe_paths(words))
        name = arguments.command
        for option, value in arguments[name].items():
            _require_text(option, value)
            if option in _FLAGS and not isinstance(value, bool):
                raise UserError(f"{option}: {value!r} must be true or false.")
        if name in _WITH_RECIPE:
            require_sections(arguments[name])
            _warn_of_unused(name, words)
        if name == "eval" and isinstance(arguments[name].files, str):
            arguments[name].files = [arguments[name].files]
        if name == "grpo":
            _require_checkpoint(arguments[name])
        options = instantiated(parser, arguments)[name]
        if name in _WITH_CHECKPOINT:
            told = parser.parse_args(with_recipe_paths(words), defaults=False)[name].get("exploration")
            options.told = {} if told is None else told.as_dict()
        return name, options


def _warn_of_unused(command: str, words: Sequence[str]) -> None:
    """Name the options of the command line that only other commands use. A recipe may hold them: it is for all."""
    if os.environ.get("RANK", "0") != "0" or "--smoke" in words:  # a smoke run's stand-in has the recipe's model
        return
    names = [word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")]
    for name in dict.fromkeys(names):
        if within(name, UNUSED[command]):
            console.print(f"warning: --{name}: no effect; {command} does not use it.", markup=False)


def _require_checkpoint(options: Namespace) -> None:
    """A smoke run has a stand-in for the checkpoint, of the architecture of the recipe's model if none is named."""
    if options.checkpoint is None:
        if not options.smoke:
            raise UserError("missing: --checkpoint.")
        options.checkpoint = options.model.name_or_path or "a checkpoint"


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
