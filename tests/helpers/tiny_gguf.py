"""Small language models as GGUF files, written as llama.cpp's converter writes them.

Weights are those of a transformers model: the file's oracle. A byte-level BPE tokenizer with chat tokens goes with it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, TokenType
from gguf.quants import dequantize, quantize
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.convert_slow_tokenizer import bytes_to_unicode

CHAT = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("1 2", "Ġ h", "a s", "Ġh as")
TOKENS = (*SPECIAL, *bytes_to_unicode().values(), "12", "Ġh", "as", "Ġhas")

_LAYER = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(
    file: Path, architecture: str, *, tied: bool = True, quantized: bool = True, missing: str | None = None
) -> PreTrainedModel:
    """Write a file with random weights; return the same model in float32.

    Args:
        file: to write.
        architecture: llama (grouped heads, queries and keys in llama.cpp's order) or qwen2 (biases).
        tied: input embeddings and output head are one matrix.
        quantized: matrices in blocks of 8 bits (Q8_0), which the returned model has dequantized; else float32.
        missing: a weight that is left out.
    """
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(3)
    writer = gguf.GGUFWriter(file, architecture)
    _describe(writer, config)
    for name, parameter in model.named_parameters():
        if name == missing:
            continue
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
            matrix = quantized and parameter.ndim == 2
            _write(writer, architecture, name, parameter, config, GGMLQuantizationType.Q8_0 if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write(
    writer: gguf.GGUFWriter,
    architecture: str,
    name: str,
    parameter: torch.Tensor,
    config: Any,
    kind: GGMLQuantizationType | None,
) -> None:
    """One tensor; the parameter becomes what the file says."""
    rows: Callable[[np.ndarray], np.ndarray] = lambda w: w  # noqa: E731
    back = rows
    if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        # llama.cpp rotates neighbouring features, transformers the two halves of a head
        rows = lambda w: w.reshape(heads, 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)  # noqa: E731
        back = lambda w: w.reshape(heads, -1, 2, w.shape[1]).swapaxes(1, 2).reshape(w.shape)  # noqa: E731
    data = np.ascontiguousarray(rows(parameter.numpy()))
    if kind is None:
        writer.add_tensor(_name(name), data)
        return
    packed = quantize(data, kind)
    writer.add_tensor(_name(name), packed, raw_dtype=kind)
    parameter.copy_(torch.from_numpy(back(dequantize(packed, kind)).copy()))


def _name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER[rest]}"


def _describe(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if config.model_type == "llama" else "qwen2")
    writer.add_token_list(list(TOKENS))
    writer.add_token_types([TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in TOKENS])
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)
