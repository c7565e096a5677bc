"""Every decoder-only family of the installed transformers, built tiny and compared with its own forward pass.

Each family gets two layers with random weights. The reference runs the whole sequence again for each thought, one row
at a time, without a cache, padding or code of this package. The engine answers the same questions in one left-padded
batch with two rollouts each. Weights are float64, or float32 if a family is refused in float64.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.exploration.seeds import rollout_seeds
from dropout_grpo.exploration.sites import ATTENTION_WEIGHTS, SITES, SiteMap
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.recurrence import switch_off_dropout
from dropout_grpo.latent.rollout import Prompts, replay, roll_out, think_in_groups
from dropout_grpo.latent.tokens import add_latent_tokens, embedding_table
from dropout_grpo.tasks.word_tokenizer import word_tokenizer

WORDS = [*"abcdefghijklmnop"]
QUESTIONS = ("a b c d e f", "g h i")
ANSWER = "j k l"
STEPS = 3
TOLERANCE = 1e-4
"""Largest difference of log-probabilities that counts as equal. Most families take softmax and norms in float32."""

LARGEST = 3_000_000
"""Parameters. A family that the sizes below do not make this small is left out."""

SIZES: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "max_window_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "d_ff"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "index_topk"), 64),
    "sliding_window": 63,  # below the positions, as nearly everywhere: a window that cannot act is none
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "moe_topk", "moe_k", "index_n_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "index_head_dim"), 8
    ),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "bos_token_id"), 1),
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_MAY_BE_NONE = ("pad_token_id", "bos_token_id", "eos_token_id", "n_inner", "head_dim", "num_key_value_heads")

SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 64},
    "falcon": {"head_dim": None},
}
"""What a family's config needs beyond the sizes; None leaves a size out."""


def families() -> list[str]:
    """Types of causal language models in the installed transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny(model_type: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A model of two layers with random weights, a pure function of its arguments, that runs.

    Raises:
        Exception: any exception that the family raises for these sizes.
        ValueError: the sizes do not make the model small.
    """
    default = AutoConfig.for_model(model_type)
    sizes: dict[str, Any] = {"vocab_size": 64}
    for name, size in SIZES.items():
        value = getattr(default, name, None)
        if isinstance(value, int) or (value is None and name in _MAY_BE_NONE):
            sizes[name] = size
    sizes |= SPECIAL.get(model_type, {})
    sizes = {name: size for name, size in sizes.items() if size is not None}
    try:
        model = _built(model_type, sizes, dtype, seed)
    except RuntimeError:  # multi-head latent attention has as many key heads as query heads
        model = _built(model_type, {**sizes, "num_key_value_heads": sizes.get("num_attention_heads")}, dtype, seed)
    return model


def _built(model_type: str, sizes: Mapping[str, Any], dtype: torch.dtype, seed: int) -> PreTrainedModel:
    config = AutoConfig.for_model(model_type, **sizes)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > LARGEST:
        raise ValueError(f"{parameters:,} parameters")
    config._experts_implementation = "eager"  # the grouped product takes no float64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(noise + parameter if parameter.ndim == 1 else noise)
        model(torch.tensor([[3, 4, 5, 6]]), use_cache=False)
    return model


def examine(model_type: str) -> dict[str, Any]:
    """What a family can do, or why it is refused.

    Returns:
        ``status``: ``not built`` (transformers does not build or run it so small), ``refused`` (with a UserError),
        ``fails`` (with another error), or ``works``. For the last: ``dtype`` of the weights;
        ``shares_prompt``; the largest difference to the reference ``alone``, ``padded`` (left-padded, in groups) and
        ``masked`` (masks in all phases); ``replay``, the largest difference of a rollout's log-probabilities and their
        replay; ``masks_act``; and ``lacks``, the sites that it does not have.
    """
    result = _examined(model_type, torch.float64)
    return result if result["status"] == "works" else _examined(model_type, torch.float32)


def _examined(model_type: str, dtype: torch.dtype) -> dict[str, Any]:
    try:
        plain = tiny(model_type, dtype)
    except Exception as error:
        return {"status": "not built", "why": _short(error)}
    tokenizer = word_tokenizer(WORDS)
    try:
        add_latent_tokens(plain, tokenizer)
        switch_off_dropout(plain)
        model = LatentModel(copy.deepcopy(plain), tokenizer, latent_steps=STEPS)
        return {"status": "works", "dtype": str(dtype).removeprefix("torch."), **compared(plain, model)}
    except UserError as error:
        return {"status": "refused", "why": str(error)}
    except Exception as error:
        return {"status": "fails", "why": _short(error)}


def compared(plain: PreTrainedModel, model: LatentModel) -> dict[str, Any]:
    """Compare the engine with the reference; see `examine`."""
    answer = model.tokenizer.encode(ANSWER, add_special_tokens=False)
    rows = model.encode_rows(QUESTIONS)
    seeds = rollout_seeds(0, 1, torch.arange(len(rows)), 2)  # [N, 2]
    answers = torch.tensor([answer] * seeds.numel())  # [N * 2, L]
    prompts = Prompts(*model.pad(rows))
    # The reference has no code of ours in its attention, so masks of attention weights are left to the tests' oracle.
    left_out = {"residual", ATTENTION_WEIGHTS, *model.sites.lacking}
    kinds = tuple(kind for kind in SITES if kind not in left_out)
    everywhere = SharedDropout(0.3, kinds, ("prompt", "latent", "answer"))
    latent = SharedDropout(0.3, tuple(k for k in kinds if k != "mlp_hidden"), ("latent",))
    with torch.no_grad():
        expected = torch.stack([reference(plain, row, answer, model) for row in rows])  # [N, L]
        alone = torch.cat([_score(model, [row], answers[:1]) for row in rows])
        padded = _score(model, rows, answers, seeds)
        noise = model.noise(everywhere, seeds.flatten())
        assert noise is not None, "p is not 0"
        factors = noise.factors("latent", 0)
        expected_masked = torch.stack(
            [
                reference(plain, rows[i // 2], answer, model, {k: f[i : i + 1] for k, f in factors.items()})
                for i in range(seeds.numel())
            ]
        )
        masked = replay(model, prompts, seeds, answers, everywhere, temperature=1.0)
        drawn = roll_out(model, prompts, seeds, latent, temperature=1.0, max_completion_length=4)
        again = replay(model, prompts, seeds, drawn.token_ids, latent, temperature=1.0)
        state, _ = think_in_groups(model, prompts, seeds, latent)
    pairs = state.hidden.view(len(rows), 2, -1)
    return {
        "shares_prompt": model.shares_prefix,
        "alone": _gap(alone, expected),
        "padded": _gap(padded, expected.repeat_interleave(2, dim=0)),
        "masked": _gap(masked, expected_masked),
        "replay": _gap(again * drawn.mask, drawn.logprobs * drawn.mask),
        "masks_act": _gap(expected_masked, expected.repeat_interleave(2, dim=0)) > 1e-3
        and _gap(pairs[:, 0], pairs[:, 1]) > 1e-3,
        "lacks": [kind for kind in model.sites.lacking if kind != ATTENTION_WEIGHTS],
    }


def reference(
    plain: PreTrainedModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    model: LatentModel,
    factors: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Log-probabilities [L] of an answer by the model's own forward pass, without a cache.

    Args:
        plain: the model as transformers made it.
        prompt: ids of the question, with the start marker.
        answer: ids.
        model: gives the ids of the markers and the modules of the sites.
        factors: held masks of all phases by site, [1, 1, F] each.
    """
    embed, factors = plain.get_input_embeddings(), factors or {}
    heads = plain.config.get_text_config().num_attention_heads
    sites = SiteMap(plain.get_decoder(), width=embedding_table(plain).shape[1], heads=heads)
    inputs = embed(torch.tensor([list(prompt)]))  # [1, S, D]
    with sites.multiplied(factors):
        for _ in range(STEPS):
            hidden = plain.get_decoder()(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1:]
            inputs = torch.cat([inputs, hidden * factors.get("thought", 1.0)], dim=1)
        inputs = torch.cat([inputs, embed(torch.tensor([[model.tokens.end, *answer[:-1]]]))], dim=1)
        logits = plain(inputs_embeds=inputs, use_cache=False).logits[0, -len(answer) :]
    return logits.double().log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0]


def _score(model: LatentModel, rows: Sequence[Sequence[int]], answers: Tensor, seeds: Tensor | None = None) -> Tensor:
    state = model.read(*model.pad(rows))
    if seeds is not None:
        state = state.repeat(seeds.shape[1])
    return model.score(model.think(state, STEPS), answers)


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite if a number is not finite."""
    gap = float((a.double() - b.double()).abs().max())
    return gap if math.isfinite(gap) else math.inf


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
