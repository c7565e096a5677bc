"""Work in a second process beside this one, so that two jobs of small products need not share threads in turn."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dropout_grpo.errors import UserError
from dropout_grpo.training.allocator import keep_freed_memory


@contextmanager
def beside(log: Path, work: Callable[..., None], *args: Any) -> Iterator[Callable[[], None]]:
    """``work(*args)`` runs in a process of its own from here on; the two share this process's threads by halves.

    Yields ``wait``, which returns when the work is done. A block that is left without it ends the process.

    Args:
        log: where the process's standard error goes; two progress bars do not fit on one terminal.
        work: a function of a module, since the process imports it.
        *args: its arguments.

    Raises:
        UserError: from ``wait``: the work failed; the message has its last line.
    """
    threads = torch.get_num_threads()
    assert threads > 1, "there is one thread, and nothing to share"
    run = multiprocessing.get_context("spawn").Process(target=_run, args=(log, threads // 2, work, args), daemon=True)

    def wait() -> None:
        run.join()
        if run.exitcode != 0:
            said = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
            last = said[-1] if said else f"exit status {run.exitcode}"
            raise UserError(f"what ran beside failed, see {log}: {last} Continue with --resume true.")

    run.start()
    torch.set_num_threads(threads - threads // 2)
    try:
        yield wait
    finally:
        torch.set_num_threads(threads)
        run.terminate()
        run.join()


def _run(log: Path, threads: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    """What the process does."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    keep_freed_memory()
    work(*args)


def _end_with_parent() -> None:
    """A parent that was killed cleans nothing up, and a run that is resumed must not meet its old half."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a child"
    parent.join()
    os._exit(1)
