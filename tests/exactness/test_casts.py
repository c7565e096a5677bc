"""Under autocast: frozen weights are cast to bf16 once in a block, keys are kept in bf16; results keep their bits."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.casts import autocast, frozen_weights_cast, keeping_casts
from dropout_grpo.latent.rollout import replay, roll_out, think_in_groups
from dropout_grpo.latent.shared_prompt import cache_tensors, kernel_dtype
from helpers.engine import ANSWERS, SEEDS, latent_model, prompts
from helpers.fake_cuda import fake_cuda
from helpers.grpo_run import CONFIG, trainer
from helpers.tiny_latent import tiny_latent
from helpers.tiny_lora import tiny_lora

CPU = torch.device("cpu")
MASKS = SharedDropout(0.25, ("residual", "heads"), ("latent",))


class Casts(TorchDispatchMode):
    """Counts how often each of some tensors is cast to bf16."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = {weight.data_ptr(): name for name, weight in weights.items()}
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == torch.bfloat16:
            name = self.names.get(args[0].data_ptr())
            self.of.update([name] if name else [])
        return func(*args, **kwargs)


def frozen_products(model: nn.Module) -> dict[str, Tensor]:
    """Frozen weights of linear layers."""
    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2 and "wpe" not in name}
    return {name: weight for name, weight in matrices.items() if not weight.requires_grad}


def frozen(kind: str, folder: Path) -> LatentModel:
    """A model with an adapter, or with some of its weights frozen."""
    if folder.name == "lora":
        return tiny_lora(folder, kind, trained=True)
    model = tiny_latent(kind)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("attn" in name)
    return model


@pytest.mark.parametrize(("kind", "how"), [("gpt2", "lora"), ("llama", "some")])
def test_once_in_a_block_with_equal_bits(kind: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts, log-probabilities and gradients; weights stay float32."""
    tokens = torch.tensor(ANSWERS) % 28
    actual, counts = [], []
    for keeps_casts in (True, False):
        if not keeps_casts:
            monkeypatch.setattr("dropout_grpo.latent.casts.keeping_casts", nullcontext)
        model = frozen(kind, tmp_path / how)
        weights = frozen_products(model)
        with autocast(CPU, True), Casts(weights) as casts:
            rollouts = roll_out(model, prompts(), SEEDS, MASKS, temperature=1.0, max_completion_length=4)
            logprobs = replay(model, prompts(), SEEDS, tokens, MASKS, temperature=1.0)
        trained = [p for p in model.parameters() if p.requires_grad]
        actual.append([rollouts.token_ids, rollouts.logprobs, logprobs, *torch.autograd.grad(logprobs.sum(), trained)])
        counts.append(casts.of)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert frozen_products(model).keys() == weights.keys()
    assert all(torch.equal(a, b) for a, b in zip(*actual, strict=True))
    assert len(counts[0]) >= 5
    assert set(counts[0].values()) == {1}
    assert min(counts[1].values()) >= 4


def test_a_run_with_a_reference_has_equal_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    for name in ("kept", "anew"):
        if name == "anew":
            monkeypatch.setattr("dropout_grpo.latent.casts.keeping_casts", nullcontext)
        model = tiny_latent("qwen2")
        trainer(tmp_path / name, replace(CONFIG, max_steps=2, beta=0.1), model=model, bf16=True).train()
        trained.append(dict(model.named_parameters()))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_a_weight_that_changes_is_cast_again() -> None:
    """As on resuming; and a cast made without gradients serves a backward pass."""
    model, ids = latent_model("llama", torch.float32).requires_grad_(False), prompts().input_ids
    everything = torch.ones_like(ids)

    def hidden() -> Tensor:
        return model.read(ids, everything).hidden

    with autocast(CPU, True):
        with torch.inference_mode():
            before = hidden().clone()
        with torch.no_grad():
            model.model.get_decoder().layers[1].mlp.down_proj.weight.mul_(2.0)
        after = hidden()
    with autocast(CPU, True):
        assert torch.equal(hidden(), after)
    assert not torch.equal(before, after)
    with torch.inference_mode():  # fault: torch keeps no version of a weight that is made here
        made_inside = latent_model("llama", torch.float32).requires_grad_(False)
        with autocast(CPU, True):
            assert made_inside.read(ids, everything).hidden.isfinite().all()
    with autocast(CPU, True), torch.inference_mode():
        hidden()
        with torch.inference_mode(False):
            x = torch.ones(1, 16, requires_grad=True)
            with frozen_weights_cast(model):
                model.model.get_decoder().layers[0].mlp.up_proj(x).sum().backward()
    assert x.grad is not None


def test_the_layers_get_their_weights_back() -> None:
    """After a forward pass, after an error in it, and without a block."""
    model = latent_model("gpt2", torch.float32).requires_grad_(False)
    head, table = model.model.lm_head, model.model.get_input_embeddings()
    with keeping_casts(), torch.autocast("cpu", torch.bfloat16):
        with frozen_weights_cast(model):
            assert head.weight.dtype == torch.bfloat16
            assert table.weight.dtype == torch.float32  # the same parameter, not in a product
        assert head.weight is table.weight
        with pytest.raises(ZeroDivisionError), frozen_weights_cast(model):
            _ = 1 / 0
        assert head.weight is table.weight
    with torch.autocast("cpu", torch.bfloat16), frozen_weights_cast(model):
        assert head.weight is table.weight
    with keeping_casts(), frozen_weights_cast(model):
        assert head.weight is table.weight


def test_recorded_work_casts_the_current_weights() -> None:
    """A graph holds no cast from before its recording: weights that change later are seen."""
    model = latent_model("llama", torch.float32).requires_grad_(False)
    twin = latent_model("llama", torch.float32)

    def entropies(model: LatentModel) -> Tensor:
        with torch.no_grad(), autocast(CPU, True):
            return roll_out(model, prompts(), SEEDS, MASKS, temperature=1.0, max_completion_length=4).entropy

    with fake_cuda() as graphs:
        for _ in range(3):
            before = entropies(model)
        assert graphs
        with torch.no_grad():
            for changed in (model, twin):
                changed.model.get_decoder().layers[1].mlp.down_proj.weight.mul_(2.0)
        after = entropies(model)
    assert (after[:, 0] - entropies(twin)[:, 0]).abs().max() < 2e-2 < (after[:, 0] - before[:, 0]).abs().max()


@pytest.mark.parametrize(("kind", "copy_prompts"), [("gpt2", False), ("llama", False), ("mistral", True)])
def test_the_cache_holds_what_the_attention_computes_with(
    kind: str, copy_prompts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary positions make keys float32; rounding them before they are kept changes no bit of a result."""
    actual = []
    for dtype_of in (kernel_dtype, lambda tensor: tensor.dtype):
        monkeypatch.setattr("dropout_grpo.latent.shared_prompt.kernel_dtype", dtype_of)
        model = latent_model(kind, torch.float32, copy_prompts=copy_prompts)
        with torch.no_grad(), autocast(CPU, True):
            state, noise = think_in_groups(model, prompts(), SEEDS, MASKS)
            logprobs = model.score(state, torch.tensor(ANSWERS), noise=noise)
        prefix = () if state.prefix is None else state.prefix.keys
        dtypes = {key.dtype for key in (*prefix, *(keys for keys, _ in cache_tensors(state.cache)))}
        actual.append((dtypes, logprobs))
    assert actual[0][0] == {torch.bfloat16}
    assert actual[1][0] == ({torch.bfloat16} if kind == "gpt2" else {torch.float32})
    assert torch.equal(actual[0][1], actual[1][1])
    monkeypatch.undo()
    state = latent_model(kind, torch.float64).read(prompts().input_ids, prompts().attention_mask)
    with torch.autocast("cpu", torch.bfloat16):
        after = latent_model(kind, torch.float64).think(state, 1)
    assert {key.dtype for key, _ in cache_tensors(after.cache)} == {torch.float64}  # which autocast leaves alone
