"""A checkpoint on the command line: what it does not say of itself is said by two options."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dropout_grpo.latent.model import LatentModel


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What a published checkpoint leaves out. A folder that dropout-grpo wrote needs neither.

    Args:
        latent_steps: thoughts an answer takes; for a checkpoint without latent_config.json.
        base: folder or hub name of the model that a Coconut state_dict file (checkpoint_33) was trained from.
    """

    latent_steps: int | None = None
    base: str | None = None


def load_checkpoint(checkpoint: str, options: CheckpointOptions) -> "LatentModel":
    """The latent model of a folder, a hub name or a Coconut ``state_dict`` file, on the device that there is.

    Raises:
        UserError: says which option is missing.
    """
    from dropout_grpo.jobs.parts import device  # no torch before it is needed: --help would wait for it
    from dropout_grpo.latent.model import LatentModel

    model = LatentModel.from_pretrained(checkpoint, latent_steps=options.latent_steps, base=options.base)
    return model.to(device())
