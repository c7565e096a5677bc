"""CPU seconds of rollouts and update with each exploration, in turn, compared with masks on ``residual``.

    python -m evidence.studies.noise_cost
    python -m evidence.studies.noise_cost --questions 16 --repeats 9

The model has the demo's size and random weights, and every answer has its full length. With noise in the prompt phase,
each rollout reads its own prompt.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch

from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.exploration.build import build_exploration
from dropout_grpo.latent.rollout import replay, roll_out
from evidence.bench.config import BenchConfig, resolve
from evidence.bench.workload import Networks, Workload

_BOTH = ("prompt", "latent")
CASES = {
    "none": ExplorationConfig(kind="none"),
    "residual": ExplorationConfig(),
    "values": ExplorationConfig(sites=("values",)),
    "attention_weights": ExplorationConfig(sites=("attention_weights",)),
    "gaussian, residual": ExplorationConfig(kind="gaussian"),
    "svp": ExplorationConfig(kind="evidence.rivals.svp:SVP"),
    "weight_noise": ExplorationConfig(kind="weight_noise"),
    "residual, prompt and latent": ExplorationConfig(phases=_BOTH),
    "svp, prompt and latent": ExplorationConfig(kind="evidence.rivals.svp:SVP", phases=_BOTH),
    "weight_noise, prompt and latent": ExplorationConfig(kind="weight_noise", phases=_BOTH),
}
"""The explorations by name; they are on in the latent phase only, unless the name says otherwise."""


def seconds(work: Workload, exploration: Exploration) -> tuple[float, float]:
    """CPU seconds of the rollouts of all questions, and of replaying them with gradient."""
    model, prompts, length = work.model, work.prompts, work.setting.answer_tokens
    start = time.process_time()
    with torch.no_grad():
        made = roll_out(model, prompts, work.seeds, exploration, temperature=1.0, max_completion_length=length)
    middle = time.process_time()
    replay(model, prompts, work.seeds, made.token_ids, exploration, temperature=1.0).sum().backward()
    model.zero_grad(set_to_none=True)
    return middle - start, time.process_time() - middle


def measure(questions: int, num_generations: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Median CPU seconds of rollouts and update for every case, after one run that is not counted."""
    config = BenchConfig(size="tiny", questions=questions, device="cpu")
    work = Workload(resolve(config, num_generations), Networks(resolve(config, num_generations)))
    built = {name: build_exploration(case) for name, case in CASES.items()}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(repeats + 1):
        for name, exploration in built.items():
            runs[name].append(seconds(work, exploration))
    counted = {name: list(zip(*found[1:], strict=True)) for name, found in runs.items()}
    return {name: (median(rollouts), median(updates)) for name, (rollouts, updates) in counted.items()}


def table(measured: dict[str, tuple[float, float]]) -> str:
    """Markdown."""
    base = sum(measured["residual"])
    lines = ["| exploration | rollouts, CPU s | update, CPU s | both, of residual's |", "| --- | ---: | ---: | ---: |"]
    for name, (rollouts, update) in measured.items():
        lines.append(f"| {name} | {rollouts:.3f} | {update:.3f} | {(rollouts + update) / base:.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--num_generations", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(table(measure(options.questions, options.num_generations, options.repeats)))


if __name__ == "__main__":
    main()
