"""Runs a function in a second process, so that two trainings of small models use the threads at the same time."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dropout_grpo.errors import UserError
from dropout_grpo.training.interrupt import Interrupted, handled_signals
from dropout_grpo.training.machine import keep_freed_memory, number_of_threads
from dropout_grpo.training.progress import console


@contextmanager
def side_process(log: Path, work: Callable[..., None], *args: Any) -> Iterator[Callable[[], None]]:
    """Runs ``work(*args)`` in a second process; both processes get half of this process's threads.

    Yields ``wait``, which returns when the work is done. Leaving the block without calling it stops the process, which
    finishes and saves the update at hand.

    Args:
        log: file that gets the process's standard error, since two progress bars do not fit on one terminal.
        work: a function of a module, since the process imports it.
        *args: its arguments.

    Raises:
        UserError: from ``wait``: the work failed. The message has the last line of the log.
    """
    threads = torch.get_num_threads()
    assert threads > 1, "one thread cannot be shared"
    run = multiprocessing.get_context("spawn").Process(target=_run, args=(log, threads // 2, work, args), daemon=True)

    def wait() -> None:
        run.join()
        if run.exitcode != 0:
            said = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
            last = said[-1] if said else f"exit status {run.exitcode}"
            raise UserError(f"the second process failed, see {log}: {last} Continue with --resume true.")

    run.start()
    try:
        with number_of_threads(threads - threads // 2):
            yield wait
    finally:
        run.terminate()
        run.join()


def _run(log: Path, threads: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    """Entry point of the second process."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    try:
        with handled_signals():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the parent ends this one
            work(*args)
    except Interrupted as interrupt:
        console.print(str(interrupt), markup=False)
        sys.exit(interrupt.status)


def _end_with_parent() -> None:
    """End this process with its parent: a parent that is killed cannot, and a resumed run must not find it running."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a child"
    parent.join()
    os._exit(1)
