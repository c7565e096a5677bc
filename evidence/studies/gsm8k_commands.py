"""Runs published GSM8K through curriculum, GRPO and evaluation with a small random GPT-2. A warning is an error.

python -m evidence.studies.gsm8k_commands gsm8k_train.jsonl gsm8k_aug_valid.json

The commands are those of a user; each runs in its own process. The study fails if a library warns. Otherwise it writes
docs/results/gsm8k-small.json, from which a section of docs/RESULTS.md is made.
"""

import argparse
import json
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dropout_grpo.runs.read import read_measures, read_metrics, read_results
from evidence.places import RESULTS_FOLDER

WARNING = re.compile(r"warn|deprecat|will be removed", re.IGNORECASE)

COMMANDS = {
    "base": "python examples/small_gpt2.py {train} --out {out}/base",
    "sft": "dropout-grpo sft --model.name_or_path {out}/base --data.train {train} --data.valid {valid} "
    "--data.max_valid 200 --curriculum.c_thought 1 --curriculum.max_latent_stage 2 --curriculum.cot_epochs 1 "
    "--curriculum.epochs_per_stage 1 --curriculum.final_epochs 1 --curriculum.batch_size 64 "
    "--curriculum.learning_rate 0.002 --evaluation.max_new_tokens 12 --run_dir {out}/sft",
    "grpo": "dropout-grpo grpo --checkpoint {out}/sft/checkpoints/coconut --data.grpo {train} --data.valid {valid} "
    "--data.max_valid 200 --grpo.max_steps 30 --grpo.prompts_per_step 32 --grpo.num_generations 8 "
    "--grpo.max_completion_length 12 --grpo.learning_rate 0.0003 --grpo.beta 0.02 --evaluation.max_new_tokens 12 "
    "--run_dir {out}/grpo",
    "eval": "dropout-grpo eval --checkpoint {out}/grpo/checkpoints/grpo --files [{valid},{train}] "
    "--evaluation.num_samples 4 --evaluation.max_new_tokens 12 --run_dir {out}/eval",
}


def commands(train: str, valid: str, out: str) -> dict[str, list[str]]:
    """The words of each command line; the first is the program."""
    paths = {"train": train, "valid": valid, "out": out}
    return {name: [word.format(**paths) for word in line.split()] for name, line in COMMANDS.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the commands one after the other and records their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="gsm8k_train.jsonl as published")
    parser.add_argument("valid", help="another file of problems")
    parser.add_argument("--out", default="runs/gsm8k-small")
    options = parser.parse_args(argv)
    record: dict[str, Any] = {"commands": {}, "seconds": {}, "cpu_seconds": {}}
    for name, words in commands(options.train, options.valid, options.out).items():
        record["commands"][name] = line = shlex.join(words)
        print(f"$ {line}", flush=True)
        start, cpu = time.monotonic(), _cpu()
        program = words[1:] if words[0] == "python" else ["-m", "dropout_grpo.cli.main", *words[1:]]
        strict = [sys.executable, "-W", "error", *program]
        done = subprocess.run(strict, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        print(done.stdout, end="", flush=True)
        if done.returncode:
            sys.exit(f"{name} failed with status {done.returncode}")
        if warned := WARNING.search(done.stdout):
            sys.exit(f"{name} warns: {warned[0]}")
        record["seconds"][name], record["cpu_seconds"][name] = time.monotonic() - start, _cpu() - cpu
    record |= measured(Path(options.out))
    target = RESULTS_FOLDER / "gsm8k-small.json"
    target.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(target)


def measured(out: Path) -> dict[str, Any]:
    """Reads the run folders: results, the last update of each stage, the share of mixed groups, all measures."""
    record: dict[str, Any] = {name: read_results(out / name) for name in ("sft", "grpo", "eval")}
    updates = [line for line in read_metrics(out / "sft") if "loss" in line]
    steps = read_metrics(out / "grpo")
    record["last_updates"] = list({line["stage"]: line for line in updates}.values())
    record["mixed_groups"] = sum(1 - line["frac_reward_zero_std"] for line in steps) / len(steps)
    return {**record, "metrics": read_measures(out / "eval")}


def _cpu() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
