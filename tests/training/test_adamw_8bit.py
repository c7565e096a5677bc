"""AdamW with 8-bit moments: near AdamW, saved and loaded bit by bit, and asked for by name."""

import copy
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.training.adamw_8bit import AdamW8bit, eight_bit_parameters
from dropout_grpo.training.masters import master_of, set_master, with_masters
from dropout_grpo.training.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors
from helpers.grpo_run import CONFIG, digits, trainer
from helpers.tiny_latent import tiny_latent, tiny_problems

SFT = CurriculumConfig(
    cot_epochs=1, epochs_per_stage=0, final_epochs=0, max_latent_stage=1, c_thought=2, optimizer="adamw_8bit"
)


def optimizer_of(model: nn.Module, name: str = "adamw_8bit") -> Optimizer:
    return build_optimizer(
        model.parameters(),
        learning_rate=1e-2,
        weight_decay=0.1,
        betas=(0.9, 0.99),
        eight_bit=eight_bit_parameters(model, name),
    )


def stepped(model: nn.Module, optimizer: Optimizer, *numbers: int) -> list[Tensor]:
    """The weights after steps with other gradients and rates."""
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / number
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("masters", [False, True])
def test_steps_are_near_adamws_and_a_loaded_state_goes_on(masters: bool) -> None:
    """Moments of fewer than 4,096 elements are float32, those of the norm and the biases, and those of embeddings."""
    pytest.importorskip("bitsandbytes")  # not in dev: docs/dependencies.md

    def made() -> nn.Module:
        return nn.Sequential(nn.Linear(17, 241), nn.LayerNorm(241), nn.Linear(241, 17), nn.Embedding(17, 241))

    plain, model = made(), made()
    model.load_state_dict(plain.state_dict())
    start = [p.detach().clone() for p in plain.parameters()]
    expected = stepped(plain, optimizer_of(plain, "adamw"), 1, 2, 3, 4)
    twin = copy.deepcopy(model)
    with ExitStack() as held:
        for each in (model, twin) if masters else ():
            held.enter_context(with_masters(each))
        first, second = optimizer_of(model), optimizer_of(twin)
        stepped(model, first, 1, 2)
        tensors = {name: tensor.clone() for name, tensor in optimizer_tensors(first).items()}
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            set_master(mine, master_of(theirs))
        load_optimizer_tensors(second, tensors.items())
        for each, optimizer in ((model, first), (twin, second)):
            stepped(each, optimizer, 3, 4)
    for end, same, wanted, before in zip(model.parameters(), twin.parameters(), expected, start, strict=True):
        assert torch.equal(end, same)
        assert 0 < (end - wanted).abs().max() < 0.05 * (wanted - before).abs().max() or end.ndim == 1
    assert (end - wanted).abs().max() < 1e-6, "the embedding"
    assert {name: (t.dtype, t.numel()) for name, t in tensors.items() if name.startswith("0.")} == {
        "0.step": (torch.float32, 1),
        "0.state1": (torch.uint8, 17 * 241),
        "0.state2": (torch.uint8, 17 * 241),
        "0.absmax1": (torch.float32, 17),  # 4097 / 256, rounded up
        "0.absmax2": (torch.float32, 17),
    }
    assert {tensors[name].dtype for name in ("2.state1", "2.state2", "3.state1")} == {torch.float32}
    with pytest.raises(UserError, match=r"0\.absmax1 is torch.float32 of shape \[16\], not .* of shape \[17\]"):
        load_optimizer_tensors(second, [("0.absmax1", torch.zeros(16))])


def test_the_plan_counts_its_moments(tmp_path: Path) -> None:
    made = trainer(tmp_path / "grpo", replace(CONFIG, optim="adamw_8bit"))
    sft = CurriculumTrainer(tiny_latent(), SFT, tiny_problems(4, steps=1), tmp_path / "sft")
    for each in (made, sft):
        sizes = {name: p.numel() for name, p in each.model.named_parameters()}
        tables = sum(size for name, size in sizes.items() if name.endswith(("wte.weight", "wpe.weight")))
        assert each.optimizer_bytes() == 8 * tables + 2 * (sum(sizes.values()) - tables)


def test_a_run_with_it_can_be_resumed(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = replace(CONFIG, optim="adamw_8bit", max_steps=2, save_steps=1)
    made = trainer(tmp_path / "grpo", config)
    made.train()
    assert isinstance(made.optimizer, AdamW8bit)
    trainer(tmp_path / "grpo", replace(config, max_steps=3), resume=True).train(resume_from_checkpoint=True)
    sft = CurriculumTrainer(tiny_latent(), SFT, tiny_problems(4, steps=1), tmp_path / "sft")
    sft.train()
    assert isinstance(sft.optimizer, AdamW8bit)


def test_it_is_asked_for_by_name_and_refused_for_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without bitsandbytes too."""
    assert GRPOConfig(optim="adamw_bnb_8bit").optim == "adamw_8bit"
    assert GRPOConfig(optim="adamw_torch_fused").optim == GRPOConfig(optim=None).optim == "adamw_torch"
    config = replace(CONFIG, optim="adamw_8bit")
    with monkeypatch.context() as patched:
        patched.setattr("dropout_grpo.distributed.processes.size", lambda: 2)
        with pytest.raises(UserError, match=r"optim adamw_8bit needs whole matrices, and fsdp shards them"):
            GRPOTrainer(tiny_latent(), digits, config, tiny_problems(3), run=tmp_path / "shards", fsdp=True)
        with pytest.raises(UserError, match=r"curriculum\.optimizer adamw_8bit needs whole matrices"):
            CurriculumTrainer(tiny_latent(), SFT, tiny_problems(4, steps=1), tmp_path / "shards", fsdp=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(
        UserError, match=r"needs bitsandbytes, which is not installed: pip install 'dropout-grpo\[adamw"
    ):
        trainer(tmp_path / "lacks", config).train()
