"""Options of an evaluation."""

from dataclasses import dataclass

from dropout_grpo.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How to evaluate.

    Args:
        num_samples: n, answers under masks for each problem; 0 measures the plain network alone.
        temperature: of the answers under masks; 0 decodes greedily, so that only the masks differ.
        max_new_tokens: answer tokens at most.
        batch_size: rows (answers) at once; halved where memory runs out.
        latent_steps: thoughts an answer takes; the checkpoint's own number when not given.
    """

    num_samples: int = 8
    temperature: float = 0.0
    max_new_tokens: int = 8
    batch_size: int = 1024
    latent_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be measured.

        Raises:
            UserError: names the option.
        """
        least_values = {"num_samples": 0, "temperature": 0, "max_new_tokens": 1, "batch_size": 1, "latent_steps": 0}
        for name, least in least_values.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"evaluation.{name}={value} must be at least {least}.")
