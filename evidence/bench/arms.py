"""The arms of each job, and how each arm runs on a workload."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from evidence.bench import cot, engine, published
from evidence.bench.config import Job, OtherWay
from evidence.bench.flops import Phase, cot_phases, engine_phases, plain_phases, published_phases
from evidence.bench.timing import Arm
from evidence.bench.workload import Workload

ENGINE = "engine"
OPTIMIZER = "engine_with_optimizer"
UNMASKED = "engine_without_masks"
STEPS = "engine_step_by_step"
BUSY = "engine_beside_busy"

_OWN: dict[Job, dict[str, Callable[[Workload], Callable[[], object]]]] = {
    "rollouts": {
        ENGINE: lambda work: lambda: engine.rollouts(work),
        UNMASKED: lambda work: lambda: engine.unmasked_rollouts(work),
        STEPS: lambda work: lambda: engine.without_graphs(engine.rollouts, work),
    },
    "update": {ENGINE: lambda work: lambda: engine.update(work), OPTIMIZER: engine.UpdateAndStep},
    "curriculum": {ENGINE: lambda work: lambda: engine.curriculum(work)},
    "evaluation": {
        ENGINE: lambda work: lambda: engine.evaluation(work),
        STEPS: lambda work: lambda: engine.without_graphs(engine.evaluation, work),
        BUSY: engine.EvaluationInCompany,
    },
}
_PLAIN: dict[Job, Callable[[Workload], object]] = {  # the other jobs have no groups that could share a prompt
    "rollouts": engine.plain_rollouts,
    "update": engine.plain_update,
}
_REFERENCES: Mapping[str, Any] = {"published": published, "cot": cot}
"""Modules with one function per job, called with a workload and a number of rows."""

_ATTENTIONS = ("sdpa", "eager")
_TRIAL_ROWS = 16


def names(job: Job, others: tuple[OtherWay, ...], *, graphs: bool = False, busy: bool = False) -> list[str]:
    """The arms of a job in the order in which they run.

    Args:
        job: the job.
        others: the ways that the engine is compared with.
        graphs: adds the engine without graphs.
        busy: adds the engine beside busy processes.
    """
    optional = {STEPS: graphs, BUSY: busy}
    own = [name for name in _OWN[job] if optional.get(name, True)]
    return [*own, *(name for name in others if name != "plain" or job in _PLAIN)]


def phases(name: str, work: Workload, job: Job) -> list[Phase]:
    """The forward work of an arm."""
    count = {"plain": plain_phases, "published": published_phases, "cot": cot_phases}.get(name, engine_phases)
    return count(work.setting, job)


def rows_run(name: str, work: Workload, job: Job) -> int:
    """Rows that an arm is measured on: all rows, except for the published way, which is measured on a few."""
    rows = work.setting.rows(job)
    return min(rows, work.setting.published_rows) if name == "published" else rows


def build(name: str, work: Workload, job: Job, attention: str | None = None) -> Arm:
    """An arm ready to be timed. ``attention`` is the attention implementation of a reference arm."""
    if name in _OWN[job]:
        run = _OWN[job][name](work)
        return Arm(run=run, prepare=run.prepare if isinstance(run, engine.EvaluationInCompany) else work.prepare)
    if name == "plain":
        return Arm(run=lambda: _PLAIN[job](work), prepare=work.prepare)
    rows = rows_run(name, work, job)
    return Arm(
        run=lambda: getattr(_REFERENCES[name], job)(work, rows),
        prepare=lambda: work.prepare(attention),
        scale=work.setting.rows(job) / rows,
    )


def choose_attention(name: str, work: Workload, job: Job) -> str | None:
    """The faster of transformers' two attention implementations for a reference arm, measured on a few rows.

    Returns None for the engine's arms, which choose their attention themselves.
    """
    if name not in _REFERENCES:
        return None
    rows = min(rows_run(name, work, job), _TRIAL_ROWS)
    seconds = {}
    for attention in _ATTENTIONS:
        for _ in range(2):  # the first run warms up
            work.prepare(attention)
            work.synchronize()
            start = time.perf_counter()
            getattr(_REFERENCES[name], job)(work, rows)
            work.synchronize()
            seconds[attention] = time.perf_counter() - start
    return min(seconds, key=lambda attention: seconds[attention])
