"""Weights that only matrix products read are in bf16 where products are in bf16 anyway: results keep their bits."""

import platform
import subprocess
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.casts import autocast, held_in_bf16
from dropout_grpo.latent.lora.adapter import reference_of
from dropout_grpo.latent.rollout import replay
from helpers.engine import ANSWERS, SEEDS, prompts
from helpers.grpo_run import CONFIG, trainer
from helpers.tiny_latent import newest_checkpoint, tiny_latent, tiny_problems
from helpers.tiny_lora import said, tiny_lora

MASKS = SharedDropout(0.25, ("residual", "heads"), ("latent",))


def in_bf16(model: nn.Module) -> set[str]:
    """Names of the parameters that are bf16."""
    return {name for name, parameter in model.named_parameters() if parameter.dtype == torch.bfloat16}


@pytest.mark.parametrize(("kind", "thought"), [("gpt2", "projection"), ("llama", "hidden_state"), ("gemma", "pause")])
def test_a_reference_in_bf16_gives_the_same_bits(kind: str, thought: str) -> None:
    """Norms, embeddings and a head that shares their table stay float32. The policy does not change."""
    policy = tiny_latent(kind, thought=thought)
    before = {name: weight.clone() for name, weight in policy.named_parameters()}
    logprobs = []
    for bf16 in (False, True):
        reference = reference_of(policy, bf16=bf16)
        with torch.no_grad(), autocast(policy.device, True):
            tokens = torch.tensor(ANSWERS) % 28
            logprobs.append(replay(reference, prompts(), SEEDS, tokens, MASKS, temperature=1.0))
    assert torch.equal(*logprobs)
    assert all(torch.equal(weight, before[name]) for name, weight in policy.named_parameters())
    assert not any(weight.requires_grad for weight in reference.parameters())
    matrices = {
        n for n, p in policy.named_parameters() if p.ndim == 2 and not ("wte" in n or "wpe" in n or "embed" in n)
    }
    assert matrices - {"thought.vector"} == {n for n in in_bf16(reference) if not n.endswith("bias")}


class Seen(TrainerCallback):
    """How many parameters are bf16 during the training, and what the model answers without autocast."""

    def __init__(self, model: LatentModel) -> None:
        self.model, self.halves = model, set[int]()

    def on_step_end(self, *args: object, **more: object) -> None:
        self.halves.add(len(in_bf16(self.model)))
        self.said = said(self.model).detach()


@pytest.mark.parametrize("what", ["reference", "adapter"])
def test_a_run_has_equal_bits(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a KL, validation and checkpoints. A checkpoint has the adapter alone, so it loads with its float32 base."""
    ends, seen = [], []
    for how in ("held", "cast"):
        if how == "cast":
            monkeypatch.setattr("dropout_grpo.training.loop.held_in_bf16", lambda model: nullcontext())
            monkeypatch.setattr("dropout_grpo.latent.lora.adapter.product_weights", lambda model: [])
        model = tiny_latent("qwen2") if what == "reference" else tiny_lora(tmp_path / "lora", "qwen2", trained=True)
        config = replace(CONFIG, max_steps=1, beta=0.1, save_steps=1, eval_steps=1)
        watch = Seen(model)
        trainer(
            tmp_path / how, config, model=model, bf16=True, eval_dataset=tiny_problems(2), callbacks=[watch]
        ).train()
        ends.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        seen.append(watch)
        assert not in_bf16(model)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert seen[1].halves == {0}
    assert seen[0].halves == ({0} if what == "reference" else {2 * 7 + 2 * 3 + 1})  # with qwen2's biases; and the head
    assert (seen[0].said - seen[1].said).abs().max() < 0.1  # rounded weights, float32 products
    if what == "adapter":
        saved = LatentModel.from_pretrained(newest_checkpoint(tmp_path / "held", "grpo"))
        assert torch.equal(said(saved), said(model))


def test_weights_are_float32_again_also_after_an_error() -> None:
    """Rounded; those that are trained are not touched."""
    model = tiny_latent("llama").requires_grad_(False)
    trained = model.model.get_decoder().layers[0].mlp.up_proj.weight.requires_grad_(True)
    before, down = trained.clone(), model.model.get_decoder().layers[0].mlp.down_proj.weight.clone()
    inside = set()
    with suppress(ZeroDivisionError), held_in_bf16(model):
        inside = in_bf16(model)
        _ = 1 / 0
    assert len(inside) == 2 * 7 + 1 - 1
    assert not in_bf16(model)
    assert torch.equal(trained, before)
    assert torch.equal(model.model.get_decoder().layers[0].mlp.down_proj.weight, down.bfloat16().float())


@pytest.mark.parametrize("thought", ["hidden_state", "projection"])
def test_thoughts_are_read_without_autocast_too(thought: str) -> None:
    """As a callback may in a training. Fault: float32 states met bf16 weights of the head, and of a projection."""
    model = tiny_latent("llama", thought=thought).requires_grad_(False)
    with held_in_bf16(model):
        assert "lm_head" in {name.rpartition(".")[0].rpartition(".")[2] for name in in_bf16(model)}
        inside = model.thoughts(["Ann has 3 ?"])
    assert model.thoughts(["Ann has 3 ?"]) == inside  # the weights stay rounded


RESIDENT = """
from torch import nn
from dropout_grpo.latent.casts import held_in_bf16
from dropout_grpo.training.machine import keep_freed_memory, resident_memory

assert keep_freed_memory()
model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8))).requires_grad_(False)  # 128 MiB
before = resident_memory()
with held_in_bf16(model):
    inside = resident_memory()
print(before - inside, resident_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its malloc is another")
def test_memory_of_float32_weights_goes_back() -> None:
    """64 of 128 MiB are free for others inside the block. After it, the memory of the copies in bf16 is free."""
    run = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    freed, more = map(int, run.stdout.split())
    assert freed > 48 * 2**20
    assert more < 16 * 2**20
