"""The reference policy of the KL: the model that training started from, or a copy that is updated during training."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dropout_grpo.config.choices import ParamDtype
from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.distributed.sharding import whole
from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import Exploration, NoExploration, Noise
from dropout_grpo.exploration.sites import SiteMap
from dropout_grpo.latent.lora.adapter import adapter_off, reference_of
from dropout_grpo.latent.lora.checkpoint import has_adapter
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts, replay
from dropout_grpo.training.masters import halve, master_of, set_master


def scheduled_beta(config: GRPOOptions, learning_rate: float) -> float:
    """Weight of the KL in the update that has this learning rate."""
    if config.beta_schedule == "constant":
        return config.beta
    return config.beta * learning_rate / config.learning_rate


class ReferencePolicy:
    """A frozen copy of the policy.

    Args:
        policy: the model to copy. For a model with an adapter the reference is its base, and nothing is copied.
        config: options.
        exploration: noise of the policy, also used for the reference if ``ref_exploration`` is ``matched``.
        bf16: ``logprobs`` is only called under autocast, so a copy that stays as it is can be held in bf16.
        param_dtype: that of the policy during training, which the reference has too.

    Raises:
        UserError: ``sync_ref_model`` is set for a model with an adapter.
    """

    def __init__(
        self,
        policy: LatentModel,
        config: GRPOOptions,
        exploration: Exploration,
        *,
        bf16: bool = False,
        param_dtype: ParamDtype | None = None,
    ) -> None:
        if config.sync_ref_model and has_adapter(policy.model):
            raise UserError(
                "sync_ref_model copies all weights into the reference, but with an adapter the reference is the base "
                "model itself: leave sync_ref_model out, or train all weights."
            )
        self.model = reference_of(policy, bf16=bf16 and not config.sync_ref_model)
        if param_dtype == "bfloat16":
            for parameter in self.model.parameters():
                halve(parameter, keep_low=config.sync_ref_model)
        self.config = config
        matched = config.ref_exploration == "matched"
        self.exploration: Exploration = _NoiseOf(policy.sites, exploration) if matched else NoExploration()

    @torch.no_grad()
    def logprobs(self, prompts: Prompts, seeds: Tensor, token_ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities [N * K, L] of the answers [N * K, L] of N questions with seeds [N, K].

        Tokens that are not in ``mask`` [N * K, L] get 0.
        """
        temperature = self.config.temperature
        with adapter_off(self.model):
            return replay(self.model, prompts, seeds, token_ids, self.exploration, temperature=temperature, mask=mask)

    @torch.no_grad()
    def end_step(self, step: int, policy: LatentModel) -> None:
        """Update the reference if it is due after this step: ref = alpha * policy + (1 - alpha) * ref."""
        if not self.config.sync_ref_model or step % self.config.ref_model_sync_steps != 0:
            return
        alpha = self.config.ref_model_mixup_alpha
        for mine, theirs in zip(self.model.parameters(), policy.parameters(), strict=True):
            set_master(mine, master_of(mine).mul_(1.0 - alpha).add_(master_of(whole(theirs)), alpha=alpha))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors for a checkpoint: the weights if training updates them, else nothing."""
        if not self.config.sync_ref_model:
            return {}
        return {name: master_of(parameter) for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``.

        Raises:
            UserError: the tensors are not those of this model.
        """
        mine = dict(self.model.named_parameters()) if self.config.sync_ref_model else {}
        if mine.keys() != tensors.keys() or any(mine[name].shape != tensors[name].shape for name in mine):
            raise UserError("the checkpoint's reference weights are not those of this model: start a new run.")
        for name, parameter in mine.items():
            set_master(parameter, tensors[name])


class _NoiseOf:
    """An exploration whose noise on any model is its noise on one model's sites.

    Noise may depend on weights (``FollowsTraining``), and those of the reference are not the policy's.
    """

    def __init__(self, sites: SiteMap, exploration: Exploration) -> None:
        self._sites, self._exploration = sites, exploration
        self.phases = exploration.phases

    def noise(self, seeds: Tensor, sites: SiteMap) -> Noise | None:
        """The noise of ``seeds`` (int64 [B]) on the one model's sites."""
        return self._exploration.noise(seeds, self._sites)
