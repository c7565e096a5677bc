"""Compares explorations from one checkpoint on validation problems.

    python -m evidence.studies.sweep --checkpoint runs/demo-seed0/checkpoints/coconut

Every arm gets the same questions, seeds and number of rollouts; only the exploration differs. An arm that has finished
does not run again, so two processes can share the arms (`--arms`) and a third call collects them. Writes
docs/results/sweep.json, from which a section of docs/RESULTS.md is made.
"""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from dropout_grpo.commands.shared.context import Context
from dropout_grpo.commands.shared.models import load_model
from dropout_grpo.commands.shared.problems import problems_of
from dropout_grpo.commands.shared.training import train_grpo
from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.distributed.device import default_device
from dropout_grpo.exploration.build import ExplorationConfig, build_exploration
from dropout_grpo.runs.files import write_json
from dropout_grpo.runs.provenance import provenance
from evidence.places import RESULTS_FOLDER

LATENT, LATENT_ANSWER = ("latent",), ("latent", "answer")
EXPLORATIONS = {
    "temperature only": ExplorationConfig(kind="none"),
    "residual p=0.05, latent": ExplorationConfig(p=0.05, phases=LATENT),
    "residual p=0.1, latent": ExplorationConfig(p=0.1, phases=LATENT),
    "residual p=0.2, latent": ExplorationConfig(p=0.2, phases=LATENT),
    "residual p=0.05, latent + answer": ExplorationConfig(p=0.05, phases=LATENT_ANSWER),
    "residual p=0.1, latent + answer": ExplorationConfig(p=0.1, phases=LATENT_ANSWER),
    "residual p=0.2, latent + answer": ExplorationConfig(p=0.2, phases=LATENT_ANSWER),
    "attention p=0.2, latent + answer": ExplorationConfig(p=0.2, sites=("attention",), phases=LATENT_ANSWER),
    "mlp p=0.2, latent + answer": ExplorationConfig(p=0.2, sites=("mlp",), phases=LATENT_ANSWER),
    "mlp_hidden p=0.2, latent + answer": ExplorationConfig(p=0.2, sites=("mlp_hidden",), phases=LATENT_ANSWER),
    "heads p=0.1, latent + answer": ExplorationConfig(p=0.1, sites=("heads",), phases=LATENT_ANSWER),
    "thought p=0.2, latent": ExplorationConfig(p=0.2, sites=("thought",), phases=LATENT),
    "per-step residual p=0.1, latent + answer": ExplorationConfig(kind="per_step_dropout", p=0.1, phases=LATENT_ANSWER),
}


def main() -> None:
    """Runs the arms one after the other and records their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--recipe", default="word-problems")
    parser.add_argument("--out", type=Path, default=RESULTS_FOLDER / "sweep.json", help="JSON file to write")
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"), help="run folders of the arms")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="*", choices=list(EXPLORATIONS), default=list(EXPLORATIONS))
    options = parser.parse_args()

    recipe = load_recipe(options.recipe)
    grpo = replace(recipe.grpo, max_steps=options.steps, eval_steps=options.steps // 3)
    recipe = replace(recipe, seed=options.seed, grpo=grpo, data=replace(recipe.data, max_valid=1000))
    problems = problems_of(recipe.data, ("grpo", "valid"))
    rows = []
    for name in options.arms:
        folder = options.runs / name.replace(" ", "_")
        if not (folder / "checkpoints" / "grpo").is_dir():
            arm = replace(recipe, exploration=EXPLORATIONS[name], run_dir=str(folder))
            context = Context.start("sweep", arm, build_exploration(EXPLORATIONS[name]), device=default_device())
            model = load_model(options.checkpoint, device=context.device)
            train_grpo(context, model, problems["grpo"], problems["valid"], "grpo")
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        curve = {r["step"]: r["eval/pass@1"] for r in records if "eval/pass@1" in r}
        mixed = [1 - r["frac_reward_zero_std"] for r in records]
        rows.append(
            {
                "arm": name,
                "exploration": asdict(EXPLORATIONS[name]),
                "eval/pass@1": curve,
                "final": curve[max(curve)],
                "mixed_first_10": sum(mixed[:10]) / 10,
                "mixed_last_10": sum(mixed[-10:]) / 10,
                "reward_last_10": sum(r["reward"] for r in records[-10:]) / 10,
                "seconds": round(sum(r["step_time"] for r in records), 1),
            }
        )
        print(json.dumps(rows[-1]), file=sys.stderr)
    n_valid = min(recipe.data.max_valid, len(problems["valid"]))
    command = "python -m evidence.studies.sweep " + " ".join(sys.argv[1:])
    write_json(options.out, {"command": command, "n_valid": n_valid, "arms": rows, **provenance()})


if __name__ == "__main__":
    main()
