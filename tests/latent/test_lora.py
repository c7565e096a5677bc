"""Adapters: they change nothing at first, only they are trained, masks apply to them, and they can be switched off."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.exploration.sites import SITES
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.lora.adapter import LoRAConfig, adapter_off, add_lora, reference_of
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from helpers.grpo_run import CONFIG, alternating, trainer
from helpers.tiny_latent import tiny_latent
from helpers.tiny_lora import LORA, as_if_trained, said, saved_base, tiny_lora, tiny_lora_on_raw

KINDS = ("gpt2", "llama", "gemma2")  # Conv1D and tied embeddings; untied; a scaled embedding and norms behind the sites
EVERYWHERE = SharedDropout(0.3, sites=SITES, phases=("prompt", "latent", "answer"))
WITHOUT_WEIGHTS = SharedDropout(0.3, [site for site in SITES if site != "attention_weights"], EVERYWHERE.phases)
LATENT = SharedDropout(0.3)
SEEDS = rollout_seeds(0, 1, torch.arange(2), 3)


def rollouts(model: LatentModel, exploration: SharedDropout) -> Generation:
    """Three rollouts of two questions under masks, [6, L]."""
    prompts = Prompts(*model.encode(["Ann has 3 ?", "Bob has 4 ? ?"]))
    with torch.no_grad():
        return roll_out(model, prompts, SEEDS, exploration, temperature=1.0, max_completion_length=4)


@pytest.mark.parametrize(("kind", "exploration"), [("gpt2", EVERYWHERE), ("llama", LATENT)])
def test_a_fresh_adapter_changes_nothing(kind: str, exploration: SharedDropout, tmp_path: Path) -> None:
    plain, adapted = LatentModel.from_pretrained(saved_base(tmp_path / "a", kind)), tiny_lora(tmp_path / "b", kind)
    torch.testing.assert_close(said(adapted), said(plain))  # on some CPUs bits depend on where tensors lie
    expected, actual = rollouts(plain, exploration), rollouts(adapted, exploration)
    assert torch.equal(expected.token_ids, actual.token_ids)
    torch.testing.assert_close(actual.logprobs, expected.logprobs)


@pytest.mark.parametrize(
    ("kind", "exploration"), [("gpt2", EVERYWHERE), ("llama", LATENT), ("gemma2", WITHOUT_WEIGHTS)]
)
def test_masks_multiply_layer_and_adapter_together(kind: str, exploration: SharedDropout, tmp_path: Path) -> None:
    # The oracle is the merged model, whose masked layers have no adapter beside them that could escape the mask.
    adapted = tiny_lora(tmp_path, kind, trained=True)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = LatentModel.from_pretrained(tmp_path / "adapter", merge=True)
    generation = rollouts(adapted, exploration)
    prompts = Prompts(*merged.encode(["Ann has 3 ?", "Bob has 4 ? ?"]))
    with torch.no_grad():
        scores = replay(merged, prompts, SEEDS, generation.token_ids, exploration, temperature=1.0)
    torch.testing.assert_close(scores * generation.mask, generation.logprobs, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(rollouts(merged, SharedDropout(0.0)).logprobs, generation.logprobs, atol=0.1)


def test_the_model_that_gets_an_adapter_stays_the_model(tmp_path: Path) -> None:
    """Fault: it was left with the sites of the wrapped layers, so masks left the adapter out."""
    model = LatentModel.from_pretrained(saved_base(tmp_path))
    assert add_lora(model, LORA, seed=0) is model


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_only_the_adapter_and_the_latent_tokens_are_trained(kind: str, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(saved_base(tmp_path, kind))
    model = add_lora(LatentModel.from_pretrained(tmp_path / "base"), LORA, seed=0)
    with torch.no_grad():  # a factor of 0 gives its partner no gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trainer(tmp_path / "run", CONFIG, model=model, reward_funcs=[alternating]).train()
    assert {name for name in trainable if "lora_" not in name and "trainable_tokens" not in name} == set()
    assert len({name for name in trainable if "trainable_tokens" in name}) == (2 if kind == "llama" else 1)  # untied

    inner = model.model.get_submodule
    for name, parameter in base.named_parameters():
        holder, _, last = name.rpartition(".")
        module = inner(holder)
        module = module.token_adapter if hasattr(module, "token_adapter") else module
        now = getattr(getattr(module, "base_layer", module), last)
        assert torch.equal(now, parameter), f"{name} moved"
    fresh = dict(tiny_lora(tmp_path / "again", kind).named_parameters())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, fresh[name])}
    assert moved == trainable

    table, before = model.model.get_input_embeddings().weight, base.get_input_embeddings().weight
    rows = (table != before).any(-1).nonzero().flatten().tolist()
    assert set(rows) <= {model.tokens.start, model.tokens.latent, model.tokens.end}
    assert {model.tokens.start, model.tokens.end} <= set(rows)  # what every rollout reads


@pytest.mark.parametrize("kind", KINDS)
def test_with_the_adapter_off_the_base_is_back(kind: str, tmp_path: Path) -> None:
    base, model = LatentModel.from_pretrained(saved_base(tmp_path / "a", kind)), tiny_lora(tmp_path, kind, trained=True)
    next(p for p in model.model.parameters() if p.requires_grad).requires_grad_(False)  # as the caller may
    on, trainable = said(model), [p.requires_grad for p in model.parameters()]
    with adapter_off(model):
        assert torch.equal(said(model), said(base))  # its own rows of the latent tokens among it: all are scored
    with pytest.raises(KeyError), adapter_off(model):
        raise KeyError
    assert torch.equal(said(model), on)
    assert not torch.allclose(on, said(base), atol=0.1)
    assert [p.requires_grad for p in model.parameters()] == trainable


def test_an_adapter_without_a_rank_is_refused(tmp_path: Path) -> None:
    model = LatentModel.from_pretrained(saved_base(tmp_path))
    with pytest.raises(UserError, match="lora: r, the rank of the adapter, is not set: give a number"):
        trainer(tmp_path / "run", model=model, peft_config=LoRAConfig())


def test_the_reference_of_an_adapter_is_no_copy(tmp_path: Path) -> None:
    model = tiny_lora(tmp_path, thought="pause")
    reference = reference_of(model)
    assert reference.model is model.model
    assert reference.sites is model.sites
    before = said(reference)
    as_if_trained(model)
    with adapter_off(reference):
        assert torch.equal(said(reference), before)  # the pause vector has moved in the model alone
    with adapter_off(model):
        assert not torch.equal(said(model), before)
    full = tiny_latent()
    assert reference_of(full).model is not full.model


def test_a_base_that_never_thought_is_no_reference(tmp_path: Path) -> None:
    tiny_lora_on_raw(tmp_path).save_pretrained(tmp_path / "adapter")
    raw = LatentModel.from_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"no latent tokens.*Merge first \(dropout-grpo merge .*adapter --out FOLDER\)"):
        trainer(tmp_path / "a", replace(CONFIG, beta=0.1), model=raw)
    with pytest.raises(UserError, match=r"the model is an adapter on .*raw, .*Train the curriculum first"):
        trainer(tmp_path / "a", replace(CONFIG, beta=0.1), model=tiny_lora_on_raw(tmp_path / "another"))
    trainer(tmp_path / "b", CONFIG, model=raw)


def test_target_modules_are_the_ones_named(tmp_path: Path) -> None:
    model = LatentModel.from_pretrained(saved_base(tmp_path, "llama"))
    model = add_lora(model, replace(LORA, target_modules=("q_proj", "v_proj")), seed=0)
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "v_proj"}
    for table in ("lm_head", "embed_tokens"):  # fault: PEFT's TypeError
        base = LatentModel.from_pretrained(tmp_path / "base")
        with pytest.raises(UserError, match=f"target_modules has {table}, the embeddings or the head, and"):
            add_lora(base, replace(LORA, target_modules=("q_proj", table)), seed=0)
    with pytest.raises(UserError, match=r"q_prj.*not found"):
        add_lora(LatentModel.from_pretrained(tmp_path / "base"), replace(LORA, target_modules=("q_prj",)), seed=0)


def test_first_weights_are_a_function_of_the_seed(tmp_path: Path) -> None:
    saved_base(tmp_path)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(len(states))  # nothing of ours reads the global generator
        state = torch.get_rng_state()
        states.append(add_lora(LatentModel.from_pretrained(tmp_path / "base"), LORA, seed=seed).state_dict())
        assert torch.equal(state, torch.get_rng_state())
    factors = [name for name in states[0] if "lora_A" in name]
    assert all(torch.equal(states[0][name], states[1][name]) for name in factors)
    assert not any(torch.equal(states[0][name], states[2][name]) for name in factors)


def test_an_adapter_that_is_there_is_trained_further_or_refused(tmp_path: Path) -> None:
    model = tiny_lora(tmp_path, trained=True)
    before = said(model)
    assert add_lora(model, LORA, seed=9) is model
    assert torch.equal(said(model), before)
    layers = ("c_attn", "c_fc", "c_proj")
    assert add_lora(model, replace(LORA, target_modules=layers), seed=9) is model  # what all-linear has
    for other in (replace(LORA, r=3), replace(LORA, lora_alpha=5), replace(LORA, target_modules=("c_attn",))):
        has = "with r=2, lora_alpha=4 and target_modules c_attn, c_fc, c_proj, and"
        with pytest.raises(UserError, match=f"is an adapter already, {has}"):
            add_lora(model, other, seed=0)


def test_a_base_that_cannot_be_loaded_again_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GPT2LMHeadModel is not a plain Hugging Face folder"):
        add_lora(tiny_latent(), LORA, seed=0)
    tiny_lora(tmp_path).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"adapter is not a plain Hugging Face folder"):
        add_lora(LatentModel.from_pretrained(tmp_path / "adapter", merge=True), LORA, seed=0)


def test_a_base_that_was_trained_in_memory_is_refused(tmp_path: Path) -> None:
    """Fault: the adapter recorded the name of the model as it was before, and was loaded with that."""
    model = LatentModel.from_pretrained(saved_base(tmp_path, "llama"))
    trainer(tmp_path / "full", CONFIG, model=model).train()
    with pytest.raises(UserError, match=r"base has been trained since it was loaded, and .* save_pretrained"):
        add_lora(model, LORA, seed=0)
    model.save_pretrained(tmp_path / "written")
    adapted = add_lora(LatentModel.from_pretrained(tmp_path / "written"), LORA, seed=0)
    trainer(tmp_path / "adapter", CONFIG, model=adapted).train()
    assert add_lora(adapted, LORA, seed=0) is adapted


def test_a_head_with_a_bias_is_refused(tmp_path: Path) -> None:
    model = LatentModel.from_pretrained(saved_base(tmp_path, "llama"))
    model.model.lm_head = torch.nn.Linear(16, 31)
    with pytest.raises(UserError, match="the output head of LlamaForCausalLM has a bias"):
        add_lora(model, LORA, seed=0)


def test_without_peft_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_lora(tmp_path).save_pretrained(tmp_path / "adapter")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'dropout-grpo\[lora\]'"):
        add_lora(LatentModel.from_pretrained(tmp_path / "base"), LORA, seed=0)
    with pytest.raises(UserError, match=r"pip install 'dropout-grpo\[lora\]'"):
        LatentModel.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "r=0"),
        ({"r": 4, "lora_alpha": 0}, "lora_alpha=0"),
        ({"r": 4, "target_modules": ()}, "target_modules is empty"),
        ({"lora_alpha": 8}, "lora has no r"),
        ({"target_modules": ("q_proj",)}, "lora has no r"),
    ],
)
def test_options_that_make_no_adapter(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoRAConfig(**options)
