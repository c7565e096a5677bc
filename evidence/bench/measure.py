"""Measures a job's arms in turn: the engine, and other ways to do the same job. One JSON object per run.

An arm's ``ratio`` is its median over the engine's. Rows are rollouts or problems; ``problems_per_second`` counts
questions or problems, ``answer_tokens_per_second`` answer tokens, sampled or scored, without steps of chain of thought.
``peak`` is the rate of only the engine's matrix products (``peak.py``) and the share of it that the engine reaches.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from statistics import correlation, linear_regression
from typing import Any

import torch

from dropout_grpo.errors import UserError
from dropout_grpo.latent.graphs import forget_recordings
from dropout_grpo.runs.files import jsonable
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.training.progress import console
from evidence.bench import arms
from evidence.bench.config import GROUPED, Axis, BenchConfig, Job, Setting, resolve
from evidence.bench.memory import peak_memory, return_memory
from evidence.bench.peak import best_seconds, products_of
from evidence.bench.timing import Seconds, alternate
from evidence.bench.workload import EXPLORATION, Networks, Workload

_CPUINFO = Path("/proc/cpuinfo")
_THOUGHTS = (1, 2, 4, 6, 8, 12)

Measurement = tuple[str, Callable[[], dict[str, Any]]]
"""A name for progress, and a function that measures one entry of a result."""


def run_bench(
    config: BenchConfig, *, sweep: bool = False, save: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Measures all cases of a config, or its sweeps at the largest K.

    Args:
        config: what to measure.
        sweep: measure the sweeps.
        save: gets the result so far after every case. A case that fails is then named in ``failed``, and the next one
            is measured; without ``save`` its error is raised.

    Raises:
        UserError: the jobs of a sweep have no groups, or the sizes do not fit the model.
    """
    if sweep and not set(config.jobs) & set(GROUPED):
        raise UserError(
            f"bench sweep: of jobs={list(config.jobs)} there are none on groups; name {' or '.join(GROUPED)}."
        )
    settings = [resolve(config, k) for k in sorted(config.num_generations)]
    networks = Networks(settings[-1])
    entries: list[dict[str, Any]] = []
    failed: list[str] = []
    result = {
        "kind": "sweep" if sweep else "cases",
        "options": jsonable(config),
        "setting": asdict(settings[-1]),
        "exploration": repr(EXPLORATION),
        "parameters": networks.model.num_parameters(),
        "machine": machine(),
        **provenance(),
        "results": entries,
        **({} if save is None else {"failed": failed}),
    }
    for name, measure in _sweeps(config, settings[-1], networks) if sweep else _cases(config, settings, networks):
        console.print(f"bench: {name}", markup=False)
        try:
            entries.append(measure())
        except RuntimeError as error:  # most likely out of memory
            if save is None:
                raise
            failed.append(f"{name}: {' '.join(str(error).split())[:300]}")
        if save is not None:
            save(result)
            return_memory()  # of a case that failed, whose tensors its traceback has held
    return result


def _cases(config: BenchConfig, settings: list[Setting], networks: Networks) -> Iterator[Measurement]:
    """Jobs on groups at each K, the other jobs once. Memory is measured at the largest K."""
    for setting in settings:
        work, largest = Workload(setting, networks), setting is settings[-1]
        for job in config.jobs:
            if job in GROUPED or largest:
                name = f"{setting.size} {job}" + (f", K = {setting.num_generations}" if job in GROUPED else "")
                yield name, partial(measure_case, config, work, job, memory=config.memory and largest)


def measure_case(config: BenchConfig, work: Workload, job: Job, *, memory: bool = False) -> dict[str, Any]:
    """Seconds, ratios and rates of every arm of a job at one K, and the engine's share of the peak."""
    names = arms.names(job, config.beside, graphs=work.on_cuda)
    forget_recordings()  # of the case before
    attention = {name: faster_attention(name, work, job) for name in names}
    built = {name: arms.build(name, work, job, attention[name]) for name in names}
    seconds = alternate(built, config.repeats, synchronize=work.synchronize, untimed=work.untimed)
    engine = seconds[arms.ENGINE].median
    case: dict[str, Any] = {
        "job": job,
        "num_generations": work.setting.num_generations,
        "rows": work.setting.rows(job),
        "arms": {name: _rates(name, work, job, seconds[name], engine, attention[name]) for name in names},
    }
    work.prepare()
    products = products_of(built[arms.ENGINE].run)
    dtype = torch.bfloat16 if work.setting.bf16 else torch.float32
    peak = products.rate(lambda shape: best_seconds(shape, work.model.device, dtype))
    rate = products.flops / engine
    case["arms"][arms.ENGINE] |= {"flops": products.flops, "flops_per_second": rate}
    case["peak"] = {"flops_per_second": peak, "share": rate / peak}
    if memory:
        for name in names:
            case["arms"][name]["memory"] = peak_memory(name, work, job, attention[name])
    return case


def _rates(
    name: str, work: Workload, job: Job, seconds: Seconds, engine: float, attention: str | None
) -> dict[str, Any]:
    setting, median = work.setting, seconds.median
    rows = setting.rows(job)
    return {
        "median": median,
        "min": min(seconds.all),
        "max": max(seconds.all),
        "spread": seconds.spread,
        "seconds": list(seconds.all),
        "rows_measured": arms.rows_run(name, work, job),
        "attention": attention,
        "ratio": median / engine,
        "rows_per_second": rows / median,
        "problems_per_second": (setting.questions if job in GROUPED else setting.problems) / median,
        "answer_tokens_per_second": rows * setting.answer_tokens / median,
    }


def faster_attention(name: str, work: Workload, job: Job) -> str | None:
    """The faster of transformers' two attention implementations for a reference arm, measured on a few rows.

    Returns None for the engine's arms, which choose their attention themselves.
    """
    if name not in arms.REFERENCES:
        return None
    seconds = {}
    for attention in ("sdpa", "eager"):
        arm = arms.build(name, work, job, attention, at_most=16)
        for _ in range(2):  # the first run warms up
            arm.prepare()
            work.synchronize()
            start = time.perf_counter()
            arm.run()
            work.synchronize()
            seconds[attention] = time.perf_counter() - start
    return min(seconds, key=lambda attention: seconds[attention])


def _sweeps(config: BenchConfig, base: Setting, networks: Networks) -> Iterator[Measurement]:
    for axis in ("num_generations", "latent_steps"):
        for job in (job for job in config.jobs if job in GROUPED):
            yield f"{job} over {axis}", partial(_sweep, config, base, networks, axis, job)


def sweep_values(axis: Axis, base: Setting) -> tuple[int, ...]:
    """The values of an axis. K doubles until it reaches twice the base."""
    if axis == "latent_steps":
        return _THOUGHTS
    values = [2]
    while values[-1] < 2 * base.num_generations:
        values.append(2 * values[-1])
    return tuple(values)


def _sweep(config: BenchConfig, base: Setting, networks: Networks, axis: Axis, job: Job) -> dict[str, Any]:
    """Seconds of the engine and the plain way at every value, measured in turn, and the fitted lines."""
    names = [arms.ENGINE, *(["plain"] if "plain" in config.beside else [])]
    values = sweep_values(axis, base)
    work = {value: Workload(_at(base, axis, value), networks) for value in values}
    built = {(value, name): arms.build(name, work[value], job) for value in values for name in names}
    forget_recordings()  # of the sweep before
    first = work[values[0]]
    seconds = alternate(built, config.repeats, synchronize=first.synchronize, untimed=first.untimed)
    return {
        "axis": axis,
        "job": job,
        "base": asdict(base),
        "values": list(values),
        "arms": {
            name: {
                "medians": (medians := [seconds[value, name].median for value in values]),
                "spreads": [seconds[value, name].spread for value in values],
                "fit": fit_line(values, medians),
            }
            for name in names
        },
    }


def _at(base: Setting, axis: Axis, value: int) -> Setting:
    changed: Mapping[str, Any] = {axis: value}
    setting = replace(base, **changed)
    return replace(setting, micro_batch_size=max(setting.micro_batch_size, setting.num_generations))


def fit_line(values: tuple[int, ...], seconds: list[float]) -> dict[str, float]:
    """Least squares: seconds = intercept + slope * value; r2 is the explained share of the variance."""
    slope, intercept = linear_regression(values, seconds)
    r2 = 1.0 if len(set(seconds)) == 1 else correlation(values, seconds) ** 2
    return {"intercept": intercept, "slope": slope, "r2": r2}


def machine() -> dict[str, Any]:
    """Processor, cores, memory in bytes and accelerator."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": cpu_model(_CPUINFO.read_text(encoding="utf-8")) if _CPUINFO.is_file() else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu.name if gpu else None,
        "gpu_memory": gpu.total_memory if gpu else None,
    }


def cpu_model(cpuinfo: str) -> str:
    """The first ``model name`` of /proc/cpuinfo, else the architecture."""
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
