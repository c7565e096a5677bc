"""GRPO with your own reward: 1 for the right number, 0.2 for an adjacent number, -0.1 for no number.

    make demo && python examples/own_reward.py            # from the demo's Coconut, on the demo's problems
    python examples/own_reward.py --checkpoint CHECKPOINT --problems problems.json --steps 300

The command line takes the same function by its path:
    dropout-grpo grpo --checkpoint CHECKPOINT --data.grpo problems.json --data.valid valid.json \\
        --reward_funcs '[examples/own_reward.py:near_miss]'
"""

import argparse
from collections.abc import Sequence
from typing import Any

from dropout_grpo import GRPOConfig, GRPOTrainer, LatentModel, RunFolder, extract_answer, load_problems


def near_miss(
    prompts: Sequence[str], completions: Sequence[str], answer: Sequence[str], **columns: Any
) -> list[float | None]:
    """One reward per completion. Name the columns that you need; each has one entry per completion."""
    rewards: list[float | None] = []
    for completion, gold in zip(completions, answer, strict=True):
        said = extract_answer(completion)  # the text after ###, or None
        if not gold.isdecimal():
            rewards.append(None)  # not judged: another reward function has to judge this problem
        elif said is None or not said.isdecimal():
            rewards.append(-0.1)
        else:
            rewards.append({0: 1.0, 1: 0.2}.get(abs(int(said) - int(gold)), 0.0))
    return rewards


def main(argv: Sequence[str] | None = None) -> None:
    """Post-train a checkpoint and print some of its answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="runs/demo-seed0/checkpoints/coconut")
    parser.add_argument("--problems", default="runs/demo-seed0/data/grpo.json", help="answers are enough")
    parser.add_argument("--out", default="runs/own-reward")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=64, help="questions per step")
    options = parser.parse_args(argv)

    model = LatentModel.from_pretrained(options.checkpoint)
    problems = load_problems(options.problems, require_steps=False)
    config = GRPOConfig(max_steps=options.steps, prompts_per_step=options.prompts, num_generations=8)
    run = RunFolder(options.out, "own_reward", config)  # its metrics.jsonl has rewards/near_miss/mean
    GRPOTrainer(model, near_miss, config, problems, run=run).train()
    model.save_pretrained(run.checkpoint("own_reward"))

    for problem, said in zip(problems[:4], model.answer([p.question for p in problems[:4]], 8), strict=True):
        print(f"{problem.question}  {said.strip()}  (right: {problem.answer})")


if __name__ == "__main__":
    main()
