"""Options of an exploration."""

from dataclasses import dataclass
from typing import Literal

from dropout_grpo.ranges import check_ranges, ranged


@dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """Where a rollout's randomness in the latent phase comes from.

    Args:
        kind: shared_dropout is the method; per_step_dropout the ablation with a fresh mask at every latent step; none
            leaves the answer's temperature as the only source.
        p: probability that a masked activation is zero, in [0, 1).
        sites: activations that the mask multiplies: residual (attention and MLP outputs), attention, mlp, mlp_hidden,
            heads, thought.
        phases: when the mask is on: prompt, latent, answer.
    """

    kind: Literal["shared_dropout", "per_step_dropout", "none"] = "shared_dropout"
    p: float = ranged(0.1, at_least=0, below=1)
    sites: tuple[str, ...] = ("residual",)
    phases: tuple[str, ...] = ("latent",)

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: names the option.
        """
        check_ranges(self, "exploration")
