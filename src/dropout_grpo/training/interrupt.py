"""SIGTERM and Ctrl-C: a trainer finishes the current update and saves; everything else stops at once.

Only code inside ``handled_signals``, which the command line uses, is affected. A program that uses the trainers as a
library keeps its own signal handlers.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dropout_grpo.training.progress import console

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_deferring = False
_asked: int | None = None
_asked_at = 0.0
_ECHO_SECONDS = 3.0
"""torchrun forwards signals that its processes may also receive directly, from the terminal or from SLURM."""


class Interrupted(KeyboardInterrupt):
    """The process was asked to stop.

    Args:
        signum: number of the signal.
        saved: what was saved before the stop, for the message; empty if nothing needed saving.
    """

    def __init__(self, signum: int, saved: str = "") -> None:
        super().__init__(signum)
        self.signum, self.saved = signum, saved

    @property
    def status(self) -> int:
        """Exit status of the process: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.signum

    def __str__(self) -> str:
        name = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}.get(
            signal.Signals(self.signum), f"stopped by signal {self.signum}"
        )
        return f"{name}{self.saved}"


@contextmanager
def handled_signals() -> Iterator[None]:
    """Inside the block SIGINT and SIGTERM raise ``Interrupted``, at once or at the end of the current update."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers in the main thread only
        return
    before = {number: signal.signal(number, _handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def finishing_updates() -> Iterator[Callable[[], int | None]]:
    """Inside the block the first signal is only recorded; a second one stops the process at once.

    Yields:
        A function that returns the recorded signal, or None.
    """
    global _deferring, _asked
    _deferring, _asked = True, None
    try:
        yield lambda: _asked
    finally:
        _deferring, _asked = False, None


def _handle(number: int, frame: FrameType | None) -> None:
    global _asked, _asked_at
    if _deferring and _asked is None:
        _asked, _asked_at = number, time.monotonic()
        console.print("stopping after this update; a second signal stops at once", markup=False)
        return
    if _deferring and "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - _asked_at < _ECHO_SECONDS:
        return
    raise Interrupted(number)
