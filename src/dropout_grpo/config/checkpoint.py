"""Options of a checkpoint that a command reads."""

from dataclasses import dataclass

from dropout_grpo.config.ranges import check_ranges, ranged


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What a published checkpoint does not record. A folder that dropout-grpo has written needs neither.

    Args:
        latent_steps: number of thoughts before an answer, for a checkpoint without latent_config.json.
        base: folder or hub name of the model that a state_dict file of Coconut (checkpoint_33) or CODI
            (pytorch_model.bin) was trained from.
    """

    latent_steps: int | None = ranged(None, at_least=0)
    base: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
