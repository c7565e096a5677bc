"""The program ``dropout-grpo``. Imports little, so that a signal ends it without a traceback from an import."""

import os
import signal
import sys
from types import FrameType


def entry() -> int:
    """Run the command line as a program; returns the exit status."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    from dropout_grpo.cli.main import main  # it has its own handlers while a command runs

    return main()


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has been written, and a module that is being imported could catch an exception."""
    os.write(2, b"interrupted\n" if number == signal.SIGINT else b"stopped by SIGTERM\n")
    os._exit(128 + number)


if __name__ == "__main__":
    sys.exit(entry())
