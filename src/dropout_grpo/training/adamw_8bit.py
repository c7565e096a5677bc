"""AdamW with 8-bit moments, from bitsandbytes (Dettmers et al. 2021, arXiv 2110.02861): 2 bytes per parameter, not 8.

Moments of embeddings are float32, as in transformers, and those of tensors with fewer than 4,096 elements. bitsandbytes
computes on CPU and CUDA.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dropout_grpo.errors import UserError
from dropout_grpo.training.embeddings import tables_of

EIGHT_BIT = ("state1", "state2")
"""Names of the moments in the state."""

BLOCK = 256
"""Elements of a moment that share a scale, ``absmax1`` or ``absmax2`` in the state."""

_TABLES = {"state1": ("qmap1", "dynamic"), "state2": ("qmap2", "udynamic")}
"""For each moment, the names of the table that its 8-bit codes index: in the state, and in bitsandbytes."""


def eight_bit_parameters(model: nn.Module, optimizer: str) -> list[nn.Parameter]:
    """The parameters whose moments the optimiser of this name holds in 8 bits: ``adamw_8bit`` all but embeddings."""
    if optimizer != "adamw_8bit":
        return []
    tables = {id(p) for module in tables_of(model) for p in module.parameters()}
    return [p for p in model.parameters() if id(p) not in tables]


class AdamW8bit(Optimizer):
    """bitsandbytes' AdamW, with a state that consists of tensors that can be saved.

    Args:
        groups: parameter groups.
        eight_bit: the parameters whose moments are held in 8 bits; those of the others are float32.
        learning_rate: learning rate of all groups.
        betas: betas of AdamW.

    Raises:
        UserError: bitsandbytes is not installed.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        eight_bit: Sequence[nn.Parameter],
        *,
        learning_rate: float,
        betas: tuple[float, float],
    ) -> None:
        try:
            from bitsandbytes.optim import AdamW8bit as Theirs
        except ImportError as error:
            raise UserError(
                "the optimiser adamw_8bit needs bitsandbytes, which is not installed: pip install "
                "'dropout-grpo[adamw-8bit]'."
            ) from error

        small = {id(p) for p in eight_bit}

        class Mixed(Theirs):
            # Their own way is a global table of ids, which outlives the parameters.
            def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
                bits = 8 if id(group["params"][pindex]) in small else 32
                return super().get_config(gindex, pindex, group) | {"optim_bits": bits}

        self._inner = Mixed([group for group in groups if group["params"]], lr=learning_rate, betas=betas)
        super().__init__(self._inner.param_groups, {})  # the same groups, whose rates a schedule changes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters that have gradients."""
        self._inner.step()

    def state_dict(self) -> dict[str, Any]:
        """As torch's; without the tables of the 8-bit codes, and with ``step`` as a tensor."""
        whole = Optimizer.state_dict(self._inner)
        tables = {table for table, _ in _TABLES.values()}
        whole["state"] = {
            i: {name: value for name, value in entry.items() if name not in tables}
            | {"step": torch.tensor(float(entry["step"]))}
            for i, entry in whole["state"].items()
        }
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of ``state_dict``; groups stay as they are."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._inner.fill_qmap()
        for i, entry in state_dict["state"].items():
            parameter = parameters[i]
            own = {name: tensor.to(parameter.device) for name, tensor in entry.items()} | {"step": int(entry["step"])}
            for moment, (table, name) in _TABLES.items():
                if entry[moment].dtype == torch.uint8:
                    own[table] = self._inner.name2qmap[name].to(parameter.device)
            self._inner.state[parameter] = own
