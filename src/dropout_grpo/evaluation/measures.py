"""Measures of answers with 95 % intervals, a summary of these, and the answers themselves."""

from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from dropout_grpo.data.answers import answers_match
from dropout_grpo.evaluation.answering import ModelAnswers
from dropout_grpo.evaluation.statistics import majorities, mean_interval, pass_at_k_curves

_SINGLE = ("coverage", "bma")
_FIGURES = (
    "completions/mean_length",
    "completions/clipped_ratio",
    "masked_completions/mean_length",
    "seconds",
    "problems_per_second",
)


def measure_answers(answered: Sequence[ModelAnswers]) -> dict[str, Any]:
    """All measures of one file. Shares are ``{"value": fraction, "ci95": [lo, hi]}``.

    ``n`` problems; ``pass@1`` of the plain network; ``completions/mean_length`` of its answers in tokens, EOS among
    them, and ``completions/clipped_ratio``, the share that ``max_new_tokens`` cut off. With ``num_samples`` above 0
    also ``pass@k`` and ``maj@k``, lists with an entry for each k up to it (``maj@k`` is the vote of the first k
    samples; one without a readable answer never votes), ``coverage`` (pass@k at the largest k),
    ``masked_completions/mean_length``, and with masks ``bma``, the Bayesian model average.
    """
    n = len(answered[0].samples)
    measures: dict[str, Any] = {
        "n": len(answered),
        "num_samples": n,
        "pass@1": _share([a.plain_correct for a in answered]),
        "completions/mean_length": _mean([a.plain_length for a in answered]),
        "completions/clipped_ratio": _mean([a.plain_clipped for a in answered]),
    }
    if n == 0:
        return measures
    corrects = [sum(a.samples_correct()) for a in answered]
    measures["pass@k"] = _curve(pass_at_k_curves(n, corrects))
    measures["maj@k"] = _curve([_majorities_correct(a) for a in answered])
    measures["coverage"] = _share([c > 0 for c in corrects])
    if answered[0].average is not None:
        measures["bma"] = _share([bool(a.average_correct) for a in answered])
    measures["masked_completions/mean_length"] = _mean([length for a in answered for length in a.sample_lengths])
    return measures


def summary(measures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures to quote, flat: pass@1 of the plain network with ``ci95``, and under masks ``masked_pass@1``,
    ``pass@k`` for k = 2, 4, 8, ... n, ``maj@n``, ``coverage``, ``bma``; then lengths and times as they are."""
    row = {"n": measures["n"], "pass@1": measures["pass@1"]["value"], "ci95": measures["pass@1"]["ci95"]}
    if n := measures["num_samples"]:
        row["masked_pass@1"] = measures["pass@k"][0]["value"]
        row |= {f"pass@{k}": measures["pass@k"][k - 1]["value"] for k in powers_of_two(n) if k > 1}
        row[f"maj@{n}"] = measures["maj@k"][-1]["value"]
    row |= {name: measures[name]["value"] for name in _SINGLE if name in measures}
    return row | {name: measures[name] for name in _FIGURES if name in measures}


def summarize(answered: Sequence[ModelAnswers]) -> dict[str, Any]:
    """The summary of what is measured on some answers."""
    return summary(measure_answers(answered))


def in_a_line(row: Mapping[str, Any]) -> str:
    """The summary of one file in a line, shares in percent.

    Args:
        row: ``summary`` with ``file``.
    """
    lo, hi = row["ci95"]
    names = [name for name in row if name.startswith(("pass", "masked_pass", "maj", "bma"))]
    shares = [f"{name} {100 * row[name]:.1f} %" for name in names]
    shares[0] += f" [{100 * lo:.1f}, {100 * hi:.1f}]"
    cut = row["completions/clipped_ratio"]
    took = f", {row['seconds']:.1f} s" if "seconds" in row else ""
    clipped = f", {100 * cut:.1f} % of the answers cut off at max_new_tokens" if cut else ""
    return f"{row['file']}: {', '.join(shares)}; n {row['n']}{took}{clipped}"


def sample(file: str, answered: ModelAnswers) -> dict[str, Any]:
    """A line of samples.jsonl: ``file``, ``id``, the problem and the answers; lists have an entry for each sample."""
    problem = answered.problem
    return {
        "file": file,
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "steps": len(problem.steps),
        "plain": answered.plain,
        "plain_correct": answered.plain_correct,
        "plain_length": answered.plain_length,
        "samples": list(answered.samples),
        "samples_correct": answered.samples_correct(),
        "samples_length": list(answered.sample_lengths),
        "average": answered.average,
        "average_correct": answered.average_correct,
    }


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4, ... and n itself."""
    return [k for k in range(1, n + 1) if k & (k - 1) == 0 or k == n]


def _share(values: Sequence[float]) -> dict[str, Any]:
    return {"value": _mean(values), "ci95": list(mean_interval(values))}


def _curve(by_problem: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    return [{"k": k, **_share(values)} for k, values in enumerate(zip(*by_problem, strict=True), start=1)]


def _majorities_correct(answered: ModelAnswers) -> list[bool]:
    """Whether the vote of the first k samples is right, for k = 1 ... n."""
    winners = majorities(answered.votes())
    gold, tolerance = answered.problem.answer, answered.tolerance
    right = {winner: answers_match(winner, gold, tolerance) for winner in set(winners)}
    return [right[winner] for winner in winners]


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)
