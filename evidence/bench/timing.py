"""Times several arms in turn, so that a drift of the machine affects all of them equally."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to do a job.

    Args:
        run: does the job.
        prepare: called before each run, outside the timed part.
        scale: factor for the seconds, for arms that run only some of the rows.
    """

    run: Callable[[], object]
    prepare: Callable[[], None] = lambda: None
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Seconds of the timed runs of one arm."""

    all: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.all)

    @property
    def spread(self) -> float:
        """(max - min) / median."""
        return (max(self.all) - min(self.all)) / self.median


def alternate(
    arms: Mapping[_Key, Arm],
    repeats: int,
    *,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    untimed: int = 1,
) -> dict[_Key, Seconds]:
    """Runs every arm ``untimed`` times, then all of them in turn ``repeats`` times.

    Args:
        arms: arms by name; they run in this order.
        repeats: timed runs per arm.
        synchronize: waits until the device is idle; called before and after each timed run.
        clock: returns seconds.
        untimed: runs per arm before the timed ones, also in turn.
    """
    seconds: dict[_Key, list[float]] = {key: [] for key in arms}
    for repeat in range(untimed + repeats):
        for key, arm in arms.items():
            arm.prepare()
            synchronize()
            start = clock()
            arm.run()
            synchronize()
            if repeat >= untimed:
                seconds[key].append((clock() - start) * arm.scale)
    return {key: Seconds(all=tuple(found)) for key, found in seconds.items()}
