"""Options of an adapter."""

from dataclasses import dataclass

from dropout_grpo.config.ranges import check_ranges, ranged
from dropout_grpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """An adapter that is trained instead of all weights. Names are those of PEFT.

    Args:
        r: rank of the factors; when not given, there is no adapter and all weights are trained.
        lora_alpha: the product of the factors is scaled by lora_alpha / r.
        target_modules: names of the layers that get factors; every linear layer except the output head when not given.
    """

    r: int | None = ranged(None, at_least=1)
    lora_alpha: int = ranged(32, at_least=1)
    target_modules: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Check that the options describe an adapter.

        Raises:
            UserError: names the option.
        """
        check_ranges(self, "lora")
        if self.r is None and (self.lora_alpha, self.target_modules) != (32, None):
            raise UserError("lora has no r, the rank of its factors: give it, or leave the rest of lora out too.")
        if self.target_modules == ():
            raise UserError("lora.target_modules is empty: name layers, or leave it out for every linear layer.")
