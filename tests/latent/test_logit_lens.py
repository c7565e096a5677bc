"""Thoughts read through the head, against transformers' forward pass alone and against the oracle's masks."""

import pytest
import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.exploration.base import NoExploration
from dropout_grpo.latent.logit_lens import ThoughtReading
from helpers.engine import ALL_PHASES, END_ID, latent_model, oracle_model, reference_factors
from helpers.oracle import oracle_run
from helpers.tiny_latent import tiny_latent

QUESTIONS = ["Ann has 3 ?", "how many 7 has Bob ? + 2"]


def by_hand(logits: Tensor, tokenizer: object, k: int) -> list[tuple[str, float]]:
    shares = logits.softmax(-1)
    order = sorted(range(len(shares)), key=lambda token: -shares[token].item())[:k]
    return [(tokenizer.decode([token]), shares[token].item()) for token in order]  # type: ignore[attr-defined]


def assert_same(thought: ThoughtReading, expected: list[tuple[str, float]]) -> None:
    assert [token for token, _ in thought.tokens] == [token for token, _ in expected]
    assert [share for _, share in thought.tokens] == pytest.approx([share for _, share in expected], abs=1e-9)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "gemma2", "opt"])
def test_the_tokens_are_those_of_transformers_forward_pass_alone(kind: str) -> None:
    """No cache, no padding, no batch; Gemma 2 caps its logits, which the weights of its head alone do not show."""
    model, plain = latent_model(kind, latent_steps=3), oracle_model(kind)
    actual = model.thoughts(QUESTIONS, top_k=4)
    for question, thoughts in zip(QUESTIONS, actual, strict=True):
        embeds = plain.get_input_embeddings()(torch.tensor(model.encode_rows([question])))  # [1, S, D]
        assert len(thoughts.plain) == 4
        for thought in thoughts.plain:
            with torch.no_grad():
                said = plain(inputs_embeds=embeds, output_hidden_states=True, use_cache=False)
            assert_same(thought, by_hand(said.logits[0, -1], model.tokenizer, 4))
            assert thought.cosine == 1.0
            embeds = torch.cat([embeds, said.hidden_states[-1][:, -1:]], dim=1)


def test_without_noise_there_are_no_masked_thoughts() -> None:
    """Fault: the plain thoughts once for every seed, each with the cosine 1."""
    model = tiny_latent()
    (thoughts,) = model.thoughts(QUESTIONS[:1], NoExploration(), [1, 2])
    assert thoughts.masked == ()
    assert thoughts == model.thoughts(QUESTIONS[:1])[0]


@pytest.mark.parametrize("phases", [("latent",), ALL_PHASES], ids=["latent", "all phases"])
def test_masked_thoughts_are_those_of_the_oracle(phases: tuple[str, ...]) -> None:
    model, plain = latent_model("llama", latent_steps=2), oracle_model("llama")
    masks, seeds = SharedDropout(0.25, ("residual", "thought"), phases), [5, 2**64 - 3]  # as int64: 5 and -3
    head = plain.get_output_embeddings()
    for question, thoughts in zip(QUESTIONS, model.thoughts(QUESTIONS, masks, seeds), strict=True):
        (ids,) = model.encode_rows([question])
        with torch.no_grad():
            unmasked = oracle_run(plain, ids, 2, END_ID, [1]).hiddens
            for seed, under in zip((5, -3), thoughts.masked, strict=True):
                states = oracle_run(plain, ids, 2, END_ID, [1], factors=reference_factors(seed, masks)).hiddens
                for thought, state, own in zip(under, states, unmasked, strict=True):
                    assert_same(thought, by_hand(head(state), model.tokenizer, 5))
                    cosine = (state @ own / state.norm() / own.norm()).item()
                    assert thought.cosine == pytest.approx(cosine, abs=1e-9)


def test_the_forward_pass_is_as_before_afterwards() -> None:
    model = tiny_latent()
    before = model.answer(["Ann has 3"], 4)
    model.thoughts(["Ann has 3"])
    assert model.answer(["Ann has 3"], 4) == before
    assert not model.model.get_decoder()._forward_hooks


def test_what_cannot_be_read_is_refused() -> None:
    model = tiny_latent()
    assert model.thoughts([]) == []
    with pytest.raises(UserError, match="top_k=0 must be at least 1"):
        model.thoughts(["Ann"], top_k=0)
    with pytest.raises(UserError, match="latent_steps=-1: the number of thoughts must be 0 or more"):
        model.thoughts(["Ann"], latent_steps=-1)
    with pytest.raises(UserError, match="seeds without an exploration"):
        model.thoughts(["Ann"], seeds=[1])
    for wrong in ("shared_dropout", SharedDropout):  # fault: an AttributeError and a TypeError
        with pytest.raises(UserError, match=r"exploration is .*: give an object, such as SharedDropout\(0.1\)"):
            model.thoughts(["Ann"], wrong, seeds=[1])  # type: ignore[arg-type]
    for answers in (model.answer, model.thoughts):  # fault: `ask` alone refused it
        with pytest.raises(UserError, match=r"the question is empty\."):
            answers([" "])
        with pytest.raises(UserError, match=r"question 2 is empty\."):
            answers(["Ann", ""])
