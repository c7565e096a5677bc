"""Very small models and a tokenizer, built offline from configs.

Every model has 2 layers, width 16, 4 attention heads (2 key/value heads where the architecture groups them),
an MLP of width 24 and 64 positions. Qwen3 and Gemma have heads of width 8, so that heads x width is not the
model's width: sizes that could be confused with one another differ.

``VARIANTS`` are the same architectures as other published models configure them: tied embeddings (Llama 3.2 1B,
Qwen2.5 0.5B), a sliding window on every layer (Mistral 7B v0.1) or on one (Qwen2), and OPT-350m, which norms after
its blocks, has no final norm, and embeddings (width 12) narrower than the model.

Only GPT-2 computes in the dtype it is given. The eager attention of the others takes its softmax in float32
whatever the dtype, and most take norms and rotary angles so too. Two ways to compute the same float64 logits
(cached or not) agree to 5e-15 for GPT-2 and to 4e-6 for the others, and finite differences need GPT-2.
"""

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

KINDS = ("gpt2", "llama", "qwen2", "qwen3")
EXTRA_KINDS = ("gemma", "gemma2", "gemma3_text", "gpt_neox", "opt")
WINDOWED_KINDS = ("gemma2", "gemma3_text")  # their first layer has a sliding window, as wide as their positions
WIDE_HEADS = ("qwen3", "gemma", "gemma2", "gemma3_text")  # 8, where 16 / 4 would be 4

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "qwen2_window": ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "opt_350m": ("opt", {"word_embed_proj_dim": 12, "do_layer_norm_before": False}),
}

SPECIAL = ("<pad>", "<eos>", "<unk>")
WORDS = (*SPECIAL, *"0123456789", "###", "\n", *".,?=+-*", "Ann", "Bob", "has", "gets", "how", "many")
WORD = Regex(r"\n|###|\w+|[^\w\s]")  # what is between two words, spaces, is dropped


def tiny_model(
    kind: str,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    *,
    vocab_size: int = 40,
    n_layer: int = 2,
    max_positions: int = 64,
    std: float = 0.3,
    attn_implementation: str = "eager",
) -> PreTrainedModel:
    """A randomly initialised causal LM in eval mode, a pure function of its arguments.

    The weights are drawn in float64 and rounded to `dtype`, so that one model exists in every dtype. Biases
    and norm gains are spread: a bias of 0 or a gain of 1 would hide mistakes. Leaves the global RNG alone.
    GPT-2 and OPT keep the dropout of 0.1 that their configs ship. Raises KeyError for an unknown kind.
    """
    config = _config(kind, vocab_size, n_layer, max_positions)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attn_implementation).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = std * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 1:  # a bias or a norm's gain: transformers starts it at a constant, 0 or 1
                noise += parameter
            parameter.copy_(noise)
    return model


def _config(kind: str, vocab_size: int, n_layer: int, max_positions: int) -> PreTrainedConfig:
    special = {"pad_token_id": PAD_ID, "bos_token_id": EOS_ID, "eos_token_id": EOS_ID}
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": max_positions}
    shape = {"hidden_size": 16, "num_hidden_layers": n_layer, "num_attention_heads": 4}
    grouped = {**sizes, **shape, "intermediate_size": 24, "num_key_value_heads": 2}
    windowed = {**grouped, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": max_positions}
    options: dict[str, dict[str, object]] = {
        "gpt2": {"n_positions": max_positions, "n_embd": 16, "n_layer": n_layer, "n_head": 4, "n_inner": 24}
        | {"vocab_size": vocab_size},
        "llama": grouped,
        "qwen2": grouped,
        "qwen3": {**grouped, "head_dim": 8},
        "mistral": grouped,
        "gemma": {**grouped, "head_dim": 8},
        "gemma2": windowed,
        "gemma3_text": {**windowed, "layer_types": ["sliding_attention", *["full_attention"] * (n_layer - 1)]},
        "gpt_neox": {**sizes, **shape, "intermediate_size": 24},
        "opt": {**sizes, **shape, "ffn_dim": 24, "word_embed_proj_dim": 16},
    }
    architecture, changes = VARIANTS.get(kind, (kind, {}))
    if architecture not in options:
        raise KeyError(f"tiny_model knows {', '.join([*options, *VARIANTS])}, not {kind!r}")
    return AutoConfig.for_model(architecture, **{**options[architecture], **changes, **special})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of 28 tokens; special tokens can be added. A number of two digits is unknown.

    Encoding drops spaces, decoding puts one between any two tokens: "### 7" survives the round trip.
    """
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = Split(WORD, behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
