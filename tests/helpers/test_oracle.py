"""Checks of the oracle itself.

Two independent witnesses: a GPT-2 written out by hand, which walks position by position with a cache where
the oracle runs the whole prefix; and weights scaled where activations are masked, on any architecture.
"""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from transformers import PreTrainedModel

from helpers.oracle import Factors, OracleResult, oracle_greedy, oracle_run, site_modules
from helpers.tiny import EOS_ID, EXTRA_KINDS, KINDS, PAD_ID, tiny_model

PROMPT, END, ANSWER = [5, 9, 11, 28], 30, [15, 7, EOS_ID]
ALL_KINDS = KINDS + EXTRA_KINDS


def random_factors(model: PreTrainedModel, seed: int = 1) -> Factors:
    """Different factors in [0.5, 1.5] for every (phase, step, site), on every site."""
    widths = {"attention": 16, "mlp": 16, "mlp_hidden": 24, "heads": 4, "thought": 16}
    sites = [*site_modules(model), "thought"]

    def factors(phase: str, step: int) -> Mapping[str, Tensor]:
        number = ["prompt", "latent", "answer"].index(phase) + 3 * step
        generator = torch.Generator().manual_seed(100 * seed + number)
        draw = {s: torch.rand(widths[s.split(".")[-1]], generator=generator) for s in sites}
        draw |= {f"layers.{i}.values": torch.rand(16, generator=generator) for i in range(2)}
        draw |= {f"layers.{i}.attention_weights": torch.rand(4, 20, generator=generator) for i in range(2)}
        return {site: 0.5 + u.double() for site, u in draw.items()}

    return factors


def in_phases(factors: Factors, *phases: str) -> Factors:
    return lambda phase, step: factors(phase, step) if phase in phases else {}


def agree(a: OracleResult, b: OracleResult, tolerance: float) -> bool:
    pairs = zip([*a.hiddens, a.logits, a.logprobs], [*b.hiddens, b.logits, b.logprobs], strict=True)
    return all(torch.allclose(x, y, rtol=0, atol=tolerance) for x, y in pairs)


class HandWrittenGPT2:
    """GPT-2 (Radford et al. 2019) one position at a time: 2 layers, width 16, 4 heads of width 4."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.w = {name.removeprefix("transformer."): value for name, value in model.state_dict().items()}
        self.keys: list[list[Tensor]] = [[], []]
        self.values: list[list[Tensor]] = [[], []]

    def norm(self, name: str, x: Tensor) -> Tensor:
        return layer_norm(x, [16], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps=1e-5)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def read(self, x: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """The next input embedding [16] -> its last hidden state [16]."""
        x = x + self.w["wpe.weight"][len(self.keys[0])]
        for i in range(2):
            masks = {site: noise.get(f"layers.{i}.{site}", 1.0) for site in ("attention", "mlp", "mlp_hidden")}
            query, key, value = self.linear(f"h.{i}.attn.c_attn", self.norm(f"h.{i}.ln_1", x)).split(16)
            self.keys[i].append(key)
            self.values[i].append(value)
            heads = []
            for head in range(4):
                part = slice(4 * head, 4 * head + 4)
                scores = torch.stack([query[part] @ k[part] / math.sqrt(4) for k in self.keys[i]])
                weights = scores.exp() / scores.exp().sum()
                if noise:
                    weights = weights * noise[f"layers.{i}.attention_weights"][head][: len(weights)]
                of_values = noise[f"layers.{i}.values"][part] if noise else 1.0
                mixed = sum(weight * v[part] * of_values for weight, v in zip(weights, self.values[i], strict=True))
                heads.append(mixed * noise[f"layers.{i}.heads"][head] if noise else mixed)
            x = x + self.linear(f"h.{i}.attn.c_proj", torch.cat(heads)) * masks["attention"]
            z = self.linear(f"h.{i}.mlp.c_fc", self.norm(f"h.{i}.ln_2", x))
            gelu = 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
            x = x + self.linear(f"h.{i}.mlp.c_proj", gelu * masks["mlp_hidden"]) * masks["mlp"]
        return self.norm("ln_f", x)

    def run(self, n_latent: int, factors: Factors, temperature: float) -> OracleResult:
        wte = self.w["wte.weight"]  # tied: also the output projection
        hidden = [self.read(wte[token], factors("prompt", 0)) for token in PROMPT][-1]
        hiddens = [hidden]
        for step in range(n_latent):
            noise = factors("latent", step)
            hidden = self.read(hidden * noise.get("thought", 1.0), noise)
            hiddens.append(hidden)
        read = [self.read(wte[token], factors("answer", 0)) for token in [END, *ANSWER[:-1]]]
        logits = torch.stack([wte @ hidden for hidden in read])
        scaled = logits / temperature
        logprobs = [row[token] - row.exp().sum().log() for row, token in zip(scaled, ANSWER, strict=True)]
        return OracleResult(hiddens=hiddens, logits=logits, logprobs=torch.stack(logprobs))


@pytest.mark.parametrize(
    ("n_latent", "phases"),
    [(0, ("prompt", "answer")), (2, ()), (2, ("latent",)), (2, ("answer",)), (2, ("prompt", "latent", "answer"))],
)
def test_oracle_equals_a_gpt2_written_by_hand(n_latent: int, phases: tuple[str, ...]) -> None:
    model = tiny_model("gpt2")
    factors = in_phases(random_factors(model), *phases)
    result = oracle_run(model, PROMPT, n_latent, END, ANSWER, factors=factors, temperature=0.7)
    assert agree(result, HandWrittenGPT2(model).run(n_latent, factors, 0.7), 1e-10)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_without_thought_or_noise_it_is_the_plain_forward_pass(kind: str) -> None:
    model = tiny_model(kind)
    plain = model(torch.tensor([[*PROMPT, END, *ANSWER]])).logits[0]
    result = oracle_run(model, PROMPT, 0, END, ANSWER)
    # The end marker stands at position 4 and predicts the answer's first token.
    torch.testing.assert_close(result.logits, plain[4:7], rtol=0, atol=1e-5)
    assert not torch.allclose(result.logits, plain[5:8], atol=1e-2)
    # h_0 is what the output projection reads at the last prompt position: it comes after the final norm.
    head = model.get_output_embeddings()(result.hiddens[0])
    if kind == "gemma2":
        head = 30 * torch.tanh(head / 30)  # Gemma 2 caps its logits
    torch.testing.assert_close(head, plain[3], rtol=0, atol=1e-5)


# kind -> the names of the attention's and the MLP's last projection in layer {}, and of the projection of values
PROJECTIONS = {
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj", "transformer.h.{}.attn.c_attn"),
    "gpt_neox": (
        "gpt_neox.layers.{}.attention.dense",
        "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "gpt_neox.layers.{}.attention.query_key_value",
    ),
    "opt": (
        "model.decoder.layers.{}.self_attn.out_proj",
        "model.decoder.layers.{}.fc2",
        "model.decoder.layers.{}.self_attn.v_proj",
    ),
    **dict.fromkeys(
        ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
        ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj", "model.layers.{}.self_attn.v_proj"),
    ),
}
VALUES = {  # which outputs of the projection are values: width 16, or 2 heads of 4 or 8
    "gpt2": range(32, 48),
    "gpt_neox": [12 * h + 8 + e for h in range(4) for e in range(4)],
    "llama": range(8),
    "qwen2": range(8),
}


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("site", ["attention", "mlp", "mlp_hidden", "heads", "values"])
def test_a_held_mask_is_a_scaling_of_weights(kind: str, site: str) -> None:
    """Design, contract 3: one mask at all positions equals scaling the rows or columns of a weight matrix."""
    model, layer = tiny_model(kind), 1
    name, entries = f"layers.{layer}.{site}", list(VALUES.get(kind, range(16)))
    mask = random_factors(model)("prompt", 0)[name]
    mask = mask[: len(entries)] if site == "values" else mask
    masked = oracle_run(model, PROMPT, 2, END, ANSWER, factors=lambda phase, step: {name: mask})
    unmasked = oracle_run(model, PROMPT, 2, END, ANSWER)
    assert not agree(masked, unmasked, 1e-2)

    attention, mlp, values = PROJECTIONS[kind]
    projection = {"mlp": mlp, "mlp_hidden": mlp, "values": values}.get(site, attention).format(layer)
    parameters = model.state_dict()  # shares the model's memory
    bias = parameters.get(f"{projection}.bias")
    with torch.no_grad():
        weight = parameters[f"{projection}.weight"]
        weight = weight.T if kind == "gpt2" else weight  # a view [out, in]; Conv1D stores [in, out]
        if site in ("mlp_hidden", "heads"):  # the projection's input, its heads in order
            weight *= mask.repeat_interleave(weight.shape[1] // len(mask))
        else:  # its output, bias included
            rows = entries if site == "values" else list(range(len(mask)))
            weight[rows] *= mask[:, None]
            if bias is not None:
                bias[rows] *= mask
    assert agree(oracle_run(model, PROMPT, 2, END, ANSWER), masked, 1e-5)


def test_thought_is_what_is_fed_back() -> None:
    """A thought that is always one token's embedding is that token at the end of the prompt."""
    model = tiny_model("gpt2")
    pause = model.get_input_embeddings()(torch.tensor(29))
    fed = oracle_run(model, PROMPT, 1, END, ANSWER, thought=lambda hidden: pause)
    as_token = oracle_run(model, [*PROMPT, 29], 0, END, ANSWER)
    torch.testing.assert_close(fed.hiddens[1], as_token.hiddens[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(fed.logits, as_token.logits, rtol=0, atol=1e-12)


def test_greedy_answer_is_the_argmax_at_every_position() -> None:
    model = tiny_model("qwen2")
    factors = random_factors(model)
    answer = oracle_greedy(model, PROMPT, 2, END, PAD_ID, 5, factors=factors)
    assert len(answer) == 5
    scored = oracle_run(model, PROMPT, 2, END, answer, factors=factors)
    assert scored.logits.argmax(-1).tolist() == answer
    # Called the end of text, the third token ends the answer where it first occurs, itself included.
    stop = answer.index(answer[2])
    assert oracle_greedy(model, PROMPT, 2, END, answer[2], 5, factors=factors) == answer[: stop + 1]


def test_the_models_own_dropout_is_off() -> None:
    model = tiny_model("gpt2")
    assert model.config.resid_pdrop == 0.1
    before = oracle_run(model, PROMPT, 2, END, ANSWER)
    model.train()
    noisy = model(torch.tensor([PROMPT])).logits
    assert not torch.allclose(noisy, model(torch.tensor([PROMPT])).logits)
    assert agree(oracle_run(model, PROMPT, 2, END, ANSWER), before, 0.0)
