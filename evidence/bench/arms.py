"""The arms of each job: the engine, the engine with something left out, and the other ways to do the job."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from evidence.bench import cot, engine, published
from evidence.bench.config import GROUPED, Job, OtherWay
from evidence.bench.timing import Arm
from evidence.bench.workload import Workload

ENGINE = "engine"
UNMASKED = "engine_without_masks"
STEPS = "engine_step_by_step"

_WITHOUT_ROWS: Mapping[tuple[str, Job], Callable[[Workload], object]] = {
    (ENGINE, "rollouts"): engine.rollouts,
    (UNMASKED, "rollouts"): engine.unmasked_rollouts,
    (STEPS, "rollouts"): partial(engine.without_graphs, engine.rollouts),
    ("plain", "rollouts"): engine.plain_rollouts,
    (ENGINE, "update"): engine.update,
    ("plain", "update"): engine.plain_update,
    (ENGINE, "curriculum"): engine.curriculum,
    (ENGINE, "evaluation"): engine.evaluation,
    (STEPS, "evaluation"): partial(engine.without_graphs, engine.evaluation),
}
REFERENCES: Mapping[str, Any] = {"published": published, "cot": cot}
"""Modules with one function per job, called with a workload and a number of rows."""


def names(job: Job, others: tuple[OtherWay, ...], *, graphs: bool = False) -> list[str]:
    """The arms of a job in the order in which they run.

    Args:
        job: the job.
        others: the ways that the engine is compared with. Only jobs on groups have a plain way.
        graphs: adds the engine without graphs.
    """
    own = [name for name in (ENGINE, UNMASKED, STEPS) if (name, job) in _WITHOUT_ROWS and (graphs or name != STEPS)]
    return [*own, *(name for name in others if name != "plain" or job in GROUPED)]


def rows_run(name: str, work: Workload, job: Job) -> int:
    """Rows that an arm is measured on: all rows, except for the published way, which is measured on a few."""
    rows = work.setting.rows(job)
    return min(rows, work.setting.published_rows) if name == "published" else rows


def build(name: str, work: Workload, job: Job, attention: str | None = None, *, at_most: int | None = None) -> Arm:
    """An arm ready to be timed.

    Args:
        name: the arm.
        work: its inputs.
        job: the job.
        attention: the attention implementation of a reference arm.
        at_most: greatest number of rows of a reference arm.
    """
    if name not in REFERENCES:
        return Arm(run=partial(_WITHOUT_ROWS[name, job], work), prepare=work.prepare)
    rows = rows_run(name, work, job) if at_most is None else min(rows_run(name, work, job), at_most)
    return Arm(
        run=lambda: getattr(REFERENCES[name], job)(work, rows),
        prepare=lambda: work.prepare(attention),
        scale=work.setting.rows(job) / rows,
    )
