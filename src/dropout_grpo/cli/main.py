"""``dropout-grpo COMMAND``: parse, run, say what the user can fix."""

import argparse
import sys
import warnings
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from dropout_grpo.cli.messages import explain
from dropout_grpo.cli.options import build_parser, with_recipe_paths
from dropout_grpo.errors import UserError
from dropout_grpo.jobs.recipe_file import require_sections
from dropout_grpo.training.allocator import keep_freed_memory
from dropout_grpo.training.interrupt import handled_signals
from dropout_grpo.training.progress import console

_CAN_RESUME = ("demo", "sft", "grpo", "eval")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0 done, 1 failed, 2 a mistake of the user, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser, commands_by_name = build_parser()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # jsonargparse's notes to developers
            arguments = parser.parse_args(with_recipe_paths(words))
            name = arguments.command
            require_sections(arguments[name])
            options = parser.instantiate_classes(arguments)[name]
        keep_freed_memory()
        from dropout_grpo.cli.dispatch import run  # here, since torch and transformers take seconds to import

        with handled_signals():
            run(name, options)
    except UserError as error:
        return _complain(str(error))
    except argparse.ArgumentError as error:
        return _complain(explain(str(error), _options_of(commands_by_name.get("".join(words[:1])))))
    except KeyboardInterrupt as interrupt:
        hint = "; continue with --resume true" if words[:1] and words[0] in _CAN_RESUME else ""
        console.print(f"{interrupt or 'interrupted'}{hint}", markup=False)
        return getattr(interrupt, "status", 130)
    return 0


def _options_of(parser: ArgumentParser | None) -> list[str]:
    """Names of a command's options, without dashes."""
    actions = [] if parser is None else parser._actions
    return [option.lstrip("-") for action in actions for option in action.option_strings]


def _complain(message: str) -> int:
    console.print(f"dropout-grpo: error: {message}", markup=False)
    return 2


if __name__ == "__main__":
    sys.exit(main())
