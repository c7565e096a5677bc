"""Is a model still good after an update? Weights can be finite and yet so large that no answer is."""

import torch
from torch import Tensor

from dropout_grpo.latent.model import LatentModel
from dropout_grpo.training.optimizer import NonFinite, last_good_is


def require_finite(model: LatentModel, encoded: tuple[Tensor, Tensor], where: str, last_good: str) -> None:
    """Think about encoded questions (ids and mask, [B, S]) before the model is kept as a good checkpoint.

    Raises:
        NonFinite: the logits of the first answer token are not finite.
    """
    with torch.no_grad():
        state = model.think(model.read(*encoded), model.latent_steps)
        logits, _ = model.logits(state, model.end_marker(state.rows), None)
    if not bool(logits.isfinite().all()):
        raise NonFinite(f"{where}: after the update, logits are not finite. {last_good_is(last_good)}")
