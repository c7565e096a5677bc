"""Prints the tables of docs/scaling.md: ``PYTHONPATH=tests python -m helpers.world_size_table``.

The first has the largest difference of any weight but key biases, after a training with 2 and 4 processes, from the
same training with one; the second the memory that weights, gradients and optimiser state take in each process.
"""

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from dropout_grpo.distributed.sharding import as_shards, start_together
from dropout_grpo.latent.io.scratch import scratch_model
from dropout_grpo.latent.tokens import add_latent_tokens
from dropout_grpo.training.optimizer import build_optimizer, build_schedule, update
from helpers.several import in_processes
from helpers.tiny import tiny_tokenizer
from helpers.tiny_latent import tiny_latent
from helpers.world_size import train, train_all

KEY_BIAS = "c_attn.bias"
"""Left out in the comparison: a key bias has a gradient of 0 up to rounding, which AdamW scales to full steps."""

KINDS: dict[str, dict[str, Any]] = {
    "float64": {},
    "float32": {"dtype": "float32"},
    "bf16 products": {"dtype": "float32", "bf16": True},
    "LoRA, float32": {"dtype": "float32", "lora": True},
    "Muon, float64": {"optimizer": "muon"},
}


def _weights(run: Path) -> dict[str, torch.Tensor]:
    last = max((run / "checkpoints").glob("*-step-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return {
        name: tensor.double() for file in last.glob("*model.safetensors") for name, tensor in load_file(file).items()
    }


def _difference(one: Path, other: Path) -> float:
    a, b = _weights(one), _weights(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a if KEY_BIAS not in name)


def differences(folder: Path) -> None:
    """Prints the first table."""
    base = folder / "base"
    tiny_latent(std=0.2).save_pretrained(base)
    cases = {}
    for kind, options in KINDS.items():
        for part in ("sft", "grpo"):
            if kind.startswith("Muon") and part == "grpo":
                continue
            case = {"part": part, **options}
            if case.pop("lora", False):
                case["lora"] = str(base)
            cases[f"{part}, {kind}"] = case
    for name, case in cases.items():
        train(folder / "1" / name, case)
    for count in (2, 4):
        for fsdp in (False, True):
            place = folder / f"{count} {fsdp}"
            some = {n: {**c, "fsdp": fsdp} for n, c in cases.items() if not (fsdp and "Muon" in n)}
            in_processes(count, train_all, place / "results", place, some)
    print("| training | 2, replicated | 2, sharded | 4, replicated | 4, sharded |\n|---|---|---|---|---|")
    for name in cases:
        runs = [folder / f"{count} {fsdp}" / name for count in (2, 4) for fsdp in (False, True)]
        cells = [f"{_difference(folder / '1' / name, run):.1e}" if run.is_dir() else "refused" for run in runs]
        print(f"| {name} | " + " | ".join(cells) + " |")


def held(fsdp: bool) -> list[int]:
    """Bytes of gathered weights and gradients before an update; of shards, their gradients and Adam's state in it."""
    from dropout_grpo.latent.model import LatentModel

    tokenizer = tiny_tokenizer()
    inner = scratch_model(tokenizer, n_embd=256, n_layer=8, n_head=4, n_positions=64, model_type="llama", seed=0)
    add_latent_tokens(inner, tokenizer)
    model = LatentModel(inner, tokenizer, latent_steps=2)
    start_together(model, sharded=fsdp)
    with as_shards(model):
        optimizer = build_optimizer(model.parameters(), learning_rate=1e-3, weight_decay=0.0, betas=(0.9, 0.999))
    schedule = build_schedule(optimizer, "constant", warmup_steps=0, updates=1)
    ids = torch.tensor([[5, 6, 7]])
    state = model.think(model.read(ids, torch.ones_like(ids)), 2)
    (-model.score(state, ids).sum()).backward()
    parameters = list(model.parameters())
    computing = sum(_bytes(p) for p in parameters) + sum(_bytes(p.grad) for p in parameters if p.grad is not None)
    update(model, optimizer, schedule, loss=1.0, max_grad_norm=1.0, where="", last_good="")
    with as_shards(model):
        kept = sum(_bytes(p) for p in model.parameters()) if fsdp else 0
    kept += sum(_bytes(tensor) for entry in optimizer.state.values() for tensor in entry.values())
    return [sum(p.numel() for p in parameters), computing, kept]


def _bytes(tensor: torch.Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def memory(folder: Path) -> None:
    """Prints the second table."""
    print(
        "\n| processes | layout | weights and gradients while computing | shards and Adam's state |\n|---|---|---|---|"
    )
    for count, fsdp in ((1, False), (2, True), (4, True)):
        parameters, computing, kept = in_processes(count, held, folder / f"held {count}", fsdp)[0]
        layout = "sharded" if fsdp else "replicated"
        print(f"| {count} | {layout} | {computing / parameters:.2f} | {kept / parameters:.2f} |")
    print(f"\nBytes for each of {parameters:,} parameters in rank 0.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(mkdtemp(prefix="world-size-"))
    differences(place)
    memory(place)
