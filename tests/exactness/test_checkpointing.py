"""Gradient checkpointing: the same results and gradients, and autograd keeps what goes into the layers alone."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError
from dropout_grpo.exploration import Exploration, NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.exploration.gaussian import Gaussian
from dropout_grpo.exploration.sites import SITES, SiteMap
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.rollout import replay
from dropout_grpo.latent.shared_prompt import OwnLayer
from dropout_grpo.latent.tokens import add_latent_tokens
from helpers.engine import (
    ALL_PHASES,
    ANSWERS,
    SEEDS,
    difference,
    differences,
    gradients,
    latent_model,
    prompts,
)
from helpers.families import tiny
from helpers.grpo_run import CONFIG, trainer
from helpers.tiny import tiny_tokenizer
from helpers.tiny_latent import assert_same_weights, tiny_latent, tiny_problems, weights_of
from helpers.tiny_lora import tiny_lora

LATENT, EVERYWHERE = SharedDropout(0.25), SharedDropout(0.25, SITES, ALL_PHASES)
CASES: list[tuple[str, Exploration]] = [
    *((kind, EVERYWHERE) for kind in ("gpt2", "llama", "qwen2", "gemma")),
    *(("qwen2", SharedDropout(0.25, site, ALL_PHASES)) for site in SITES),
    *(("gpt2", SharedDropout(0.25, SITES, (phase,))) for phase in ALL_PHASES),
    *((kind, PerStepDropout(0.25, SITES, ALL_PHASES)) for kind in ("gpt2", "llama")),
    *((kind, Gaussian(0.3, SITES, ALL_PHASES)) for kind in ("gpt2", "gemma")),
    *((kind, NoExploration()) for kind in ("gpt2", "gemma2", "mistral")),
    *((kind, SharedDropout(0.25, "residual", ALL_PHASES)) for kind in ("gemma2", "qwen2_window", "opt_350m")),
]


def replayed(model: LatentModel, exploration: Exploration) -> Tensor:
    answers = torch.tensor(ANSWERS).clamp(max=30)  # an adapter's base has 31 tokens
    return replay(model, prompts(), SEEDS, answers, exploration, temperature=1.0)


def compared(model: LatentModel, exploration: Exploration) -> tuple[float, float]:
    """Largest differences of log-probabilities and gradients without and with checkpointing."""
    model.gradient_checkpointing = False
    expected = replayed(model, exploration)
    wanted = gradients(model, expected)
    model.gradient_checkpointing = True
    actual = replayed(model, exploration)
    return difference(actual.detach(), expected.detach()), differences(gradients(model, actual), wanted)


@pytest.mark.parametrize(("kind", "exploration"), CASES, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(CASES)])
def test_log_probs_and_gradients_do_not_change(kind: str, exploration: Exploration) -> None:
    assert max(compared(latent_model(kind), exploration)) < 1e-12


def test_groups_that_copy_their_prompt() -> None:
    assert max(compared(latent_model("llama", copy_prompts=True), LATENT)) < 1e-12


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("trained", ["", "v_proj|c_attn"], ids=["all", "part"])
def test_under_autocast(kind: str, trained: str) -> None:
    """Casts of weights to bf16, kept or made again, have the same bits."""
    model = latent_model(kind, torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in trained.split("|")))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    results = []
    for on in (False, True):
        model.gradient_checkpointing = on
        with autocast(torch.device("cpu"), True):
            logprobs = replayed(model, EVERYWHERE)
        results.append([logprobs, *torch.autograd.grad(logprobs.sum(), weights, allow_unused=True)])
    pairs = [(a, b) for a, b in zip(*results, strict=True) if a is not None]
    assert len(pairs) > 2
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("what", ["experts", "adapter"])
def test_layers_of_other_makes(what: str, tmp_path: Path) -> None:
    """A mixture of experts, and layers that PEFT has wrapped."""
    if what == "adapter":
        model = tiny_lora(tmp_path, "llama", trained=True).double().requires_grad_()
    else:
        plain, tokenizer = tiny("mixtral"), tiny_tokenizer()
        add_latent_tokens(plain, tokenizer)
        model = LatentModel(plain, tokenizer, latent_steps=2)
    assert max(compared(model, SharedDropout(0.25, ("residual", "heads"), ALL_PHASES))) < 1e-12


def test_hooks_of_an_exploration() -> None:
    """They are registered again for the second run, also those on a layer itself and on a module inside it."""

    class Shift:
        phases = frozenset({"latent"})

        def noise(self, seeds: Tensor, sites: SiteMap) -> Any:
            return self

        def select(self, rows: Tensor) -> Any:
            return self

        def factors(self, phase: str, step: int) -> dict[str, Tensor]:
            return {}

        @contextmanager
        def hooks(self, sites: SiteMap, phase: str, step: int) -> Iterator[None]:
            handles = []
            if phase == "latent":
                layer = sites.layers[1]
                handles = [layer.mlp.register_forward_pre_hook(lambda module, args: (args[0].sin() * (step + 2),))]
                handles += [layer.register_forward_hook(lambda module, args, output: output.cos())]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    model = latent_model("llama")
    assert max(compared(model, Shift())) < 1e-12
    assert difference(replayed(model, Shift()).detach(), replayed(model, NoExploration()).detach()) > 1e-2


def test_a_second_run_without_the_mask_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    of_layer = SiteMap.of_layer
    monkeypatch.setattr(
        SiteMap, "of_layer", lambda *args: {name: torch.ones_like(factor) for name, factor in of_layer(*args).items()}
    )
    logprobs, gradient = compared(latent_model("gpt2"), LATENT)
    assert logprobs == 0
    assert gradient > 1e-2


def test_a_second_run_that_extends_the_cache_again_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "dropout_grpo.latent.checkpointing.copy", lambda value: value if isinstance(value, OwnLayer) else copy(value)
    )
    with pytest.raises(RuntimeError, match="size of tensor"):
        compared(latent_model("gpt2"), LATENT)


def saved_bytes(work: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of ``work``, without the model's parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}  # by address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(sizes.values())


def test_what_is_kept_by_hand() -> None:
    """Of each layer: inputs of 6 + 2 + 4 prompt tokens, and of 2 thoughts and 4 answer tokens of 6 rows; keys and
    values of 3 x 6 prompt positions, of 1 thought and of 2. All are 16 wide, in float64."""
    kept = {}
    for n_layer in (2, 4):
        model = latent_model("gpt2", n_layer=n_layer)
        model.gradient_checkpointing = True
        kept[n_layer] = saved_bytes(lambda model=model: replayed(model, NoExploration()), model)
    inputs, keys_and_values = 12 + 6 * 2 + 6 * 4, 2 * (3 * 6 + 6 * 1 + 6 * 2)
    assert kept[4] - kept[2] == 2 * (inputs + keys_and_values) * 16 * 8
    model.gradient_checkpointing = False
    assert saved_bytes(lambda: replayed(model, NoExploration()), model) > 5 * kept[4]


def test_each_layer_runs_once_more_in_the_backward_pass() -> None:
    model = latent_model("qwen2")
    runs: Counter[int] = Counter()
    for i, layer in enumerate(model.sites.layers):
        layer.mlp.register_forward_pre_hook(lambda module, args, i=i: runs.update([i]))
    model.gradient_checkpointing = True
    with torch.no_grad():
        replayed(model, LATENT)
    calls = 1 + 2 + 1  # prompt, thoughts, answer
    assert runs == {0: calls, 1: calls}
    runs.clear()
    replayed(model, LATENT).sum().backward()
    assert runs == {0: 2 * calls, 1: 2 * calls}
    assert not any("forward" in vars(layer) for layer in model.sites.layers)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2_window"])
def test_that_of_transformers_becomes_ours(kind: str) -> None:
    """Fault: log-probabilities were others in models with a window, and a traceback in the others."""
    expected = replayed(latent_model(kind), LATENT).detach()
    model = latent_model(kind)
    model.model.gradient_checkpointing_enable()
    model.model.train()
    wrapped = LatentModel(model.model, model.tokenizer, latent_steps=2)
    for each in (model, wrapped):
        with torch.no_grad():
            assert torch.equal(replayed(each, LATENT), expected)
    assert wrapped.gradient_checkpointing
    assert max(compared(wrapped, LATENT)) < 1e-12
    model.model.gradient_checkpointing_enable()
    assert model.gradient_checkpointing
    model.gradient_checkpointing = False
    assert not model.gradient_checkpointing
    assert torch.equal(replayed(model, LATENT).detach(), expected)


def test_caches_that_cannot_be_run_again_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = latent_model("llama")
    model.gradient_checkpointing = True

    class Counting(OwnLayer):
        pass

    with monkeypatch.context() as patch:
        patch.setattr("dropout_grpo.latent.shared_prompt.OwnLayer", Counting)
        with pytest.raises(UserError, match="LlamaDecoderLayer keeps other things than keys and values in its cache"):
            replayed(model, LATENT)
    model.model.get_decoder().layers[1].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: kwargs["past_key_values"].layers[0].keys, with_kwargs=True
    )
    with pytest.raises(UserError, match="a layer reads another layer's cache"):
        replayed(model, LATENT)


@pytest.mark.parametrize("part", ["sft", "grpo"])
def test_two_updates_have_equal_bits(part: str, tmp_path: Path) -> None:
    ends = []
    for on in (False, True):
        model = tiny_latent("qwen2")
        if part == "grpo":
            config = replace(CONFIG, max_steps=2, beta=0.1, gradient_checkpointing=on)
            trainer(tmp_path / str(on), config, model=model).train()
        else:
            options = CurriculumConfig(
                c_thought=1, max_latent_stage=2, cot_epochs=0, epochs_per_stage=1, final_epochs=0, warmup_steps=0
            )
            options = replace(options, gradient_checkpointing=on)
            CurriculumTrainer(model, options, tiny_problems(3, steps=2), tmp_path / str(on)).train()
        assert model.gradient_checkpointing == on
        ends.append(weights_of(model))
    assert_same_weights(*ends)
    assert any(not torch.equal(ends[0][name], tensor) for name, tensor in weights_of(tiny_latent("qwen2")).items())
