"""Makes a small language model with random weights, for tasks that are learnt from scratch and for ``--smoke``."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from dropout_grpo.errors import UserError


def scratch_model(
    tokenizer: PreTrainedTokenizerBase,
    *,
    n_embd: int,
    n_layer: int,
    n_head: int,
    n_positions: int,
    model_type: str = "gpt2",
    seed: int = 0,
) -> PreTrainedModel:
    """Make a causal language model of any architecture of transformers. A pure function of its arguments.

    Args:
        tokenizer: gives the vocabulary's size and the special tokens.
        n_embd: width of the residual stream; the MLP is four times as wide.
        n_layer: number of layers.
        n_head: number of attention heads, each with its own keys and values.
        n_positions: maximum length of a sequence.
        model_type: the architecture's name in transformers: gpt2, llama, qwen3, ...
        seed: seed of the weights.

    Raises:
        UserError: transformers has no causal language model of that type.
    """
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": n_embd,
        "num_hidden_layers": n_layer,
        "num_attention_heads": n_head,
        "max_position_embeddings": n_positions,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        # A thought is an output that is read as an input, so input and output embeddings are tied, as in GPT-2.
        "tie_word_embeddings": True,
        # 0.02 suits GPT-2's width of 768. With it, the layers of a narrow model contribute almost nothing at the start,
        # and it takes twice as many updates until the model begins to learn.
        "initializer_range": 0.02 * (768 / n_embd) ** 0.5,
    }
    if model_type == "gpt2":
        sizes["activation_function"] = "gelu"  # one kernel; GPT-2's own gelu_new is several
    else:  # other architectures have separate settings for what GPT-2 derives from the above
        sizes |= {"intermediate_size": 4 * n_embd, "num_key_value_heads": n_head, "head_dim": n_embd // n_head}
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator
        torch.default_generator.manual_seed(seed)
        try:
            kind = type(AutoConfig.for_model(model_type).get_text_config())  # of a model that also sees, its text model
            return AutoModelForCausalLM.from_config(kind(**sizes))
        except ValueError as error:
            raise UserError(
                f"model_type {model_type!r} is not a causal language model that transformers knows: give gpt2, llama, "
                "qwen3 or the model_type of another model's config.json."
            ) from error
