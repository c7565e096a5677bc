"""GRPO with your own exploration: activations are scaled by factors between 1 - width and 1 + width.

    make demo && python examples/own_exploration.py        # from the demo's Coconut, on the demo's problems
    python examples/own_exploration.py --checkpoint CHECKPOINT --problems problems.json --steps 300

The command line takes the same class by its path:
    dropout-grpo grpo --checkpoint CHECKPOINT --data.grpo problems.json --data.valid valid.json \\
        --exploration.kind examples/own_exploration.py:Uniform --exploration.options '{"width": 0.3}'
"""

import argparse
from collections.abc import Sequence

from torch import Tensor

from dropout_grpo import GRPOConfig, GRPOTrainer, LatentModel, RunFolder, exact_answer, load_problems
from dropout_grpo.exploration import HeldNoise, SiteMap
from dropout_grpo.exploration.seeds import uniform


class Uniform:
    """Factors with mean 1, held over a rollout. They depend only on its seed, so the update can replay them."""

    def __init__(self, width: float, sites: Sequence[str] = ("residual",), phases: Sequence[str] = ("latent",)) -> None:
        self.width, self.sites, self.phases = width, sites, frozenset(phases)

    def noise(self, seeds: Tensor, sites: SiteMap) -> HeldNoise:
        """The noise of the rollouts with these seeds, int64 [B]."""
        return HeldNoise(seeds, sites, self._draw, sites=self.sites, phases=self.phases)

    def _draw(self, seeds: Tensor, streams: Tensor) -> Tensor:
        """Factors [B, F] of seeds [B] and the counters [F] of the sites' features."""
        return 1 + self.width * (2 * uniform(seeds, streams) - 1)


def main(argv: Sequence[str] | None = None) -> None:
    """Post-train a checkpoint; the metrics have the share of groups with both right and wrong answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="runs/demo-seed0/checkpoints/coconut")
    parser.add_argument("--problems", default="runs/demo-seed0/data/grpo.json", help="answers are enough")
    parser.add_argument("--out", default="runs/own-exploration")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=64, help="questions per step")
    options = parser.parse_args(argv)

    model = LatentModel.from_pretrained(options.checkpoint)
    problems = load_problems(options.problems, require_steps=False)
    config = GRPOConfig(max_steps=options.steps, prompts_per_step=options.prompts, num_generations=8)
    run = RunFolder(options.out, "own_exploration", config)
    GRPOTrainer(model, exact_answer, config, problems, exploration=Uniform(0.3), run=run).train()
    model.save_pretrained(run.checkpoint("own_exploration"))
    print(f"metrics of every step: {run.path / 'metrics.jsonl'}")


if __name__ == "__main__":
    main()
