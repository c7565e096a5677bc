"""The reference of the latent recurrence: one row, no padding, no cache, none of the library's code.

At every latent step and for the answer the whole prefix is run again, and a mask is a multiplication:

    h_0        last hidden state (after the final norm) at the last prompt position
    x_t        thought(h_t) * factors("latent", t)["thought"], the next input embedding       t = 0 .. n-1
    h_{t+1}    last hidden state at the position of x_t
    answer     after x_{n-1} come the end marker and the answer's tokens; the end marker predicts the first

Coconut's conventions (arXiv 2412.06769); masks as in Dropout-GRPO (arXiv 2606.10184).
Shapes: S positions so far, D width, H heads, F features of a site, L answer tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

Factors = Callable[[str, int], Mapping[str, Tensor]]
"""(phase, step) -> {site: factors [F], or [H] for heads, or [H, positions] for attention_weights}; a site that is
absent is not masked. Factors are those of the position that attends: values and attention_weights act on all that it
reads.

The phase is "prompt", "latent" or "answer" (end marker included). The step counts latent steps from 0, and is
0 in the other phases. Sites: those of `site_modules`, and "thought", which only latent positions have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleResult:
    hiddens: list[Tensor]  # h_0 .. h_n, each [D]
    logits: Tensor  # [L, V], untempered, at the position before each answer token
    logprobs: Tensor  # [L], log-softmax(logits / temperature) of the answer tokens


def no_noise(phase: str, step: int) -> Mapping[str, Tensor]:
    return {}


def identity(hidden: Tensor) -> Tensor:
    return hidden


def oracle_run(
    model: PreTrainedModel,
    prompt_ids: list[int],
    n_latent: int,
    end_id: int,
    answer_ids: list[int],
    *,
    factors: Factors = no_noise,
    temperature: float = 1.0,
    thought: Callable[[Tensor], Tensor] = identity,
) -> OracleResult:
    """Think `n_latent` steps after the prompt (which ends in the start marker), then score the answer.

    Differentiable in the model's parameters. Puts the model in eval mode, so that its own dropout is off.
    """
    assert answer_ids, "the oracle scores at least one answer token"
    model.eval()
    embed, device = model.get_input_embeddings(), model.device
    rows = [embed(torch.tensor(prompt_ids, device=device))]  # input embeddings, [*, D] each
    noise = [factors("prompt", 0)] * len(prompt_ids)  # of each position

    hiddens = [_hidden(model, rows, noise)]
    for step in range(n_latent):
        step_noise = factors("latent", step)
        vector = thought(hiddens[-1])
        if "thought" in step_noise:
            vector = vector * step_noise["thought"].to(vector)
        rows.append(vector[None])
        noise.append(step_noise)
        hiddens.append(_hidden(model, rows, noise))

    inputs = [end_id, *answer_ids[:-1]]  # each predicts the answer token after it
    rows.append(embed(torch.tensor(inputs, device=device)))
    noise += [factors("answer", 0)] * len(inputs)
    with _masked(model, noise):
        logits = model(inputs_embeds=torch.cat(rows)[None], use_cache=False).logits[0, -len(inputs) :]
    chosen = torch.tensor(answer_ids, device=device)[:, None]
    logprobs = (logits / temperature).log_softmax(-1).gather(-1, chosen)[:, 0]
    return OracleResult(hiddens=hiddens, logits=logits, logprobs=logprobs)


def oracle_greedy(
    model: PreTrainedModel,
    prompt_ids: list[int],
    n_latent: int,
    end_id: int,
    eos_id: int,
    max_new_tokens: int,
    *,
    factors: Factors = no_noise,
    thought: Callable[[Tensor], Tensor] = identity,
) -> list[int]:
    """The most likely token each time, up to and including the first `eos_id`, or `max_new_tokens`."""
    answer: list[int] = []
    while len(answer) < max_new_tokens and eos_id not in answer:
        unread = [*answer, eos_id]  # the last token is only asked for, never fed in: any would do
        with torch.no_grad():
            result = oracle_run(model, prompt_ids, n_latent, end_id, unread, factors=factors, thought=thought)
        answer.append(int(result.logits[-1].argmax()))
    return answer


def _hidden(model: PreTrainedModel, rows: list[Tensor], noise: list[Mapping[str, Tensor]]) -> Tensor:
    """Last hidden state [D] at the last position."""
    with _masked(model, noise):
        return model.base_model(inputs_embeds=torch.cat(rows)[None], use_cache=False).last_hidden_state[0, -1]


@contextmanager
def _masked(model: PreTrainedModel, noise: list[Mapping[str, Tensor]]) -> Iterator[None]:
    """Inside, every site's activation x [1, S, F] is multiplied by its factors, position by position."""
    if not any(noise):
        yield
        return
    sites = site_modules(model)
    attended = {f"layers.{i}.{kind}" for i in range(len(sites) // 4) for kind in ATTENDED}
    unknown = set[str]().union(*noise) - set(sites) - attended - {"thought"}
    if unknown:
        raise KeyError(f"no such site: {sorted(unknown)}; this model has {[*sites, 'thought']}")

    def multiply(site: str, x: Tensor) -> Tensor:
        rows = [_features(model, site, x, position) for position in noise]
        return x * torch.stack(rows).view_as(x)  # view: OPT's fc2 sees [S, F], one row's positions in order

    def before(site: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return multiply(site, args[0]), *args[1:]

    def after(site: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # attention returns its weights too
            return multiply(site, output[0]), *output[1:]
        return multiply(site, output)

    with ExitStack() as hooks:
        if attended.intersection(*[set[str]().union(*noise)]):
            hooks.enter_context(_attention_by(model, partial(_written_out, noise=noise)))
        for site, (module, end) in sites.items():
            if not any(site in position for position in noise):
                continue
            if end == "input":
                hooks.enter_context(module.register_forward_pre_hook(partial(before, site)))
            else:
                hooks.enter_context(module.register_forward_hook(partial(after, site)))
        yield


ATTENDED = ("values", "attention_weights")
"""Sites inside the attention."""


@contextmanager
def _attention_by(model: PreTrainedModel, attention: Callable[..., Any]) -> Iterator[None]:
    """Inside the block, every layer of the model uses this attention function."""
    name, before = "oracle", model.config._attn_implementation
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, eager_mask)
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


def _written_out(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    softcap: float | None = None,
    *,
    noise: list[Mapping[str, Tensor]],
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One row, query by query, on values that are masked themselves. query [1, H, S, E] -> [1, S, H, E]."""
    heads, shared_by = query.shape[1], query.shape[1] // value.shape[1]
    outputs = []
    for position, factors in enumerate(noise):
        of_values, of_weights = (factors.get(f"layers.{module.layer_idx}.{kind}") for kind in ATTENDED)
        masked = value[0].transpose(0, 1).flatten(1)  # [S, N * E], as the value projection gives them
        if of_values is not None:
            masked = masked * of_values.to(masked)[: masked.shape[1]]
        masked = masked.view(len(noise), value.shape[1], -1)
        for head in range(heads):
            scores = key[0, head // shared_by] @ query[0, head, position] * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = (scores + attention_mask[0, 0, position]).softmax(-1)
            if of_weights is not None:
                weights = weights * of_weights.to(weights)[head, : len(weights)]
            outputs.append(weights @ masked[:, head // shared_by])
    return torch.stack(outputs).view(1, len(noise), heads, -1), None


def _features(model: PreTrainedModel, site: str, x: Tensor, position: Mapping[str, Tensor]) -> Tensor:
    """One position's factors [F] for the activation x [..., F], ones where the site is not masked."""
    n_features = x.shape[-1]
    if site not in position:
        return x.new_ones(n_features)
    factors = position[site].to(x)
    if site.endswith(".heads"):
        assert factors.shape == (model.config.num_attention_heads,), f"{site}: {tuple(factors.shape)}"
        factors = factors.repeat_interleave(n_features // len(factors))
    assert factors.shape == (n_features,), f"{site}: {tuple(factors.shape)}, features {n_features}"
    return factors


def site_modules(model: PreTrainedModel) -> dict[str, tuple[nn.Module, str]]:
    """{site: (module, "input" or "output": which end of it is multiplied)}; "thought" is no module's."""
    net: Any = model  # its modules have no static types
    kind = model.config.model_type
    if kind == "gpt2":
        parts = [(b.attn, b.attn.c_proj, b.mlp, b.mlp.c_proj) for b in net.transformer.h]
    elif kind == "gpt_neox":
        parts = [(b.attention, b.attention.dense, b.mlp, b.mlp.dense_4h_to_h) for b in net.gpt_neox.layers]
    elif kind == "opt":  # has no MLP module: fc2 is its last projection, and its end
        parts = [(b.self_attn, b.self_attn.out_proj, b.fc2, b.fc2) for b in net.model.decoder.layers]
    elif kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"):
        parts = [(b.self_attn, b.self_attn.o_proj, b.mlp, b.mlp.down_proj) for b in net.model.layers]
    else:
        raise KeyError(f"the oracle does not know the modules of {kind!r}")
    sites: dict[str, tuple[nn.Module, str]] = {}
    for i, (attention, attention_projection, mlp, mlp_projection) in enumerate(parts):
        sites[f"layers.{i}.attention"] = (attention, "output")
        sites[f"layers.{i}.heads"] = (attention_projection, "input")
        sites[f"layers.{i}.mlp"] = (mlp, "output")
        sites[f"layers.{i}.mlp_hidden"] = (mlp_projection, "input")
    return sites
