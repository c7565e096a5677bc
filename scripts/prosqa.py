"""ProsQA from nothing: a Coconut, its control without thoughts, and GRPO from an earlier stage, with masks and without.

OMP_NUM_THREADS=1 python scripts/prosqa.py prosqa_valid.json

The commands are those of a user, each a process of its own, those of one round side by side. A command whose results
are there already is not run again. Writes docs/results/prosqa.json, of which scripts/results_page.py makes a section
of docs/RESULTS.md and its figure. Some 80 minutes on 2 CPU cores.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dropout_grpo.cli.compare import compare

ROOT = Path(__file__).parents[1]
WEAKER = "sft-stage-4"

_SFT = "dropout-grpo sft --recipe prosqa --data.valid {valid}"
_GRPO = f"dropout-grpo grpo --recipe prosqa --data.valid {{valid}} --checkpoint {{out}}/checkpoints/{WEAKER}"
_EVAL = "dropout-grpo eval --recipe prosqa --files [{valid},{out}-data/test.json]"
_EVALUATED = {
    "sft": "/checkpoints/coconut",
    "pause": "-pause/checkpoints/coconut",
    "weaker": f"/checkpoints/{WEAKER}",
    "masks": "-masks/checkpoints/grpo",
    "temperature": "-temperature/checkpoints/grpo",
}
ROUNDS = (
    {
        "data": "dropout-grpo data --task prosqa --prosqa.n_train 0 --prosqa.n_grpo 0 --prosqa.n_valid 0 "
        "--prosqa.n_test 2000 --out {out}-data",
        "words": f"{_SFT} --run_dir {{out}}-words --data.prosqa.steps levels --curriculum.learning_rate 0.003 "
        "--curriculum.lr_scheduler_type linear --curriculum.cot_epochs 5 --curriculum.epochs_per_stage 0 "
        "--curriculum.final_epochs 0",
    },
    {
        name: f"{_SFT} --model.name_or_path {{out}}-words/checkpoints/coconut --run_dir {{out}}{more}"
        for name, more in (("sft", ""), ("pause", "-pause --curriculum.thought pause"))
    },
    {
        "masks": f"{_GRPO} --run_dir {{out}}-masks",
        "temperature": f"{_GRPO} --exploration.kind none --run_dir {{out}}-temperature",
    },
    {
        f"eval-{name}": f"{_EVAL} --checkpoint {{out}}{checkpoint} --run_dir {{out}}-eval-{name}"
        for name, checkpoint in _EVALUATED.items()
    },
)
CURVES = ("words", "sft", "pause", "masks", "temperature")
PAIRS = (("pause", "sft"), ("weaker", "masks"), ("weaker", "temperature"), ("temperature", "masks"))


def rounds(valid: str, out: str) -> list[dict[str, list[str]]]:
    """The words of each command line, the program's first, by name and round."""
    paths = {"valid": valid, "out": out}
    return [{name: [w.format(**paths) for w in line.split()] for name, line in each.items()} for each in ROUNDS]


def main(argv: Sequence[str] | None = None) -> None:
    """Run what has not been run, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("valid", help="prosqa_valid.json as published")
    parser.add_argument("--out", default="runs/prosqa")
    options = parser.parse_args(argv)
    out = options.out
    lines: dict[str, str] = {}
    for each in rounds(options.valid, options.out):
        lines |= {name: shlex.join(words) for name, words in each.items()}
        _side_by_side({name: words for name, words in each.items() if not finished(out, name)}, out)
    target = ROOT / "docs" / "results" / "prosqa.json"
    record = {"commands": lines, **measured(out)}
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(target)


def _folder(out: str, name: str) -> Path:
    return Path(out if name == "sft" else f"{out}-{name}")


def finished(out: str, name: str) -> bool:
    """Whether the run folder of a command has its results."""
    return any((_folder(out, name) / file).is_file() for file in ("results.json", "test.json"))


def _side_by_side(commands: dict[str, list[str]], out: str) -> None:
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    running = {}
    for name, words in commands.items():
        print(f"$ {shlex.join(words)}", flush=True)
        with Path(f"{out}-{name}.log").open("w", encoding="utf-8") as log:
            program = [sys.executable, "-m", "dropout_grpo.cli.main", *words[1:]]
            running[name] = subprocess.Popen(program, stdout=log, stderr=subprocess.STDOUT)
    failed = [name for name, process in running.items() if process.wait()]
    if failed:
        sys.exit(f"{', '.join(failed)} failed: see {out}-{failed[0]}.log")


def measured(out: str) -> dict[str, Any]:
    """What the run folders say: settings, curves of pass@1, measures, and pairs on the same problems."""
    record: dict[str, Any] = {"runs": {}, "curves": {}, "evaluations": {}, "pairs": {}}
    for name in CURVES:
        record["runs"][name] = _json(_folder(out, name) / "results.json")
        steps = _lines(_folder(out, name) / "metrics.jsonl")
        keys = ("step", "stage", "eval/pass@1")
        record["curves"][name] = [{k: line[k] for k in keys if k in line} for line in steps if keys[-1] in line]
        mixed = [1 - line["frac_reward_zero_std"] for line in steps if "frac_reward_zero_std" in line]
        if mixed:
            record["runs"][name]["mixed_groups"] = [sum(part) / len(part) for part in (mixed[:10], mixed[-10:])]
    for name in _EVALUATED:
        record["evaluations"][name] = _json(_folder(out, f"eval-{name}") / "metrics.json")["evaluations"]
    for a, b in PAIRS:
        pairs = compare(f"{out}-eval-{a}", f"{out}-eval-{b}")["comparisons"]
        record["pairs"][f"{a} {b}"] = [{k: v for k, v in p.items() if k not in ("won", "lost")} for p in pairs]
    return record


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
