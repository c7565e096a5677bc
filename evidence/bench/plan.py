"""``python -m evidence.bench.plan``: the memory that a training's plan says, and what a fresh process really takes.

The peak is Linux's VmHWM after two updates, the validation of the curriculum and its checkpoint included.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any, get_args

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.training.loop import Trainer
from dropout_grpo.training.machine import keep_freed_memory
from dropout_grpo.training.plan import GB
from evidence.bench.config import BenchConfig, Size, resolve
from evidence.bench.memory import peak_resident
from evidence.bench.workload import EXPLORATION, Networks, problems_of

PARTS = ("sft", "grpo")


def measured(size: Size, part: str) -> dict[str, Any]:
    """The plan and the peak of a short training in this process, in bytes."""
    keep_freed_memory()  # as in every command
    setting = resolve(BenchConfig(size=size, device="cpu"), 8)
    networks = Networks(setting)
    model = networks.latent(setting.latent_steps)
    problems = problems_of(setting, networks.words, setting.problems)
    with TemporaryDirectory() as folder:
        trainer: Trainer
        if part == "sft":
            options = CurriculumConfig(
                c_thought=1,
                max_latent_stage=setting.latent_steps,
                cot_epochs=0,
                epochs_per_stage=0,
                final_epochs=2,
                batch_size=setting.problems,
            )
            trainer = CurriculumTrainer(model, options, problems, folder, problems, bf16=setting.bf16)
        else:
            of_groups = GRPOConfig(
                max_steps=2,
                prompts_per_step=setting.questions,
                num_generations=setting.num_generations,
                max_completion_length=setting.answer_tokens,
                learning_rate=1e-6,
                beta=0.01,
                save_steps=0,
            )
            trainer = GRPOTrainer(
                model, _alternating, of_groups, problems, exploration=EXPLORATION, run=folder, bf16=setting.bf16
            )
        plan = trainer.dry_run()
        trainer.train()
    return {"size": size, "part": part, "plan": plan.total, "parts": plan.parts, "peak": peak_resident()}


def _alternating(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
    return [float(i % 2) for i in range(len(completions))]


def main() -> None:
    """Prints one line for each size and part, and with ``--json`` all numbers."""
    parser = argparse.ArgumentParser(prog="python -m evidence.bench.plan", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["gpt2", "smollm2", "qwen-0.5b"], choices=get_args(Size))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--part", choices=PARTS, help="measure the one size in this process")
    options = parser.parse_args()
    if options.part is not None:
        print(json.dumps(measured(options.sizes[0], options.part)))
        return
    rows = []
    for size in options.sizes:
        for part in PARTS:
            command = [sys.executable, "-m", "evidence.bench.plan", "--sizes", size, "--part", part]
            row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            rows.append(row)
            ratio = row["plan"] / row["peak"]
            print(
                f"{size:<10} {part:<5} plan {row['plan'] / GB:6.2f} GB, peak {row['peak'] / GB:6.2f} GB: {ratio:.2f}",
                file=sys.stderr,
            )
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
