"""Where sites are in each family, and which hidden state is fed back: the convention of ``latent/thought.py``.

``test_parity.py`` compares every architecture with the oracle.
"""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from helpers.engine import (
    ALL_SITES,
    QUESTIONS,
    difference,
    latent_model,
    oracle_model,
    oracle_rows,
)
from helpers.oracle import site_modules
from helpers.tiny import EXTRA_KINDS, KINDS, VARIANTS, WIDE_HEADS

PROMPT = QUESTIONS[0]


@pytest.mark.parametrize("kind", ["mistral", "qwen2_window"])
def test_the_variants_windows_matter(kind: str) -> None:
    plain = oracle_model(kind)
    narrow = oracle_rows(plain, 4)[1]
    assert plain.config.sliding_window == 5
    plain.config.sliding_window = 64
    wide = oracle_rows(plain, 4)[1]
    assert difference(wide.detach(), narrow.detach()) > 1e-2


@pytest.mark.parametrize("kind", [*KINDS, *EXTRA_KINDS, *VARIANTS])
def test_fed_back_is_hidden_states_minus_one_as_an_input_embedding(kind: str) -> None:
    """What enters the first layer at a latent step, worked out from transformers' own ``hidden_states[-1]``."""
    model, plain = latent_model(kind), oracle_model(kind)
    entered: list[Tensor] = []
    hook = first_layer(model.model).register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(entering(args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        ids = torch.tensor([PROMPT])
        model.think(model.read(ids, torch.ones_like(ids)), 1)
        hook.remove()
        hidden = plain(ids, output_hidden_states=True).hidden_states[-1][:, -1:]  # [1, 1, D]
        expected = {
            "gpt2": lambda: hidden + plain.transformer.wpe.weight[len(PROMPT)],
            "opt": lambda: (
                hidden + plain.model.decoder.embed_positions.weight[len(PROMPT) + 2]
            ),  # its table starts at 2
            "opt_350m": lambda: (
                plain.model.decoder.project_in(hidden) + plain.model.decoder.embed_positions.weight[len(PROMPT) + 2]
            ),
        }.get(kind, lambda: hidden)()  # rotary positions enter in the attention; and Gemma does not scale
    assert [tensor.shape[1] for tensor in entered] == [len(PROMPT), 1]
    assert difference(entered[1], expected) < 1e-5
    assert difference(entered[1], 4.0 * expected) > 1e-1  # 4 is Gemma's square root of the width


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text"])
def test_gemma_scales_its_tokens_before_inputs_embeds(kind: str) -> None:
    """The installed transformers scales in the embedding module; were it in the model, thoughts would be scaled too."""
    plain, ids = oracle_model(kind), torch.tensor([PROMPT])
    embedding = plain.get_input_embeddings()
    torch.testing.assert_close(embedding(ids), 4.0 * embedding.weight[ids])
    torch.testing.assert_close(plain(inputs_embeds=embedding(ids)).logits, plain(ids).logits)


@pytest.mark.parametrize("kind", [*KINDS, *EXTRA_KINDS, *VARIANTS])
def test_every_site_is_found_at_its_module(kind: str) -> None:
    """The projections that end a layer's halves, by name; heads and hidden widths are those of the config."""
    model = latent_model(kind)
    attention, mlp = {
        "gpt2": ("h.{}.attn.c_proj", "h.{}.mlp.c_proj"),
        "gpt_neox": ("layers.{}.attention.dense", "layers.{}.mlp.dense_4h_to_h"),
        "opt": ("layers.{}.self_attn.out_proj", "layers.{}.fc2"),
    }.get(model.model.config.model_type, ("layers.{}.self_attn.o_proj", "layers.{}.mlp.down_proj"))
    head_width = 8 if kind in WIDE_HEADS else 4
    actual = {
        site.name: (site.path, site.count, site.repeat) for site in model.sites.instances((*ALL_SITES, "residual"))
    }
    assert actual.pop("thought") == ("", 12 if kind == "opt_350m" else 16, 1)
    assert set(actual) == set(site_modules(model.model))
    for i in range(2):
        assert actual[f"layers.{i}.attention"] == (attention.format(i), 16, 1)
        assert actual[f"layers.{i}.heads"] == (attention.format(i), 4, head_width)
        assert actual[f"layers.{i}.mlp"] == (mlp.format(i), 16, 1)
        assert actual[f"layers.{i}.mlp_hidden"] == (mlp.format(i), 24, 1)


def first_layer(model: PreTrainedModel) -> nn.Module:
    layers = [m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList)]
    assert len(layers) == 1
    return layers[0][0]


def entering(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]
