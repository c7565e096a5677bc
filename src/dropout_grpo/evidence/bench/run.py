"""The whole benchmark: one JSON object per run."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.evidence.bench.cases import measure_case, measure_memory
from dropout_grpo.evidence.bench.config import GROUPED, BenchConfig, Setting, resolve
from dropout_grpo.evidence.bench.machine import machine
from dropout_grpo.evidence.bench.sweep import sweeps
from dropout_grpo.evidence.bench.workload import EXPLORATION, Networks, Workload
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.write import jsonable
from dropout_grpo.training.progress import console

Announce = Callable[[str], None]


def run_bench(config: BenchConfig, *, sweep: bool = False) -> dict[str, Any]:
    """Measures all cases of a config, or its sweeps at the largest K.

    Raises:
        UserError: the jobs of a sweep have no groups, or the sizes do not fit the model.
    """
    if sweep and not set(config.jobs) & set(GROUPED):
        raise UserError(
            f"bench sweep: of jobs={list(config.jobs)} there are none on groups; name {' or '.join(GROUPED)}."
        )
    settings = [resolve(config, k) for k in sorted(config.num_generations)]
    networks = Networks(settings[-1])
    found = sweeps(config, settings[-1], networks, _announce) if sweep else _cases(config, settings, networks)
    return {
        "kind": "sweep" if sweep else "cases",
        "options": jsonable(config),
        "setting": asdict(settings[-1]),
        "exploration": repr(EXPLORATION),
        "parameters": networks.model.num_parameters(),
        "machine": machine(),
        **provenance(),
        "results": found,
    }


def _cases(config: BenchConfig, settings: list[Setting], networks: Networks) -> list[dict[str, Any]]:
    """Jobs on groups at each K, the other jobs once. Memory is measured at the largest K."""
    cases = []
    for setting in settings:
        work, largest = Workload(setting, networks), setting is settings[-1]
        for job in config.jobs:
            if job not in GROUPED and not largest:
                continue
            _announce(f"{setting.size} {job}" + (f", K = {setting.num_generations}" if job in GROUPED else ""))
            cases.append(measure_case(config, work, job))
            if config.memory and largest:
                measure_memory(config, work, cases[-1])
    return cases


def _announce(what: str) -> None:
    console.print(f"bench: {what}", markup=False)
