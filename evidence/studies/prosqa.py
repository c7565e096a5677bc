"""ProsQA from scratch: a Coconut, its control without thoughts, and GRPO from a weaker Coconut with and without masks.

python -m evidence.studies.prosqa prosqa_valid.json

The commands are those of a user; each runs in its own process. The commands of a round run side by side, one per core,
and a round starts when the one before has finished. A command that has results already does not run again. Writes
docs/results/prosqa.json, from which a section of docs/RESULTS.md is made. Takes about 45 minutes on 2 CPU cores.
"""

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dropout_grpo.commands.compare import compare
from dropout_grpo.runs.read import read_measures, read_metrics, read_results
from evidence.places import RESULTS_FOLDER
from evidence.studies.side_by_side import finished, run_side_by_side

_SFT = "dropout-grpo sft --recipe prosqa --data.valid {valid}"
_THOUGHTS = f"{_SFT} --model.name_or_path {{out}}-words/checkpoints/coconut --curriculum.cot_epochs 0"
_GRPO = "dropout-grpo grpo --recipe prosqa --data.valid {valid} --checkpoint {out}-weaker/checkpoints/coconut"
_EVAL = "dropout-grpo eval --recipe prosqa --files [{valid},{out}-data/test.json]"
_EVALUATED = {"sft": "coconut", "pause": "coconut", "weaker": "coconut", "masks": "grpo", "temperature": "grpo"}
ROUNDS = (
    {
        "data": "dropout-grpo data --task prosqa --prosqa.n_train 0 --prosqa.n_grpo 0 --prosqa.n_valid 0 "
        "--prosqa.n_test 2000 --out {out}-data",
    },
    {"words": f"{_SFT} --curriculum.final_epochs 0 --run_dir {{out}}-words"},
    {
        "sft": f"{_THOUGHTS} --run_dir {{out}}-sft",
        "pause": f"{_THOUGHTS} --curriculum.thought pause --run_dir {{out}}-pause",
    },
    {"weaker": f"{_THOUGHTS} --curriculum.final_epochs 1 --run_dir {{out}}-weaker"},
    {
        "masks": f"{_GRPO} --run_dir {{out}}-masks",
        "temperature": f"{_GRPO} --exploration.kind none --run_dir {{out}}-temperature",
    },
    {
        f"eval-{name}": f"{_EVAL} --checkpoint {{out}}-{name}/checkpoints/{kind} --run_dir {{out}}-eval-{name}"
        for name, kind in _EVALUATED.items()
    },
)
CURVES = ("words", "sft", "pause", "weaker", "masks", "temperature")
PAIRS = (("pause", "sft"), ("weaker", "masks"), ("weaker", "temperature"), ("temperature", "masks"))


def rounds(valid: str, out: str) -> list[dict[str, list[str]]]:
    """The command lines of each round by name, as words; the first is the program."""
    paths = {"valid": valid, "out": out}
    return [{name: [w.format(**paths) for w in line.split()] for name, line in each.items()} for each in ROUNDS]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the commands that have no results yet, then records all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("valid", help="prosqa_valid.json as published")
    parser.add_argument("--out", default="runs/prosqa")
    options = parser.parse_args(argv)
    out = options.out
    lines: dict[str, str] = {}
    for each in rounds(options.valid, options.out):
        lines |= {name: shlex.join(words) for name, words in each.items()}
        run_side_by_side({name: words for name, words in each.items() if not finished(out, name)}, out)
    target = RESULTS_FOLDER / "prosqa.json"
    record = {"commands": lines, **measured(out)}
    target.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(target)


def measured(out: str) -> dict[str, Any]:
    """Reads the run folders: settings, curves of pass@1, measures, and comparisons on the same problems."""
    record: dict[str, Any] = {"runs": {}, "curves": {}, "evaluations": {}, "pairs": {}}
    for name in CURVES:
        record["runs"][name] = dict(read_results(Path(f"{out}-{name}")))
        steps = read_metrics(Path(f"{out}-{name}"))
        keys = ("step", "stage", "eval/pass@1")
        record["curves"][name] = [{k: line[k] for k in keys if k in line} for line in steps if keys[-1] in line]
        mixed = [1 - line["frac_reward_zero_std"] for line in steps if "frac_reward_zero_std" in line]
        if mixed:
            record["runs"][name]["mixed_groups"] = [sum(part) / len(part) for part in (mixed[:10], mixed[-10:])]
    for name in _EVALUATED:
        record["evaluations"][name] = read_measures(Path(f"{out}-eval-{name}"))["evaluations"]
    for a, b in PAIRS:
        pairs = compare(f"{out}-eval-{a}", f"{out}-eval-{b}")["comparisons"]
        record["pairs"][f"{a} {b}"] = [{k: v for k, v in p.items() if k not in ("won", "lost")} for p in pairs]
    return record


if __name__ == "__main__":
    main()
