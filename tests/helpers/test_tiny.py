"""The tiny models and the tiny tokenizer: offline, reproducible, with distinct outputs."""

import pytest
import torch

from helpers.tiny import EOS_ID, EXTRA_KINDS, KINDS, PAD_ID, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("kind", KINDS + EXTRA_KINDS)
def test_a_tiny_model_is_a_function_of_its_arguments(kind: str) -> None:
    state = torch.get_rng_state()
    model, again, other = tiny_model(kind), tiny_model(kind, torch.bfloat16), tiny_model(kind, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(model.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)  # the same weights, rounded
        assert not torch.equal(a, c)
    # Far from uniform (log 40 = 3.69 nats), and far from certain.
    entropy = torch.distributions.Categorical(logits=model(torch.tensor([[5, 9, 11, 28]])).logits).entropy()
    assert 1.0 < entropy.mean() < 3.4


def test_tiny_tokenizer() -> None:
    tokenizer = tiny_tokenizer()
    text = "Ann has 7 . how many ? \n ### 3 <eos>"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer("Ann has 7. how many?\n### 3<eos>").input_ids == ids
    assert ids[2] == 10  # "7" after pad, eos, unk and the digits below it
    assert ids[-1] == tokenizer.eos_token_id == EOS_ID
    assert tokenizer.pad_token_id == PAD_ID
    assert tokenizer("12 zebra").input_ids == [tokenizer.unk_token_id] * 2

    size = len(tokenizer)
    markers = ["<|start-latent|>", "<|latent|>", "<|end-latent|>"]
    assert tokenizer.add_special_tokens({"additional_special_tokens": markers}) == 3
    ids = tokenizer("7 <|start-latent|><|latent|><|end-latent|>7").input_ids
    assert ids == [10, size, size + 1, size + 2, 10]
