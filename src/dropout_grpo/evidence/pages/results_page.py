"""Copy the demo's results into docs/results and write docs/RESULTS.md from them.

python -m dropout_grpo.evidence.pages.results_page runs/demo-seed0 runs/demo-seed1 runs/demo-seed2

Without run folders the page is made again from what is in docs/results.
"""

import json
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import prosqa_page

DOCS = Path(__file__).parents[4] / "docs"
KEYS = ("pass@1", "pass@8", "maj@8", "bma")


def main() -> None:
    """Write the page."""
    folder = DOCS / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for run in map(Path, sys.argv[1:]):
        seed = json.loads((run / "results.json").read_text(encoding="utf-8"))["seed"]
        shutil.copy(run / "results.json", folder / f"demo-seed{seed}.json")
    results = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("demo-seed*.json")]
    results.sort(key=lambda r: r["seed"])
    intro = (DOCS / "results" / "intro.md").read_text(encoding="utf-8")
    parts = [intro.rstrip(), *table(results), *spread(results), *seconds(results), *sweep(), *gsm8k(folder)]
    if (folder / "prosqa.json").is_file():
        parts += prosqa_page.section(folder)
    (DOCS / "RESULTS.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def percent(value: float) -> str:
    """One decimal."""
    return f"{100 * value:.1f}"


def row(seed: int, name: str, r: dict[str, Any]) -> str:
    """A line of the main table."""
    low, high = r["ci95"]
    others = " | ".join(percent(r[key]) if key in r else "" for key in KEYS[1:])
    return f"| {seed} | {name} | {percent(r['pass@1'])} | {percent(low)} to {percent(high)} | {others} |"


def table(results: list[dict[str, Any]]) -> list[str]:
    """All arms on all seeds, and the collapse."""
    lines = [
        "| seed | arm | pass@1 | 95 % interval | pass@8 | maj@8 | model average |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results:
        lines.append(row(r["seed"], "Coconut baseline", r["baseline"]))
        lines.append(row(r["seed"], "Dropout-GRPO", r["dropout_grpo"]))
        lines.append(row(r["seed"], "temperature only", r["temperature_only"]))
    lines += [
        "",
        "| seed | test problems | gain, points | wins | losses | McNemar p | collapse: zero-std groups, grad norm |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for r in results:
        c, none = r["comparison"], r["collapse"]
        gain = percent(r["dropout_grpo"]["pass@1"] - r["baseline"]["pass@1"])
        lines.append(
            f"| {r['seed']} | {r['n_test']} | {gain} | {c['wins']} | {c['losses']} | {c['mcnemar_p']:.1g} "
            f"| {none['frac_reward_zero_std']}, {none['grad_norm']} |"
        )
    return ["\n".join(lines)]


def spread(results: list[dict[str, Any]]) -> list[str]:
    """Means and standard deviations over seeds."""
    lines = ["| arm | pass@1, mean over seeds | standard deviation |", "|---|---|---|"]
    arms = (
        ("Coconut baseline", "baseline"),
        ("Dropout-GRPO", "dropout_grpo"),
        ("temperature only", "temperature_only"),
    )
    for name, key in arms:
        values = [r[key]["pass@1"] for r in results]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        lines.append(f"| {name} | {percent(statistics.mean(values))} | {percent(deviation)} |")
    return ["## Over seeds", "\n".join(lines)]


def seconds(results: list[dict[str, Any]]) -> list[str]:
    """Where the time goes."""
    names = list(results[0]["seconds"])
    lines = ["| seed | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {r['seed']} | " + " | ".join(f"{r['seconds'][n]:.0f}" for n in names) + " |" for r in results]
    return ["## Seconds", "\n".join(lines)]


def sweep() -> list[str]:
    """The table that evidence/studies/sweep.py wrote; nothing before there is one."""
    if not (DOCS / "sweep.md").is_file():
        return []
    text = (DOCS / "sweep.md").read_text(encoding="utf-8").rstrip()
    command = json.loads((DOCS / "sweep.json").read_text(encoding="utf-8"))
    note = f"`{command['command']}`, {command['n_valid']} validation problems; the data are in `docs/sweep.json`."
    return ["## The sweep that chose p, sites and phases", note, text]


def gsm8k(folder: Path) -> list[str]:
    """The run that evidence/studies/gsm8k_small.py recorded."""
    r = json.loads((folder / "gsm8k-small.json").read_text(encoding="utf-8"))
    lines = [
        "| file | n | pass@1, percent | 95 % interval | pass@4 | maj@4 | model average |",
        "|---|---|---|---|---|---|---|",
    ]
    for e in r["metrics"]["evaluations"]:
        low, high = e["pass@1"]["ci95"]
        others = (e["pass@k"][-1]["value"], e["maj@k"][-1]["value"], e["bma"]["value"])
        shares = " | ".join(map(percent, others))
        interval = f"{percent(low)} to {percent(high)}"
        lines.append(f"| {e['file']} | {e['n']} | {percent(e['pass@1']['value'])} | {interval} | {shares} |")
    losses = ", ".join(f"{u['loss']:.2f}" for u in r["last_updates"])
    cpu = ", ".join(f"{name} {seconds:.0f}" for name, seconds in r["cpu_seconds"].items())
    commands = "\n".join(f"$ {line}" for line in r["commands"].values())
    versions = ", ".join(f"{name} {version}" for name, version in r["eval"]["versions"].items())
    after, before = r["grpo"]["evaluations"][0], r["sft"]["evaluations"][0]
    notes = (
        f"Loss of the last update in each stage: {losses}. pass@1 after the curriculum {percent(before['pass@1'])} %, "
        f"after GRPO, in which {percent(r['mixed_groups'])} % of the groups were mixed, {percent(after['pass@1'])} % "
        f"(of {before['n']}). Seconds of CPU: {cpu}. {versions}; commit {r['eval']['commit']}."
    )
    intro = (folder / "gsm8k-small.md").read_text(encoding="utf-8").rstrip()
    return [intro, "\n".join(lines), notes, f"```console\n{commands}\n```"]


if __name__ == "__main__":
    main()
