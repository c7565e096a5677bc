"""Settings for every test: offline, one thread, a known global RNG (which nothing of ours should read)."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that needs the network must fail

from collections.abc import Iterator

import pytest
import torch

from dropout_grpo.latent.fast.attention_choice import fixed_attention

torch.set_num_threads(1)  # tiny tensors gain nothing from more, and sums keep one order


@pytest.fixture(autouse=True)
def known_global_rng() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def known_attention(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a CPU no test depends on a clock."""
    if request.node.get_closest_marker("gpu"):
        yield
        return
    with fixed_attention("products"):
        yield
