"""The curves of metrics.jsonl: the curriculum, then reinforcement learning with its arms side by side."""

import re
from collections.abc import Callable, Sequence

from dropout_grpo.report import markup
from dropout_grpo.report.names import in_order, label
from dropout_grpo.report.plots import Curve, curves_figure
from dropout_grpo.report.series import CURRICULUM, Series, arms, complement, series, stage_starts
from dropout_grpo.report.svg import inline_svg
from dropout_grpo.runs.files import CONFIG_FILE
from dropout_grpo.runs.read import Run, mapping, number

PASS_AT_1 = "eval/pass@1"
_REWARD = re.compile(r"rewards/(.+)/mean")


def curriculum_section(run: Run) -> str:
    """Validation pass@1 and loss through the curriculum, its stages marked."""
    marks = stage_starts(run.metrics)
    n = validation_size(run)
    accuracy = Curve(label="pass@1", series=series(run.metrics, CURRICULUM, PASS_AT_1), n=n)
    loss = Curve(label="loss", series=series(run.metrics, CURRICULUM, "loss"), noisy=True)
    plots = [
        _plot(
            "Validation pass@1",
            "On held-out problems, answered greedily." + _bands([accuracy]),
            [accuracy],
            name="sft-accuracy",
            ylabel="pass@1",
            percent=True,
            marks=marks,
        ),
        _plot(
            "Training loss",
            "Nats a token; the line is a running mean.",
            [loss],
            name="sft-loss",
            ylabel="loss",
            log=True,
            marks=marks,
        ),
        _plot(
            "Gradient norm",
            "Before clipping; the line is a running mean.",
            [Curve(label="gradient norm", series=series(run.metrics, CURRICULUM, "grad_norm"), noisy=True)],
            name="sft-norm",
            ylabel="gradient norm",
            log=True,
            marks=marks,
        ),
    ]
    return _section(
        "The curriculum",
        "Each stage replaces one more step of the written chain of thought by latent steps. "
        "Dotted lines mark where a stage starts.",
        plots,
    )


def grpo_section(run: Run) -> str:
    """Validation pass@1, mixed groups, entropy, replay, KL, gradient, lengths and rewards of every arm."""
    names = in_order(arms(run.metrics))

    def curves(key: str, change: Callable[[Series], Series] = lambda curve: curve) -> list[Curve]:
        return [
            Curve(label=label(name), series=change(series(run.metrics, name, key)), arm=i, noisy=True)
            for i, name in enumerate(names)
        ]

    plots = [
        _accuracy_plot(run, names),
        _plot(
            "Mixed groups",
            "Share of questions whose rollouts are not all right or all wrong: only these teach.",
            curves("frac_reward_zero_std", complement),
            name="grpo-mixed",
            ylabel="mixed groups",
            percent=True,
            from_zero=True,
        ),
        _plot(
            "Entropy",
            "Of the sampled answer tokens, in nats.",
            curves("entropy"),
            name="grpo-entropy",
            ylabel="entropy",
            from_zero=True,
        ),
        _plot(
            "Replay difference",
            "Largest gap between a rollout's log-probability and its replay with the same seed. In the shaded range it "
            "is rounding; far above, a mask was not replayed.",
            curves("replay/logprob_diff_max"),
            name="grpo-replay",
            ylabel="max |difference|, nats",
            from_zero=True,
            log=True,
            healthy=_healthy_replay(run),
        ),
        _plot(
            "KL to the reference",
            "Estimate per token.",
            curves("kl", _if_measured),
            name="grpo-kl",
            ylabel="KL, nats",
        ),
        _plot(
            "Gradient norm",
            "Before clipping; 0 if no group is mixed.",
            curves("grad_norm"),
            name="grpo-norm",
            ylabel="gradient norm",
            from_zero=True,
        ),
        _plot(
            "Length of the answers",
            "Mean number of tokens of the rollouts.",
            curves("completions/mean_length"),
            name="grpo-length",
            ylabel="tokens",
            from_zero=True,
        ),
        *(
            _plot(
                f"Reward: {reward}",
                "Mean over the sampled rollouts, before weights.",
                curves(key),
                name=f"grpo-reward-{i}",
                ylabel="reward",
            )
            for i, (key, reward) in enumerate(_rewards(run))
        ),
    ]
    return _section(
        "Reinforcement learning",
        "GRPO on questions with answers, without steps. Lines are running means of the faint values behind them.",
        plots,
    )


def _if_measured(curve: Series) -> Series:
    """Nothing for a KL that is 0 throughout, as without a reference."""
    return curve if any(curve.values) else Series([], [])


def _rewards(run: Run) -> list[tuple[str, str]]:
    """(metric, name) of each reward function, if there are several: one alone is the reward that is drawn anyway."""
    keys = dict.fromkeys(key for record in run.metrics for key in record)
    found = [(key, key.removeprefix("rewards/").removesuffix("/mean")) for key in keys if _REWARD.fullmatch(key)]
    return found if len(found) > 1 else []


def _healthy_replay(run: Run) -> tuple[float, str] | None:
    """The upper end of the healthy range of docs/metrics.md for the precision of the run."""
    bf16 = mapping(run.provenance, "config", CONFIG_FILE).get("bf16")
    if not isinstance(bf16, bool):
        return None
    return (0.1, "healthy in bf16: below 0.1") if bf16 else (1e-4, "healthy in float32: below 0.0001")


def validation_size(run: Run) -> int | None:
    """The number of validation problems in training, for intervals. None if they come from a file."""
    data = mapping(mapping(run.provenance, "config", CONFIG_FILE), "data", CONFIG_FILE)
    task = data.get("task")
    if data.get("valid") is not None or not isinstance(task, str):
        return None
    sizes = (number(data, "max_valid", CONFIG_FILE), number(mapping(data, task, CONFIG_FILE), "n_valid", CONFIG_FILE))
    known = [int(size) for size in sizes if size]
    return min(known) if len(known) == 2 else None


def _accuracy_plot(run: Run, names: Sequence[str]) -> str:
    """Validation pass@1 with dots, the rollouts' reward thin; the reward alone if nothing was validated."""
    accuracy = [
        Curve(label=label(name), series=series(run.metrics, name, PASS_AT_1), arm=i, n=validation_size(run))
        for i, name in enumerate(names)
    ]
    validated = any(curve.series for curve in accuracy)
    reward = [
        Curve(
            label=label(name),
            series=series(run.metrics, name, "reward"),
            arm=i,
            noisy=True,
            faint=validated,
        )
        for i, name in enumerate(names)
    ]
    if not validated:
        return _plot("Reward", "Mean over the sampled rollouts.", reward, name="grpo-reward", ylabel="reward")
    thin = " Thin lines: mean reward of the rollouts." if any(curve.series for curve in reward) else ""
    return _plot(
        "Validation pass@1",
        f"Dots: the plain network on held-out problems.{_bands(accuracy)}{thin}",
        [*accuracy, *reward],
        name="grpo-accuracy",
        ylabel="pass@1",
        percent=True,
    )


def _bands(curves: Sequence[Curve]) -> str:
    """What the bands are, if any curve has one: the number of problems of a file is not recorded."""
    return " Bands are 95 % intervals." if any(curve.series and curve.n for curve in curves) else ""


def _plot(
    title: str,
    caption: str,
    curves: Sequence[Curve],
    *,
    name: str,
    ylabel: str,
    percent: bool = False,
    from_zero: bool = False,
    log: bool = False,
    marks: Sequence[tuple[int, int]] = (),
    healthy: tuple[float, str] | None = None,
) -> str:
    """A figure of the curves that have values; empty if none has."""
    present = [curve for curve in curves if curve.series]
    if not present:
        return ""
    drawing = curves_figure(
        present, ylabel=ylabel, percent=percent, from_zero=from_zero, log=log, marks=marks, healthy=healthy
    )
    show: Callable[[float], str] = markup.percent if percent else "{:.3g}".format
    described = "; ".join(_described(curve, show) for curve in present if not curve.faint)
    return markup.figure(title, caption, inline_svg(drawing, label=f"{title} by step. {described}", name=name))


def _described(curve: Curve, show: Callable[[float], str]) -> str:
    """The curve in words, for those who do not see it: where it starts and where it ends."""
    steps, values = curve.series.steps, curve.series.values
    return f"{curve.label}: {show(values[0])} at step {steps[0]}, {show(values[-1])} at step {steps[-1]}"


def _section(heading: str, lead: str, plots: Sequence[str]) -> str:
    drawn = "".join(plots)
    if not drawn:
        return ""
    return markup.section(heading, f"<p>{markup.text(lead)}</p>", f'<div class="figures">{drawn}</div>')
