"""The curves of metrics.jsonl: the curriculum, then reinforcement learning with its arms side by side."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from dropout_grpo.report.blocks import Chart, Section
from dropout_grpo.report.charts import Curve, curves_charts
from dropout_grpo.report.names import in_order, label
from dropout_grpo.report.series import CURRICULUM, Series, arms, complement, series, stage_starts
from dropout_grpo.runs.files import CONFIG_FILE
from dropout_grpo.runs.read import Run, mapping, number

PASS_AT_1 = "eval/pass@1"
_REWARD = re.compile(r"rewards/(.+)/mean")


def curriculum_section(run: Run) -> Section:
    """Validation pass@1, loss and gradient norm through the curriculum, its stages marked."""
    marks = stage_starts(run.metrics)

    def noisy(key: str, name: str) -> list[Curve]:
        return [Curve(label=name, series=series(run.metrics, CURRICULUM, key), noisy=True)]

    accuracy = [Curve(label="pass@1", series=series(run.metrics, CURRICULUM, PASS_AT_1), n=validation_size(run))]
    held_out = f"On held-out problems, answered greedily.{bands(accuracy)}"
    loss, norm = noisy("loss", "loss"), noisy("grad_norm", "gradient norm")
    charts = [
        curves_charts("Validation pass@1", held_out, accuracy, ylabel="pass@1", percent=True, marks=marks),
        curves_charts(
            "Training loss", "Nats a token; the line is a running mean.", loss, ylabel="loss", log=True, marks=marks
        ),
        curves_charts(
            "Gradient norm",
            "Before clipping; the line is a running mean.",
            norm,
            ylabel="gradient norm",
            log=True,
            marks=marks,
        ),
    ]
    return Section(
        heading="The curriculum",
        lead="Each stage replaces one more step of the written chain of thought by latent steps. Dotted lines mark "
        "where a stage starts.",
        charts=list(chain(*charts)),
    )


_OF_EVERY_ARM: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    # title, caption, metric, options of the chart
    (
        "Mixed groups",
        "Share of questions whose rollouts are not all right or all wrong: only these teach.",
        "frac_reward_zero_std",
        {"ylabel": "mixed groups", "percent": True, "from_zero": True},
    ),
    (
        "Entropy",
        "Of the sampled answer tokens, in nats.",
        "entropy",
        {"ylabel": "entropy", "from_zero": True},
    ),
    (
        "Replay difference",
        "Largest gap between a rollout's log-probability and its replay with the same seed. In the shaded range it is "
        "rounding; far above, a mask was not replayed.",
        "replay/logprob_diff_max",
        {"ylabel": "max |difference|, nats", "from_zero": True, "log": True},
    ),
    ("KL to the reference", "Estimate per token.", "kl", {"ylabel": "KL, nats"}),
    (
        "Gradient norm",
        "Before clipping; 0 if no group is mixed.",
        "grad_norm",
        {"ylabel": "gradient norm", "from_zero": True},
    ),
    (
        "Length of the answers",
        "Mean number of tokens of the rollouts.",
        "completions/mean_length",
        {"ylabel": "tokens", "from_zero": True},
    ),
)


def grpo_section(run: Run) -> Section:
    """Validation pass@1, mixed groups, entropy, replay, KL, gradient, lengths and rewards of every arm."""
    names = in_order(arms(run.metrics))
    charts = _accuracy(run, names)
    rewards = [
        (f"Reward: {reward}", "Mean over the sampled rollouts, before weights.", key, {"ylabel": "reward"})
        for key, reward in _rewards(run)
    ]
    for title, caption, key, options in (*_OF_EVERY_ARM, *rewards):
        change = _CHANGES.get(key, lambda curve: curve)
        curves = [
            Curve(label=label(name), series=change(series(run.metrics, name, key)), arm=i, noisy=True)
            for i, name in enumerate(names)
        ]
        healthy = _healthy_replay(run) if key == "replay/logprob_diff_max" else None
        charts += curves_charts(title, caption, curves, healthy=healthy, **options)
    return Section(
        heading="Reinforcement learning",
        lead="GRPO on questions with answers, without steps. Lines are running means of the faint values behind them.",
        charts=charts,
    )


def _accuracy(run: Run, names: Sequence[str]) -> list[Chart]:
    """Validation pass@1 with dots, the rollouts' reward thin; the reward alone if nothing was validated."""
    n = validation_size(run)
    accuracy = [
        Curve(label=label(name), series=series(run.metrics, name, PASS_AT_1), arm=i, n=n)
        for i, name in enumerate(names)
    ]
    validated = any(curve.series for curve in accuracy)
    reward = [
        Curve(label=label(name), series=series(run.metrics, name, "reward"), arm=i, noisy=True, faint=validated)
        for i, name in enumerate(names)
    ]
    if not validated:
        return curves_charts("Reward", "Mean over the sampled rollouts.", reward, ylabel="reward")
    dots = f"Dots: the plain network on held-out problems.{bands(accuracy)}"
    if any(not 0 <= value <= 1 for curve in reward for value in curve.series.values):  # not on an axis of shares
        alone = [replace(curve, faint=False) for curve in reward]
        return [
            *curves_charts("Validation pass@1", dots, accuracy, ylabel="pass@1", percent=True),
            *curves_charts("Reward", "Mean over the sampled rollouts.", alone, ylabel="reward"),
        ]
    thin = " Thin lines: mean reward of the rollouts." if any(curve.series for curve in reward) else ""
    return curves_charts("Validation pass@1", dots + thin, [*accuracy, *reward], ylabel="pass@1", percent=True)


def _if_measured(curve: Series) -> Series:
    """Nothing for a KL that is 0 throughout, as without a reference."""
    return curve if any(curve.values) else Series([], [])


_CHANGES: dict[str, Callable[[Series], Series]] = {"frac_reward_zero_std": complement, "kl": _if_measured}


def _rewards(run: Run) -> list[tuple[str, str]]:
    """(metric, name) of each reward function, if there are several: one alone is the reward that is drawn anyway."""
    keys = dict.fromkeys(key for record in run.metrics for key in record)
    rewards = [(key, match[1]) for key in keys if (match := _REWARD.fullmatch(key))]
    return rewards if len(rewards) > 1 else []


def _healthy_replay(run: Run) -> tuple[float, str] | None:
    """The upper end of the healthy range of docs/metrics.md for the precision of the run."""
    config = mapping(run.provenance, "config", CONFIG_FILE)
    bf16 = config.get("bf16")
    if not isinstance(bf16, bool):
        return None
    reduced = bf16 or config.get("param_dtype") == "bfloat16"
    return (0.1, "healthy in bf16: below 0.1") if reduced else (1e-4, "healthy in float32: below 0.0001")


def validation_size(run: Run) -> int | None:
    """The number of validation problems in training, for intervals. None if they come from a file."""
    data = mapping(mapping(run.provenance, "config", CONFIG_FILE), "data", CONFIG_FILE)
    task = data.get("task")
    if data.get("valid") is not None or not isinstance(task, str):
        return None
    sizes = (number(data, "max_valid", CONFIG_FILE), number(mapping(data, task, CONFIG_FILE), "n_valid", CONFIG_FILE))
    known = [int(size) for size in sizes if size]
    return min(known) if len(known) == 2 else None


def bands(curves: Sequence[Curve]) -> str:
    """What the bands are, if any curve has one: the number of problems of a file is not recorded."""
    return " Bands are 95 % intervals." if any(curve.series and curve.n for curve in curves) else ""
