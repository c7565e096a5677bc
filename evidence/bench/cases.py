"""One case: a job at one K. All its arms run in turn; rates and ratios follow from their seconds."""

from typing import Any

import torch

from dropout_grpo.latent.graphs import forget_recordings
from evidence.bench import arms
from evidence.bench.config import GROUPED, BenchConfig, Job
from evidence.bench.flops import forward_flops, passes
from evidence.bench.masks import mask_seconds
from evidence.bench.memory import peak_memory
from evidence.bench.peak import Rate, measured_rate, seconds_at_peak
from evidence.bench.timing import Seconds, alternate
from evidence.bench.workload import Workload


def measure_case(config: BenchConfig, work: Workload, job: Job) -> dict[str, Any]:
    """Seconds, ratios, rates and FLOPs of every arm; for the engine also its share of the peak and its masks' cost."""
    names = arms.names(job, config.beside, graphs=work.on_cuda, busy=config.busy > 0 and not work.on_cuda)
    forget_recordings()  # of the case before
    attention = {name: arms.choose_attention(name, work, job) for name in names}
    built = {name: arms.build(name, work, job, attention[name]) for name in names}
    seconds = alternate(built, config.repeats, synchronize=work.synchronize, untimed=work.untimed)
    engine = seconds[arms.ENGINE].median
    rate = measured_rate(work.model.device, torch.bfloat16 if work.setting.bf16 else torch.float32)
    case: dict[str, Any] = {
        "job": job,
        "num_generations": work.setting.num_generations,
        "rows": work.setting.rows(job),
        "arms": {name: _arm(name, work, job, seconds[name], engine, attention[name]) for name in names},
        "peak": _peak(work, job, engine, rate),
    }
    if job == "rollouts":
        case["masks"] = _masks(work, config.repeats, engine, seconds[arms.UNMASKED].median)
    return case


def measure_memory(config: BenchConfig, work: Workload, case: dict[str, Any]) -> None:
    """Adds the peak memory of each arm to a case."""
    for name in (name for name in case["arms"] if name != arms.BUSY):
        arm = case["arms"][name]
        arm["memory"] = peak_memory(name, work, case["job"], arm["attention"])


def _arm(name: str, work: Workload, job: Job, seconds: Seconds, engine: float, attention: str | None) -> dict[str, Any]:
    setting, found = work.setting, arms.phases(name, work, job)
    rows, median = setting.rows(job), seconds.median
    problems = setting.questions if job in GROUPED else setting.problems
    flops = passes(job) * forward_flops(work.networks.shape, found)
    forwards = sum(phase.tokens for phase in found)
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
        "problems_per_second": problems / median,
        "answer_tokens_per_second": rows * setting.answer_tokens / median,
        "token_forwards": forwards,
        "token_forwards_per_second": forwards / median,
        "flops": flops,
        "flops_per_second": flops / median,
    }


def _peak(work: Workload, job: Job, engine: float, rate: Rate) -> dict[str, float]:
    """FLOP/s of only matrix products at the engine's shapes, and the share of it that the engine reaches."""
    shape, phases = work.networks.shape, arms.phases(arms.ENGINE, work, job)
    seconds = seconds_at_peak(shape, phases, rate)
    return {
        "flops_per_second": forward_flops(shape, phases) / seconds,
        "share": passes(job) * seconds / engine,
    }


def _masks(work: Workload, repeats: int, engine: float, unmasked: float) -> dict[str, float]:
    """Seconds of making and multiplying masks, their share of a rollout, and the share by difference, with hooks."""
    alone = mask_seconds(work, repeats)
    return {**alone, "share_alone": sum(alone.values()) / engine, "share_by_difference": 1.0 - unmasked / engine}
