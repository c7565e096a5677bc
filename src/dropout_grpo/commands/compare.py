"""``dropout-grpo compare``: two evaluations of the same problems, problem by problem."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from dropout_grpo.commands.shared.options import add_json
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.statistics import compare as compare_pairs
from dropout_grpo.runs.read import JsonObject, read_samples

HELP = "compare two eval runs on the same problems: wins, losses, exact McNemar test, difference"

_SHOWN = 10  # wins and losses of each file that the text lists; --json has all


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("run_a", type=str, help="run folder of an eval")
    parser.add_argument("run_b", type=str, help="run folder of another eval on the same files")
    add_json(parser)


def run(options: Namespace) -> None:
    comparison = compare(options.run_a, options.run_b)
    print(json.dumps(comparison) if options.json else as_text(comparison))


def compare(run_a: str, run_b: str) -> dict[str, Any]:
    """Compare the plain networks of two eval runs file by file, B against A.

    Returns:
        ``a`` and ``b``, the folders, and ``comparisons``, one object per file: ``n``, ``pass@1`` of both,
        ``difference`` (B minus A) with ``ci95`` (Newcombe's paired interval), the exact McNemar test's ``mcnemar_p``,
        ``wins`` and ``losses`` as counts, and ``won`` and ``lost``, the problems themselves with both answers.

    Raises:
        UserError: a folder is not an eval run, or the problems differ.
    """
    a, b = read_samples(Path(run_a)), read_samples(Path(run_b))
    _check_same_problems(run_a, a, run_b, b)
    pairs = list(zip(a, b, strict=True))
    files = groupby(pairs, key=lambda pair: pair[0]["file"])
    return {"a": run_a, "b": run_b, "comparisons": [_comparison(file, list(lines)) for file, lines in files]}


def _comparison(file: str, pairs: Sequence[tuple[JsonObject, JsonObject]]) -> dict[str, Any]:
    right_a, right_b = [a["plain_correct"] for a, _ in pairs], [b["plain_correct"] for _, b in pairs]
    won = [_both(a, b) for a, b in pairs if b["plain_correct"] and not a["plain_correct"]]
    lost = [_both(a, b) for a, b in pairs if a["plain_correct"] and not b["plain_correct"]]
    shares = {"a": sum(right_a) / len(pairs), "b": sum(right_b) / len(pairs)}
    return {
        "file": file,
        "n": len(pairs),
        "pass@1": shares,
        **compare_pairs(right_a, right_b),
        "won": won,
        "lost": lost,
    }


def _both(a: JsonObject, b: JsonObject) -> dict[str, Any]:
    problem = {name: a[name] for name in ("id", "question", "answer")}
    return {**problem, "a": a["plain"].strip(), "b": b["plain"].strip()}


def _check_same_problems(run_a: str, a: Sequence[JsonObject], run_b: str, b: Sequence[JsonObject]) -> None:
    remedy = "Measure both on the same --files, in the same order."
    if len(a) != len(b):
        raise UserError(f"{run_a} has {len(a)} problems and {run_b} has {len(b)}. {remedy}")
    if not a:
        raise UserError(f"{run_a} and {run_b} hold no problems.")
    for number, (one, other) in enumerate(zip(a, b, strict=True), start=1):
        for name in ("question", "answer"):
            if one[name] != other[name]:
                raise UserError(
                    f"{run_a} and {run_b} were measured on different problems: the {name} of number {number} is "
                    f"{one[name]!r} in one and {other[name]!r} in the other. {remedy}"
                )


def as_text(comparison: dict[str, Any]) -> str:
    """The comparison as text."""
    lines = [f"A  {comparison['a']}", f"B  {comparison['b']}"]
    for c in comparison["comparisons"]:
        (lo, hi), shares = c["ci95"], c["pass@1"]
        lines += [
            "",
            f"{c['file']}  (n = {c['n']})",
            f"  pass@1      A {100 * shares['a']:.1f} %, B {100 * shares['b']:.1f} %",
            f"  B - A       {100 * c['difference']:+.1f} points, 95 % interval [{100 * lo:+.1f}, {100 * hi:+.1f}] "
            "(Newcombe, paired)",
            f"  only B is right on {c['wins']}, only A on {c['losses']}; exact McNemar test p = {c['mcnemar_p']:.2g}",
            *_listed("won: B right, A wrong", c["won"]),
            *_listed("lost: A right, B wrong", c["lost"]),
        ]
    return "\n".join(lines)


def _listed(title: str, problems: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"  {title}"] if problems else []
    for p in problems[:_SHOWN]:
        lines += [
            f"    {p['id']}  {' '.join(p['question'].split())}",
            f"        right answer {p['answer']}  A: {p['a'] or '(nothing)'}  B: {p['b'] or '(nothing)'}",
        ]
    if len(problems) > _SHOWN:
        lines.append(f"    and {len(problems) - _SHOWN} more: --json lists all")
    return lines
