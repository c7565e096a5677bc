"""Results as Markdown tables, for the terminal and for docs/performance/tables.md."""

from collections.abc import Callable, Mapping
from typing import Any

from evidence.pages.markdown import table

Result = Mapping[str, Any]

ARM_LABELS = {  # those of recorded results too
    "engine": "engine",
    "engine_with_optimizer": "engine, with clipping and AdamW",
    "engine_without_masks": "engine, no masks",
    "engine_step_by_step": "engine, no graphs",
    "engine_beside_busy": "engine, beside busy processes",
    "plain": "(a) every rollout reads its prompt",
    "published": "(b) one row at a time, no cache",
    "cot": "(c) chain of thought, transformers",
}
AXIS_LABELS = {
    "num_generations": "K",
    "latent_steps": "thoughts",
    "prompt_tokens": "prompt tokens",
    "questions": "questions",
}
_GIB = 2.0**30


def machine(result: Result) -> str:
    """One paragraph: the machine, the versions and the sizes."""
    m, s, v, options = result["machine"], result["setting"], result["versions"], result["options"]
    device = m["gpu"] if s["device"] == "cuda" else f"{m['cpu']}, {m['cores']} cores"
    memory = m["gpu_memory"] if s["device"] == "cuda" else m["memory"]
    sampled = f"{s['questions']} questions per batch of rollouts or of an update (in micro-batches of "
    return (
        f"{device}, {memory / _GIB:.0f} GiB; {'bf16' if s['bf16'] else 'float32'} matrix products; torch {v['torch']}, "
        f"transformers {v['transformers']}; commit {result['commit']}. Size {s['size']} ({result['parameters']:,} "
        f"parameters): prompt {s['prompt_tokens']} tokens, {s['latent_steps']} thoughts, {s['answer_tokens']} answer "
        f"tokens; chain of thought writes {s['cot_tokens']} tokens first. {sampled}{s['micro_batch_size']} rollouts). "
        f"{s['problems']} problems per batch of the curriculum or of evaluation. Medians of {options['repeats']} runs; "
        f"(b) is measured on {s['published_rows']} rows and scaled to the batch."
    )


def ratios(result: Result) -> str:
    """One row per job: the engine's time, the other ways' times as multiples of it, and the engine's rates."""
    columns = ["job", "K", "engine, s", "(a) / engine", "(b) / engine", "(c) / engine", "problems/s", "rows/s"]
    rows = []
    for case in result["results"]:
        engine, others = case["arms"]["engine"], (case["arms"].get(name) for name in ("plain", "published", "cot"))
        others_ratios = [f"{arm['ratio']:.2f}" if arm else "" for arm in others]
        rows.append(
            [*_case(case), engine["median"], *others_ratios, engine["problems_per_second"], engine["rows_per_second"]]
        )
    return _table(columns, rows)


def times(result: Result) -> str:
    """Seconds, ratios and rates of every arm."""
    columns = ["job", "K", "arm", "seconds", "spread", "times the engine's", "problems/s", "rows/s", "answer tokens/s"]
    rows = [
        [
            *_case(case),
            ARM_LABELS[name],
            arm["median"],
            f"{100 * arm['spread']:.0f} %",
            arm["ratio"],
            arm["problems_per_second"],
            arm["rows_per_second"],
            arm["answer_tokens_per_second"],
        ]
        for case in result["results"]
        for name, arm in case["arms"].items()
    ]
    return _table(columns, rows)


def peak(result: Result) -> str:
    """The engine's rate compared with that of its matrix products only."""
    columns = ["job", "K", "engine, GFLOP/s", "matrix products alone, GFLOP/s", "share"]
    rows = [
        [
            *_case(case),
            case["arms"]["engine"]["flops_per_second"] / 1e9,
            case["peak"]["flops_per_second"] / 1e9,
            f"{100 * case['peak']['share']:.0f} %",
        ]
        for case in result["results"]
    ]
    return _table(columns, rows)


def memory(result: Result) -> str:
    """Peak memory at the largest K."""
    columns = ["job", "K", "arm", "peak, GiB", "before, GiB", "measured"]
    rows = [
        [
            *_case(case),
            ARM_LABELS[name],
            arm["memory"]["peak"] / _GIB,
            arm["memory"]["before"] / _GIB,
            arm["memory"]["kind"],
        ]
        for case in result["results"]
        for name, arm in case["arms"].items()
        if "memory" in arm
    ]
    return _table(columns, rows)


def lines(result: Result) -> str:
    """Straight lines fitted to the sweeps."""
    columns = ["job", "over", "arm", "from", "to", "intercept, ms", "ms for one more", "R^2"]
    rows = [
        [
            sweep["job"],
            AXIS_LABELS[sweep["axis"]],
            ARM_LABELS[name],
            sweep["values"][0],
            sweep["values"][-1],
            1e3 * arm["fit"]["intercept"],
            1e3 * arm["fit"]["slope"],
            f"{arm['fit']['r2']:.4f}",
        ]
        for sweep in result["results"]
        for name, arm in sweep["arms"].items()
    ]
    return _table(columns, rows)


def outcomes(result: Result) -> str:
    """Outcomes of the tests on an accelerator, as counted by ``gpu.py``."""
    versions, gpu = result["versions"], result["machine"]["gpu"]
    failed = "".join(f"\n- failed: `{name}`" for name in result["failed"])
    return (
        f"{result['passed']} tests passed, {len(result['failed'])} failed, {result['skipped']} were skipped on {gpu}; "
        f"torch {versions['torch']}; commit {result['commit']}.{failed}"
    )


def sizes(result: Result) -> str:
    """Models of real sizes, as checked by ``gpu_sizes.py``."""
    columns = ["model", "recorded = step by step", "replay gap, bf16", "GRPO step, s", "peak, GiB", "wrong"]
    rows = [
        [
            row["size"],
            f"{100 * row['recorded_same_answers']:.1f} % of answers" if "recorded_same_answers" in row else "",
            row.get("replay_gap_mean", ""),
            row.get("step_seconds", ""),
            row["peak_bytes"] / _GIB if row.get("peak_bytes") else "",
            "; ".join(row["wrong"]) or "nothing",
        ]
        for row in result["results"]
    ]
    return _table(columns, rows)


_PEAKS = {"peak": "peak of the command, GB", "anonymous": "without pages of files, GB"}


def against(result: Result) -> str:
    """Seconds and peak memory of an older commit and of the one that was measured."""
    rows = []
    for job, both in result["jobs"].items():
        for key, name in (("update", job), ("step", "with rollouts"), *_PEAKS.items()):
            old, new = both["old"].get(key), both["new"].get(key)
            if old and new:
                scale = 1e9 if key in _PEAKS else 1.0
                rows.append([name, f"{old / scale:.1f}", f"{new / scale:.1f}", f"{old / new:.2f}"])
    columns = ["seconds, or GB", f"commit {result['commit_before']}", f"commit {result['commit'][:7]}", "ratio"]
    return table(columns, rows)


OF_CASES: dict[str, Callable[[Result], str]] = {
    "machine": machine,
    "ratios": ratios,
    "times": times,
    "peak": peak,
    "memory": memory,
}
OF_TESTS: dict[str, Callable[[Result], str]] = {"tests": outcomes}
OF_SIZES: dict[str, Callable[[Result], str]] = {"sizes": sizes}
OF_SWEEPS: dict[str, Callable[[Result], str]] = {"machine": machine, "lines": lines}
OF_COMMITS: dict[str, Callable[[Result], str]] = {"against": against}


def tables(result: Result) -> dict[str, Callable[[Result], str]]:
    """The tables that can be made from a result, by name."""
    kinds = {"cases": OF_CASES, "sweep": OF_SWEEPS, "tests": OF_TESTS, "sizes": OF_SIZES, "against": OF_COMMITS}
    return kinds[result["kind"]]


def render(result: Result) -> str:
    """All tables of a result."""
    return "\n\n".join(make(result) for make in tables(result).values()) + "\n"


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    return table(columns, rows) if rows else "*Not measured.*"


def _case(case: Mapping[str, Any]) -> list[Any]:
    grouped = case["job"] in ("rollouts", "update")
    return [case["job"], case["num_generations"] if grouped else ""]
