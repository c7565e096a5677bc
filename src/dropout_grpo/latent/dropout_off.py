"""Sets a model's own dropout to zero."""

from torch import nn
from transformers import PreTrainedModel


def switch_off_dropout(model: PreTrainedModel) -> None:
    """Zero every ``nn.Dropout`` and every float attribute or config entry that names a dropout probability.

    Attention dropout is often a plain number that is passed to a function (``attention_dropout`` in Llama and Qwen),
    and GPT-2's default is 0.1. If one were left, ``train()`` would switch on noise that cannot be replayed from a seed.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        _zero(module)
    _zero(model.config)


def _zero(holder: object) -> None:
    for name, value in list(vars(holder).items()):
        if ("dropout" in name or name.endswith("_pdrop") or name.endswith("drop")) and isinstance(value, float):
            setattr(holder, name, 0.0)
