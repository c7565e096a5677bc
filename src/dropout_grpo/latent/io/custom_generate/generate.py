"""Adds latent thoughts before the answer to transformers' own ``generate``.

    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, padding_side="left")
    inputs = tokenizer(["How much is 2 + 3?\\n"], return_tensors="pt")
    answers = model.generate(**inputs, custom_generate=CHECKPOINT, trust_remote_code=True, max_new_tokens=16)
    tokenizer.batch_decode(answers, skip_special_tokens=True)  # ["### 5"]

This file needs only transformers. It reads ``latent_config.json`` and ``thought.safetensors`` from the
checkpoint. All options of ``generate`` apply to the answer. The prompt is left-padded, and only the answer is returned.

Without options an answer is greedy: sampling and penalties that ``generation_config.json`` has from the base model are
for answers in words.
"""

import json
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

_GREEDY = {"do_sample": False, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


def generate(
    model: PreTrainedModel,
    inputs: Tensor | None = None,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    latent_steps: int | None = None,
    **options: Any,
) -> Tensor:
    """The tokens of the answers, [B, L].

    Args:
        model: a checkpoint with Coconut's latent tokens.
        inputs: ids of the questions, each with a final newline, [B, S]; left-padded.
        input_ids: the same as ``inputs``, under the name that the tokenizer uses.
        attention_mask: 0 on padding, [B, S]; all ones when not given.
        latent_steps: thoughts per answer; the checkpoint's own number when not given.
        **options: options of ``generate``, for the answer.
    """
    ids = inputs if input_ids is None else input_ids
    if ids is None:
        raise ValueError("give input_ids: the tokens of the questions, each with a final newline.")
    mask = torch.ones_like(ids) if attention_mask is None else attention_mask
    checkpoint, revision = str(model.name_or_path), getattr(model.config, "_commit_hash", None)
    config = json.loads(_file(checkpoint, revision, "latent_config.json").read_text(encoding="utf-8"))
    start, end, eos = _tokens(checkpoint, revision)
    steps = config["latent_steps"] if latent_steps is None else latent_steps
    embed, rows = model.get_input_embeddings(), ids.shape[0]
    one = mask.new_ones(rows, 1)
    if not bool((ids[:, -1] == start).all()):
        ids, mask = torch.cat([ids, torch.full_like(ids[:, :1], start)], dim=1), torch.cat([mask, one], dim=1)
    embeds = inputs_of_step = embed(ids)  # [B, S, D]
    thought = _thought(checkpoint, revision, config).to(embeds)
    positions, cache = (mask.cumsum(-1) - 1).clamp(min=0), None
    # transformers before 5.24 has the older name
    cache_name = "cache" if "cache" in signature(model.get_decoder().forward).parameters else "past_key_values"
    with torch.no_grad():
        for _ in range(steps):
            output = model.get_decoder()(
                inputs_embeds=inputs_of_step,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                **{cache_name: cache},
            )
            cache = output[cache_name]
            inputs_of_step = thought(output.last_hidden_state[:, -1:]).to(embeds.dtype)  # [B, 1, D]
            embeds = torch.cat([embeds, inputs_of_step], dim=1)
            mask, positions = torch.cat([mask, one], dim=1), positions[:, -1:] + 1
    options.pop("token_type_ids", None)  # of some tokenizers, as long as the question
    if options.get("generation_config") is None:
        stops = model.generation_config.eos_token_id
        stops = sorted({*(stops if isinstance(stops, list) else [stops]), eos} - {None})
        options = {**_GREEDY, "eos_token_id": stops, **options}
    marker = embed(torch.full_like(ids[:, :1], end))
    answers: Tensor = model.generate(  # type: ignore[operator]
        inputs_embeds=torch.cat([embeds, marker], dim=1), attention_mask=torch.cat([mask, one], dim=1), **options
    )
    return answers


@lru_cache(maxsize=8)
def _tokens(checkpoint: str, revision: str | None) -> tuple[int, int, int | None]:
    """The ids of the start and end markers and of EOS."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, revision=revision)
    vocabulary = tokenizer.get_vocab()
    return vocabulary["<|start-latent|>"], vocabulary["<|end-latent|>"], tokenizer.eos_token_id


def _file(checkpoint: str, revision: str | None, name: str) -> Path:
    path = cached_file(checkpoint, name, revision=revision)
    if path is None:
        raise OSError(f"{checkpoint} has no {name}.")
    return Path(path)


def _thought(checkpoint: str, revision: str | None, config: dict) -> nn.Module:
    """The module that makes a thought: the hidden state itself, a learned vector (pause), or a projection."""
    kind = config.get("thought", "hidden_state")
    if kind == "hidden_state":
        return nn.Identity()
    tensors = load_file(_file(checkpoint, revision, "thought.safetensors"))
    if kind == "pause":
        return _Pause(tensors["vector"])
    inner, width = tensors["prj.1.weight"].shape
    layers = {"1": nn.Linear(width, inner), "2": nn.GELU(), "3": nn.Linear(inner, width), "ln": nn.LayerNorm(width)}
    projection = nn.Sequential()
    for name, layer in layers.items():
        projection.add_module(name, layer)
    projection.load_state_dict({name.removeprefix("prj."): tensor for name, tensor in tensors.items()})
    return projection


class _Pause(nn.Module):
    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.vector = vector

    def forward(self, hidden: Tensor) -> Tensor:
        return self.vector.to(hidden).expand_as(hidden)
