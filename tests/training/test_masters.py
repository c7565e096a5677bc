"""bf16 weights and what is below them are float32 masters, bit by bit: in steps, checkpoints and after the training."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel, graphs
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.training import masters
from dropout_grpo.training.loop import Trainer
from dropout_grpo.training.masters import halve, halves, master_of, masters_as_weights, with_masters
from dropout_grpo.training.optimizer import build_optimizer
from helpers.grpo_run import CONFIG, alternating
from helpers.tiny_latent import (
    assert_same_weights,
    newest_checkpoint,
    read_metrics,
    tiny_latent,
    tiny_problems,
    weights_of,
)
from helpers.tiny_lora import tiny_lora

PLAIN = replace(CONFIG, max_steps=1, beta=0.1)
GRPO = replace(PLAIN, max_steps=3, save_steps=2, sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=1.0)
SFT = CurriculumConfig(
    c_thought=1,
    max_latent_stage=1,
    cot_epochs=2,
    epochs_per_stage=1,
    final_epochs=1,
    batch_size=4,
    micro_batch_size=2,
    save_total_limit=None,
)


def of_bits(*bits: int) -> Tensor:
    """float32 numbers from their bits."""
    return torch.tensor([struct.unpack("<f", struct.pack("<I", each))[0] for each in bits])


def test_halves_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight is the nearest bf16 number; a tie goes away from zero. A piece may be shorter than the others."""
    monkeypatch.setattr(masters, "_PIECE", 2)
    numbers = of_bits(0x3F8CCCCD, 0x3F8C7FFF, 0x3F8C8000, 0xBF8C8000, 0x00000001)
    weight, low = halves(numbers)
    assert weight.view(torch.int16).tolist() == [0x3F8D, 0x3F8C, 0x3F8D, 0xBF8D - 2**16, 0]
    assert low.tolist() == [0xCCCD - 2**16, 0x7FFF, -0x8000, -0x8000, 1]
    parameter = nn.Parameter(torch.cat([numbers, torch.randn(30, generator=torch.Generator().manual_seed(0))]))
    before = parameter.detach().clone()
    halve(parameter)
    assert parameter.dtype == torch.bfloat16
    assert torch.equal(master_of(parameter).view(torch.int32), before.view(torch.int32))
    assert torch.equal(parameter[5:], before[5:].bfloat16())


@pytest.mark.parametrize("how", ["adamw", "muon"])
def test_steps_are_those_of_float32_weights(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same gradients, in steps too small for bf16; also where a few tensors are updated at a time."""
    monkeypatch.setattr(masters, "_STEP", 13)
    generator = torch.Generator().manual_seed(0)
    models = [nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    start = [p.detach().clone() for p in models[0].parameters()]
    with with_masters(models[1]):
        optimizers = [
            build_optimizer(
                model.parameters(),
                learning_rate=1e-5,
                weight_decay=0.1,
                betas=(0.9, 0.99),
                matrices=[model[0].weight] if how == "muon" else (),
            )
            for model in models
        ]
        for step in range(4):
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = 1e-5 * (step + 1)  # as a schedule does
            for plain, halved in zip(models[0].parameters(), models[1].parameters(), strict=True):
                if step != 1 or plain.ndim > 1:
                    plain.grad = torch.randn(plain.shape, generator=generator)
                    halved.grad = plain.grad.clone()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert {p.dtype for p in models[1].parameters()} == {torch.bfloat16}
        rounded = [halves(p.detach())[0] for p in models[0].parameters()]
        assert all(torch.equal(p, w) for p, w in zip(models[1].parameters(), rounded, strict=True))
    for plain, master, before in zip(models[0].parameters(), models[1].parameters(), start, strict=True):
        assert torch.equal(plain, master)
        assert not torch.equal(plain, before)


def grpo(run: Path, model: LatentModel | None = None, **options: Any) -> GRPOTrainer:
    given: dict[str, Any] = {"args": GRPO, "seed": 2, "param_dtype": "bfloat16", **options}
    model = model or tiny_latent("llama")
    problems = tiny_problems(4)
    return GRPOTrainer(model, alternating, train_dataset=problems, exploration=SharedDropout(0.2), run=run, **given)


def sft(run: Path, model: LatentModel | None = None, **options: Any) -> CurriculumTrainer:
    given: dict[str, Any] = {"args": SFT, "param_dtype": "bfloat16", **options}
    model = model or tiny_latent("llama", latent_steps=1)
    return CurriculumTrainer(model, train_dataset=tiny_problems(4, steps=2), run=run, **given)


class Watch(TrainerCallback):
    """The weights during the training, and how far the training may go."""

    def __init__(self, trainer: Trainer, last: int) -> None:
        self.trainer, self.last = trainer, last
        self.dtypes, self.weights = set[torch.dtype](), dict[str, Tensor]()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_training_stop = state.global_step == self.last
        self.dtypes |= {p.dtype for p in self.trainer.model.parameters()}
        self.weights = {name: p.detach().clone() for name, p in self.trainer.model.named_parameters()}


@pytest.mark.parametrize(("make", "stops"), [(grpo, (2,)), (sft, (1, 2, 3))])
def test_a_resumed_run_has_the_same_bits(make: Callable[..., Trainer], stops: tuple[int, ...], tmp_path: Path) -> None:
    """Also where a new optimiser begins, after step 2 and 3 of the curriculum; of the reference that is updated too."""
    whole = make(tmp_path / "whole")
    watch = Watch(whole, 0)
    whole.add_callback(watch)
    whole.train()
    assert watch.dtypes == {torch.bfloat16}
    for name, master in whole.model.named_parameters():
        assert torch.equal(halves(master.detach())[0], watch.weights[name])
    if isinstance(whole, GRPOTrainer):  # updated from the masters after each step
        assert_same_weights(whole.update.reference.tensors(), weights_of(whole.model))
    saved = load_file(newest_checkpoint(tmp_path / "whole", whole.part) / "model.safetensors")
    state = whole.model.model.state_dict()
    assert saved.keys() <= state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in saved.items())
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in saved.values())
    for stop in stops:
        first = make(tmp_path / str(stop))
        first.add_callback(Watch(first, stop))
        first.train()
        second = make(tmp_path / str(stop))
        second.train(resume_from_checkpoint=True)
        assert_same_weights(weights_of(second.model), weights_of(whole.model))
        losses = [[line["loss"] for line in read_metrics(tmp_path / run)] for run in (str(stop), "whole")]
        assert losses[0] == losses[1]


@pytest.mark.parametrize("make", [grpo, sft])
def test_weights_that_start_in_bf16_resume_with_the_masters_of_the_checkpoint(
    make: Callable[..., Trainer], tmp_path: Path
) -> None:
    def start() -> LatentModel:
        return tiny_latent("llama", dtype=torch.bfloat16, latent_steps=1)

    whole = make(tmp_path / "whole", start())
    whole.train()
    first = make(tmp_path / "stopped", start())
    first.add_callback(Watch(first, 2))
    first.train()
    for _ in range(2):  # the second time nothing is left to train
        again = make(tmp_path / "stopped", start())
        again.train(resume_from_checkpoint=True)
        assert_same_weights(weights_of(again.model), weights_of(whole.model))
    assert any(not torch.equal(p, p.bfloat16().float()) for p in weights_of(whole.model).values())


def test_weights_come_back_where_memory_runs_out_while_they_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    model, halved = tiny_latent(), []

    def fail(parameter: nn.Parameter) -> None:
        if len(halved) == 2:
            raise MemoryError
        halved.append(parameter)
        halve(parameter)

    monkeypatch.setattr(masters, "halve", fail)
    before = {name: weight.clone() for name, weight in weights_of(model).items()}
    with pytest.raises(MemoryError), with_masters(model):
        pass
    assert_same_weights(weights_of(model), before)


def test_a_reference_of_the_same_weights_has_no_kl(tmp_path: Path) -> None:
    """Bit by bit, in one step; gradients of micro-batches are summed in float32."""
    trainer = grpo(tmp_path, args=PLAIN, bf16=True)
    dtypes = set()

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **more: Any) -> None:
            dtypes.update(p.grad.dtype for p in trainer.model.parameters() if p.grad is not None)

    trainer.add_callback(Gradients)
    trainer.train()
    (line,) = read_metrics(tmp_path)
    assert line["kl"] == line["replay/logprob_diff_max"] == 0.0
    assert line["grad_norm"] > 0
    assert dtypes == {torch.float32}
    assert not trainer.bf16
    assert {p.dtype for p in trainer.update.reference.model.parameters()} == {torch.bfloat16}


def test_what_cannot_be_bf16_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = tiny_lora(tmp_path)
    before = weights_of(adapted)
    with pytest.raises(UserError, match=r"trains all weights; with bf16, an adapter's base is held in bf16 anyway"):
        grpo(tmp_path / "lora", adapted, args=replace(PLAIN, beta=0.1))
    assert_same_weights(weights_of(adapted), before)  # the reference of an adapter has the policy's own weights
    with pytest.raises(
        UserError, match=r"param_dtype bfloat16 needs float32 weights, and the model has torch\.float64"
    ):
        sft(tmp_path / "wide", tiny_latent(dtype=torch.float64, latent_steps=1)).train()
    narrow = tiny_latent(dtype=torch.bfloat16, latent_steps=1)
    with pytest.raises(UserError, match=r"bfloat16 .* small updates would be lost.* param_dtype 'bfloat16' for bf16"):
        sft(tmp_path / "narrow", narrow, param_dtype=None).train()
    sft(tmp_path / "narrow", narrow).train()
    assert {p.dtype for p in narrow.parameters()} == {torch.float32}
    monkeypatch.setattr("dropout_grpo.distributed.processes.size", lambda: 2)
    with pytest.raises(UserError, match=r"keeps whole weights, and fsdp shards them: leave one of them out"):
        sft(tmp_path / "shards", fsdp=True)


@pytest.mark.parametrize(
    ("options", "remedy"), [({}, "param_dtype float32"), ({"param_dtype": None, "bf16": True}, "bf16 false")]
)
def test_a_processor_that_is_slow_in_bf16_is_named(
    options: dict[str, Any],
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    warning = f"warning: bf16 is slow on this device: the reason. With {remedy} products are in float32."
    for fast in (True, False):
        monkeypatch.setattr("dropout_grpo.training.loop.bf16_for", lambda device, fast=fast: (fast, "the reason"))
        grpo(tmp_path / str(fast), args=PLAIN, **options).train()
        assert (warning in capsys.readouterr().err) is not fast


def test_a_save_forgets_graphs_which_read_the_weights_where_they_were() -> None:
    model = tiny_latent()
    with with_masters(model):
        before = [parameter.data_ptr() for parameter in model.parameters()]
        graphs._RECORDINGS[model] = graphs.Recordings()
        with masters_as_weights(model):
            pass
        assert [parameter.data_ptr() for parameter in model.parameters()] != before
    assert model not in graphs._RECORDINGS


def test_halving_twice_keeps_the_masters() -> None:
    """Fault: where memory had run out between, the low bits were lost."""
    parameter = nn.Parameter(torch.randn(7, generator=torch.Generator().manual_seed(0)))
    whole = parameter.detach().clone()
    for _ in range(2):
        halve(parameter)
        assert torch.equal(master_of(parameter), whole)
