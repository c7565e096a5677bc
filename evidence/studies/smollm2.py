"""GSM8K with a real pre-trained model: Coconut, GRPO arms from it, and the test files, which are read at the end.

python -m evidence.studies.smollm2 --data FOLDER      (make gsm8k DATA=FOLDER)

The folder has gsm8k_train.jsonl and gsm8k_test.jsonl as published, and may have gsm8k_aug_valid.json,
mawps_asdiva_train.coconut.json and further test files (svamp*, multiarith*, asdiv*; .json or .jsonl).

Rounds run one after the other; the commands of a round share the cores, and one that is alone gets two processes:

1. the weights, checked; the problem files (smollm2_weights.py, smollm2_data.py)
2. the curriculum
3. GRPO from its checkpoint: held masks with sampled answers, held masks with greedy answers, temperature alone, and
   greedy answers without masks, which cannot learn anything and runs only a few steps to show it
4. evaluation on the test files: Coconut, the GRPO arms, and the chain of thought of the curriculum's stage 0

All commands are commands of the command line, and continue after an interruption: a command with results does not run
again, and one that was stopped resumes from its last checkpoint. Writes docs/results/gsm8k-smollm2.json. docs/gsm8k.md
has the planned hours.
"""

import argparse
import json
import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dropout_grpo.commands.compare import compare
from dropout_grpo.runs.files import write_json
from dropout_grpo.runs.read import read_measures, read_metrics, read_results
from evidence.places import RESULTS_FOLDER
from evidence.studies.side_by_side import finished, run_side_by_side
from evidence.studies.smollm2_data import test_files, write_files
from evidence.studies.smollm2_tables import FILE
from evidence.studies.smollm2_weights import prepare_weights

_RECIPE = "--recipe gsm8k-smollm2 --resume true"
_SFT = (
    f"dropout-grpo sft {_RECIPE} --model.name_or_path {{out}}-model --data.train {{out}}-data/train.json "
    "--data.valid {out}-data/valid.json"
)
_GRPO = (
    f"dropout-grpo grpo {_RECIPE} --checkpoint {{out}}-sft/checkpoints/coconut --data.grpo {{out}}-data/grpo.json "
    "--data.valid {out}-data/valid.json"
)
_EVAL = f"dropout-grpo eval {_RECIPE} --files {{tests}}"

ARMS = {
    "masks-sampled": "",
    "temperature": "--exploration.kind none",
    "masks-greedy": "--grpo.answers greedy",
    "deterministic": "--exploration.kind none --grpo.answers greedy --grpo.max_steps 5",
}
ARM_ROUNDS = (("masks-sampled", "temperature"), ("masks-greedy",), ("deterministic",))
"""Two arms share two cores; a single one uses both."""

EVALUATED = {"coconut": "sft/checkpoints/coconut", **{arm: f"{arm}/checkpoints/grpo" for arm in list(ARMS)[:3]}}
WORDS = "--latent_steps 0 --evaluation.num_samples 0 --evaluation.max_new_tokens 80"
"""Chain of thought: no thoughts, and room for more steps than the problems of the curriculum have."""

CURVES = ("sft", *ARMS)
PAIRS = (
    ("coconut", "masks-sampled"),
    ("coconut", "masks-greedy"),
    ("coconut", "temperature"),
    ("temperature", "masks-sampled"),
    ("temperature", "masks-greedy"),
)


def curriculum(out: str) -> dict[str, list[str]]:
    """The command line of the curriculum, as words, by its name."""
    return {"sft": _words(f"{_SFT} --run_dir {{out}}-sft", out=out)}


def arms(out: str) -> dict[str, list[str]]:
    """The command lines of the GRPO arms."""
    return {name: _words(f"{_GRPO} {options} --run_dir {{out}}-{name}", out=out) for name, options in ARMS.items()}


def evaluations(out: str, tests: Sequence[str]) -> dict[str, list[str]]:
    """The command lines of the evaluations."""
    files = f"[{','.join(tests)}]"
    lines = {
        f"eval-{name}": f"{_EVAL} --checkpoint {{out}}-{checkpoint} --run_dir {{out}}-eval-{name}"
        for name, checkpoint in EVALUATED.items()
    }
    words = f"{_EVAL} --checkpoint {{out}}-sft/checkpoints/sft-stage-0 {WORDS} --run_dir {{out}}-eval-words"
    return {name: _words(line, out=out, tests=files) for name, line in {**lines, "eval-words": words}.items()}


def _words(line: str, **paths: str) -> list[str]:
    return [word.format(**paths) for word in line.split()]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all commands that have no results yet, then records all results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with GSM8K's files")
    parser.add_argument("--out", default="runs/gsm8k", help="prefix of the names of the run folders")
    options = parser.parse_args(argv)
    out, data = options.out, Path(f"{options.out}-data")
    prepare_weights(Path(f"{out}-model"))
    write_files(options.data, data)
    lines = _run(curriculum(out), out)
    for names in ARM_ROUNDS:
        lines |= _run({name: arms(out)[name] for name in names}, out)
    tests = test_files(options.data, data)
    for name, words in evaluations(out, [str(file) for file in tests]).items():
        lines |= _run({name: words}, out)
    text = json.dumps({"commands": lines, "cores": os.cpu_count(), **measured(out)})
    for file in tests:
        if file.parent == options.data:  # a place on the user's disk
            text = text.replace(str(file), f"DATA/{file.name}")
    write_json(RESULTS_FOLDER / FILE, json.loads(text))
    print(RESULTS_FOLDER / FILE)


def _run(commands: dict[str, list[str]], out: str) -> dict[str, str]:
    """Runs the commands without results and adds the time to that of earlier runs; returns all command lines."""
    # two processes of one thread wait for each other once per update, two threads at every operation
    commands = launched(commands, several=not torch.cuda.is_available() and (os.cpu_count() or 1) > 1)
    missing = {name: words for name, words in commands.items() if not finished(out, name)}
    start = time.monotonic()
    try:
        if missing:
            run_side_by_side(missing, out)
    finally:  # an interrupted round counts too
        spent = _spent(out)
        spent["+".join(commands)] = spent.get("+".join(commands), 0.0) + time.monotonic() - start
        write_json(_clock(out), spent)
    return {name: shlex.join(words) for name, words in commands.items()}


def launched(commands: dict[str, list[str]], *, several: bool) -> dict[str, list[str]]:
    """A round's commands; a single one is launched as two processes if ``several``."""
    if len(commands) > 1 or not several:
        return commands
    launcher = ["torchrun", "--nproc_per_node", "2", "-m", "dropout_grpo"]
    return {name: [*launcher, *words[1:]] for name, words in commands.items()}


def _clock(out: str) -> Path:
    return Path(f"{out}-hours.json")


def _spent(out: str) -> dict[str, float]:
    """Seconds of each round so far, by the names of its commands."""
    return _json(_clock(out)) if _clock(out).is_file() else {}


def measured(out: str) -> dict[str, Any]:
    """Reads the run folders: curves of pass@1, measures, and comparisons on the same problems."""
    record: dict[str, Any] = {
        "problems": {file.stem: len(_json(file)) for file in sorted(Path(f"{out}-data").glob("*.json"))},
        "seconds": _spent(out),
        "runs": {},
        "curves": {},
        "evaluations": {},
        "pairs": {},
    }
    for name in CURVES:
        record["runs"][name] = dict(read_results(Path(f"{out}-{name}")))
        steps = read_metrics(Path(f"{out}-{name}"))
        keys = ("step", "stage", "eval/pass@1")
        record["curves"][name] = [{k: line[k] for k in keys if k in line} for line in steps if keys[-1] in line]
        mixed = [1 - line["frac_reward_zero_std"] for line in steps if "frac_reward_zero_std" in line]
        if mixed:
            record["runs"][name]["mixed_groups"] = [sum(part) / len(part) for part in (mixed[:10], mixed[-10:])]
    for name in (*EVALUATED, "words"):
        record["evaluations"][name] = read_measures(Path(f"{out}-eval-{name}"))["evaluations"]
    for a, b in PAIRS:
        pairs = compare(f"{out}-eval-{a}", f"{out}-eval-{b}")["comparisons"]
        record["pairs"][f"{a} {b}"] = [{k: v for k, v in p.items() if k not in ("won", "lost")} for p in pairs]
    return record


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
