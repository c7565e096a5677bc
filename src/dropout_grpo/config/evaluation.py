"""Options of an evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from dropout_grpo.config.needs import Need
from dropout_grpo.config.ranges import check_ranges, ranged


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How to evaluate.

    Args:
        num_samples: n, number of answers under masks for each problem; 0 measures only the plain network.
        temperature: temperature of the answers under masks; 0 decodes greedily, and only the masks differ.
        max_new_tokens: maximum number of answer tokens.
        batch_size: number of rows (answers) at once; halved when memory runs out.
        latent_steps: number of thoughts before an answer; the checkpoint's own number if not given.
        tolerance: two numbers count as equal if they differ by at most this; 0.005 for right answers that are rounded
            to two decimals.
    """

    num_samples: int = ranged(8, at_least=0, at_most=65536)
    temperature: float = ranged(0.0, at_least=0)
    max_new_tokens: int = ranged(8, at_least=1)
    batch_size: int = ranged(1024, at_least=1)
    latent_steps: int | None = ranged(None, at_least=0)
    tolerance: float = ranged(0.0, at_least=0)

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(("temperature",), "num_samples above 0", lambda evaluation: evaluation.num_samples > 0),
    )

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: names the option.
        """
        check_ranges(self, "evaluation")
