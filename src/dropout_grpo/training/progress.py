"""Progress bars on a terminal, and a line every ten seconds elsewhere, on stderr; results on stdout."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

_json = False


def results_are_json(yes: bool) -> None:
    """Keep standard output for one JSON object: ``tell`` prints on standard error."""
    global _json
    _json = yes


def tell(result: str) -> None:
    """Print a result on standard output, on rank 0 only."""
    if not console.quiet:
        print(result, file=sys.stderr if _json else sys.stdout, flush=True)


_SECONDS_BETWEEN_LINES = 10.0


class Bar:
    """A context manager for a long job: call ``bar.advance(loss=..., reward=...)`` after each step.

    Args:
        title: name of the job.
        total: number of steps.
        done: steps already done, when resuming.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self._title, self._total, self._done, self._first = title, total, done, done
        self._progress: Progress | None = None
        self._last_line = self._start = time.monotonic()

    def __enter__(self) -> "Bar":
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[values]}"),
                console=console,
            )
            self._progress.start()
            self._progress.add_task(self._title, total=self._total, completed=self._done, values="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def advance(self, **values: float) -> None:
        """Count one step, and show these values."""
        self.reach(self._done + 1, **values)

    def reach(self, done: int, **values: float) -> None:
        """Set the number of steps done, and show these values."""
        self._done = done
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=done, values=shown)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or self._done == self._total:
            self._last_line = now
            left = (now - self._start) / (self._done - self._first) * (self._total - self._done)
            console.print(f"{self._title} {self._done}/{self._total}  {shown}  {left:.0f} s left", markup=False)
