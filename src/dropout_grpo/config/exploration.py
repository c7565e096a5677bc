"""Options of an exploration, and the import path of each kind. Does not import torch."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from dropout_grpo import old_names
from dropout_grpo.config.needs import Need
from dropout_grpo.config.ranges import check_ranges, ranged
from dropout_grpo.errors import UserError, nearest

KINDS = {
    "shared_dropout": "dropout_grpo.exploration.dropout:SharedDropout",
    "per_step_dropout": "dropout_grpo.exploration.dropout:PerStepDropout",
    "gaussian": "dropout_grpo.exploration.gaussian:Gaussian",
    "none": "dropout_grpo.exploration.base:NoExploration",
}
"""The import path of each exploration, by kind."""


@dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """The noise that makes the rollouts of a question differ.

    Args:
        kind: shared_dropout is the method of the paper; per_step_dropout, an ablation, draws a fresh mask at every
            latent step; with none, the answer's temperature is the only source of randomness. Alternatives: gaussian
            multiplies activations (option sigma, 0.1). Give your own class by its import path: my_noise.py:Gaussian or
            package.module:Gaussian.
        p: probability that a masked activation is zero, in [0, 1); for the two kinds of dropout.
        sites: activations that the noise multiplies: residual (attention and MLP outputs), attention, mlp, mlp_hidden,
            heads, thought, values (value features, also those of the cached prompt), attention_weights (one factor per
            head and key).
        phases: when the noise is on: prompt, latent, answer.
        options: further arguments of the kind's class, such as {sigma: 0.1}.
    """

    kind: str = "shared_dropout"
    p: float = ranged(0.1, at_least=0, below=1)
    sites: tuple[str, ...] = ("residual",)
    phases: tuple[str, ...] = ("latent",)
    options: dict[str, Any] = field(default_factory=dict)

    NEEDS: ClassVar[tuple[Need, ...]] = (  # a class of the user may have any of them
        Need(("p",), "kind shared_dropout or per_step_dropout", lambda e: e.kind.endswith("dropout") or ":" in e.kind),
        Need(("sites",), "a kind that multiplies activations", lambda e: e.kind != "none"),
        Need(("phases",), "a kind other than none", lambda e: e.kind != "none"),
    )

    def __post_init__(self) -> None:
        """Check the kind and the ranges.

        Raises:
            UserError: names the option.
        """
        check_ranges(self, "exploration")
        if self.kind in old_names.KINDS:
            raise UserError(
                f"exploration.kind {self.kind} is no longer part of the package: in a checkout of its repository, give "
                f"{old_names.KINDS[self.kind]}."
            )
        if self.kind not in KINDS and ":" not in self.kind:
            raise UserError(
                f"exploration.kind {self.kind}: it must be one of {', '.join(KINDS)}"
                f"{nearest(self.kind, tuple(KINDS))}, or your own class: path/to/file.py:Class or "
                "package.module:Class."
            )
