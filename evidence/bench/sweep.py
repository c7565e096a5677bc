"""How the cost grows along one axis at a time: the engine and the plain way at a few values, and fitted lines."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from dropout_grpo.latent.graphs import forget_recordings
from evidence.bench import arms
from evidence.bench.config import GROUPED, Axis, BenchConfig, Job, Setting
from evidence.bench.fit import fit_line
from evidence.bench.timing import Seconds, alternate
from evidence.bench.workload import Networks, Workload

_VALUES: dict[Axis, tuple[int, ...]] = {
    "latent_steps": (1, 2, 4, 6, 8, 12),
    "prompt_tokens": (16, 32, 64, 128),
}
_LEAST = {"num_generations": 2, "questions": 1}


def values(axis: Axis, base: Setting) -> tuple[int, ...]:
    """The values of an axis. K and the number of questions double until they reach twice the base."""
    if axis in _VALUES:
        return _VALUES[axis]
    found = [_LEAST[axis]]
    while found[-1] < 2 * getattr(base, axis):
        found.append(2 * found[-1])
    return tuple(found)


def measure_sweep(config: BenchConfig, base: Setting, networks: Networks, axis: Axis, job: Job) -> dict[str, Any]:
    """Seconds of every arm at every value, measured in turn, and the fitted lines."""
    names = [arms.ENGINE, *(["plain"] if "plain" in config.beside else [])]
    points = values(axis, base)
    work = {value: Workload(_at(base, axis, value), networks) for value in points}
    built = {(value, name): arms.build(name, work[value], job) for value in points for name in names}
    forget_recordings()  # of the sweep before
    first = work[points[0]]
    seconds = alternate(built, config.repeats, synchronize=first.synchronize, untimed=first.untimed)
    return {
        "axis": axis,
        "job": job,
        "base": asdict(base),
        "values": list(points),
        "arms": {name: _arm([seconds[value, name] for value in points], points) for name in names},
    }


def sweeps(
    config: BenchConfig, base: Setting, networks: Networks
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names and measurements of all axes of the config, for the jobs on groups."""
    for axis in config.axes:
        for job in (job for job in config.jobs if job in GROUPED):
            yield f"{job} over {axis}", partial(measure_sweep, config, base, networks, axis, job)


def _at(base: Setting, axis: Axis, value: int) -> Setting:
    changed: dict[str, Any] = {axis: value}
    setting = replace(base, **changed)
    return replace(setting, micro_batch_size=max(setting.micro_batch_size, setting.num_generations))


def _arm(seconds: list[Seconds], points: tuple[int, ...]) -> dict[str, Any]:
    medians = [s.median for s in seconds]
    return {
        "medians": medians,
        "spreads": [s.spread for s in seconds],
        "fit": asdict(fit_line(points, medians)),
    }
