"""Published GSM8K through every command, as a user types it, with a small GPT-2: no library may warn."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evidence.places import ROOT

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

PROGRAM = """
import json, runpy, sys
from dropout_grpo.cli.main import main
for program, *words in json.loads(sys.stdin.read()):
    print("$", *words, file=sys.stderr)
    if program == "python":
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
    elif status := main(words):
        sys.exit(status)
"""
SMALL = {
    "base": ["--width", "16", "--positions", "128"],
    "sft": ["--curriculum.batch_size", "4"],
    "grpo": ["--grpo.max_steps", "2", "--grpo.prompts_per_step", "2", "--grpo.num_generations", "2"],
    "eval": ["--evaluation.num_samples", "2"],
}


def published(count: int) -> str:
    """Problems in GSM8K's form: one answer has a comma, the last solution has no calculator mark."""
    lines = []
    for i in range(2, 2 + count):
        marked = f"They cost {i}*270 = $<<{i}*270={270 * i}>>{270 * i}.\nHalf is <<{270 * i}/2={135 * i}>>{135 * i}."
        solution = marked if i < 1 + count else "One sees it at once."
        question = f"Ann has {i} boxes, each worth $270. What is half of that?"
        lines.append(json.dumps({"question": question, "answer": f"{solution}\n#### {135 * i:,}"}))
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_no_library_complains(tmp_path: Path) -> None:
    """In one process, in which a warning is an error; loggers, which do not use Python's warnings, write to stderr."""
    train, valid, out = tmp_path / "train.jsonl", tmp_path / "valid.txt", tmp_path / "out"
    train.write_text(published(9), encoding="utf-8")
    valid.write_text("Ann has 2 pens and buys 3.||<<2+3=5>> #### 5\n", encoding="utf-8")
    places = {"train": train, "valid": valid, "out": out}
    lines = [[*(w.format(**places) for w in line.split()), *SMALL[name]] for name, line in COMMANDS.items()]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        input=json.dumps(lines),
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert WARNING.search(done.stdout + done.stderr) is None, done.stderr
    told = [line for line in done.stderr.splitlines() if line]
    unknown = [line for line in told if not line.startswith((*KNOWN, str(tmp_path)))]
    assert not unknown, "\n".join(unknown)

    updates = [json.loads(line) for line in (out / "sft/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [u["stage"] for u in updates if "loss" in u] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]  # 9 problems, 4 a batch
    measured = json.loads((out / "eval/measures.json").read_text(encoding="utf-8"))["evaluations"]
    assert [(e["file"], e["n"]) for e in measured] == [(str(valid), 1), (str(train), 9)]
    golds = [json.loads(line)["answer"] for line in (out / "eval/samples.jsonl").read_text("utf-8").splitlines()]
    assert golds == ["5", *(str(135 * i) for i in range(2, 11))]


KNOWN = (
    "$ ",
    "device: ",
    "memory: ",
    "masks: ",
    "samples ",
    "Writing model shards",
    "sft ",
    "validation ",
    "grpo ",
    "pass@1 ",
    "report: ",
    "model: ",
    "valid.txt ",
    "train",
)
"""Beginnings of the lines that are ours, and of the bar of an example's ``save_pretrained``."""
