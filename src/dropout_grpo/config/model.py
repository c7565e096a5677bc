"""Options of the model that the curriculum starts from."""

from dataclasses import dataclass
from typing import ClassVar

from dropout_grpo.config.needs import Need
from dropout_grpo.config.ranges import check_ranges, ranged
from dropout_grpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The language model that the curriculum starts from.

    Args:
        name_or_path: hub name or folder of a causal language model, or a GGUF file (or a folder with one), whose
            weights are dequantized. When not given, a model with random weights and the built-in task's word-level
            tokenizer is made, of the type and size below.
        model_type: architecture of the model made from scratch, as transformers names it: gpt2, llama, qwen3, ...
        n_embd: width of the model made from scratch.
        n_layer: its layers.
        n_head: its attention heads.
        n_positions: its positions.
    """

    name_or_path: str | None = None
    model_type: str = "gpt2"
    n_embd: int = ranged(128, at_least=1)
    n_layer: int = ranged(3, at_least=1)
    n_head: int = ranged(4, at_least=1)
    n_positions: int = ranged(160, at_least=1)

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(
            ("model_type", "n_embd", "n_layer", "n_head", "n_positions"),
            "a model from scratch, and name_or_path names another one",
            lambda model: model.name_or_path is None,
        ),
    )

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if self.n_embd % self.n_head:
            raise UserError(f"model.n_embd={self.n_embd} must be a multiple of model.n_head={self.n_head}.")
