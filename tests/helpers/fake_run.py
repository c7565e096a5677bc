"""A small run folder written by hand, with the files of a demo and as few records as possible."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]

CONFIG: Record = {
    "command": "demo",
    "config": {"seed": 0, "rl": {"beta": 0.0, "sites": ["residual"], "resume": None}},
    "versions": {"torch": "2.13.0"},
    "commit": "0123abc",
}
RESULTS: Record = {
    "seed": 7,
    "n_test": 2000,
    "baseline": {"pass@1": 0.403, "ci95": [0.382, 0.4247], "pass@8": 0.6, "maj@8": 0.42, "bma": 0.41},
    "temperature_only": {"pass@1": 0.612, "ci95": [0.5904, 0.6331]},
    "dropout_grpo": {"pass@1": 0.616, "ci95": [0.5945, 0.6371], "pass@8": 0.75, "maj@8": 0.63, "bma": 0.62},
    "collapse": {"frac_reward_zero_std": 1.0, "grad_norm": 0.0},
    "seconds": {"data": 1.0, "sft": 200.1, "total": 201.1},
    "comparison": {"wins": 523, "losses": 97, "mcnemar_p": 1e-70},
}
SFT = [
    {"part": "sft", "step": 10, "stage": 0, "loss": 1.5, "learning_rate": 1e-3, "seconds": 1.0},
    {"part": "sft", "step": 20, "stage": 1, "loss": 0.25, "learning_rate": 1e-3, "seconds": 2.0},
    {"part": "sft", "step": 20, "stage": 1, "eval/pass@1": 0.41},
]


def rl(part: str, step: int, equal: float, **more: float) -> Record:
    return {
        "part": part,
        "step": step,
        "reward": 0.5,
        "frac_reward_zero_std": equal,
        "entropy": 0.3,
        "replay/logprob_diff_max": 1e-6,
        **more,
    }


RL = [
    rl("temperature_only", 0, 0.75, **{"eval/pass@1": 0.4}),
    rl("temperature_only", 1, 0.8),
    rl("dropout_grpo", 0, 0.5, **{"eval/pass@1": 0.402}),
    rl("dropout_grpo", 1, 0.625, **{"eval/pass@1": 0.61}),
]
FLIP: Record = {
    "question": "Ann has 7 apples & eats 3.",
    "answer": "4",
    "direction": "gained",
    "before": {"plain": "11", "votes": {"4": 2, "11": 5, "(unparsable)": 1}},
    "after": {"plain": "4", "votes": {"4": 8}},
}


def by_k(*values: float, half: float = 0.02) -> list[Record]:
    """A curve of measures.json: an entry for each k from 1, with its interval."""
    return [{"k": k, "value": v, "ci95": [v - half, v + half]} for k, v in enumerate(values, start=1)]


def make_run(folder: Path, **files: Any) -> Path:
    """A run folder with these parts: objects config, results, measures; lists metrics, flips, samples, thoughts."""
    folder.mkdir(exist_ok=True)
    for name, file in (("config", "config.json"), ("results", "results.json"), ("measures", "measures.json")):
        if name in files:
            (folder / file).write_text(json.dumps(files[name]))
    for name in ("metrics", "flips", "samples", "thoughts"):
        if name in files:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in files[name]))
    return folder
