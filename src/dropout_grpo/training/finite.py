"""Is a model still good after an update? Weights can be finite and yet so large that no answer is."""

import torch

from dropout_grpo.latent.model import LatentModel
from dropout_grpo.rl.rollout import Prompts
from dropout_grpo.training.optimizer import NonFinite, last_good_is


def require_finite(model: LatentModel, prompts: Prompts, where: str, last_good: str) -> None:
    """Think about encoded questions before the model is kept as a good checkpoint.

    Raises:
        NonFinite: the logits of the first answer token are not finite.
    """
    with torch.no_grad():
        state = model.think(model.read(prompts.input_ids, prompts.attention_mask), model.latent_steps)
        logits, _ = model.logits(state, model.end_marker(state.rows), None)
    if not bool(logits.isfinite().all()):
        raise NonFinite(f"{where}: after the update, logits are not finite. {last_good_is(last_good)}")
