"""The whole benchmark: one JSON object per run."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import jsonable
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.training.progress import console
from evidence.bench.cases import measure_case, measure_memory
from evidence.bench.config import GROUPED, BenchConfig, Job, Setting, resolve
from evidence.bench.machine import machine
from evidence.bench.memory import return_memory
from evidence.bench.sweep import sweeps
from evidence.bench.workload import EXPLORATION, Networks, Workload


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
    found: list[dict[str, Any]] = []
    failed: list[str] = []
    result = {
        "kind": "sweep" if sweep else "cases",
        "options": jsonable(config),
        "setting": asdict(settings[-1]),
        "exploration": repr(EXPLORATION),
        "parameters": networks.model.num_parameters(),
        "machine": machine(),
        **provenance(),
        "results": found,
        **({} if save is None else {"failed": failed}),
    }
    for name, measure in sweeps(config, settings[-1], networks) if sweep else _cases(config, settings, networks):
        console.print(f"bench: {name}", markup=False)
        try:
            found.append(measure())
        except RuntimeError as error:  # most likely out of memory
            if save is None:
                raise
            failed.append(f"{name}: {' '.join(str(error).split())[:300]}")
        if save is not None:
            save(result)
            return_memory()  # of a case that failed, whose tensors its traceback has held
    return result


def _cases(
    config: BenchConfig, settings: list[Setting], networks: Networks
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Names and measurements: jobs on groups at each K, the other jobs once. Memory is measured at the largest K."""
    for setting in settings:
        work, largest = Workload(setting, networks), setting is settings[-1]
        for job in config.jobs:
            if job in GROUPED or largest:
                name = f"{setting.size} {job}" + (f", K = {setting.num_generations}" if job in GROUPED else "")
                yield name, partial(_case, config, work, job, memory=config.memory and largest)


def _case(config: BenchConfig, work: Workload, job: Job, *, memory: bool) -> dict[str, Any]:
    case = measure_case(config, work, job)
    if memory:
        measure_memory(config, work, case)
    return case
