"""The gradient of a GRPO update: replay of the rollouts under their own masks, objective, micro-batches, processes."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.distributed import processes
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import replay
from dropout_grpo.rl.groups import Groups, rows_of
from dropout_grpo.rl.objective import Totals, surrogate
from dropout_grpo.rl.reference import ReferencePolicy
from dropout_grpo.training.memory import MicroBatches, checkpointing_instead

REPLAY_GAPS = ("replay/logprob_diff_max", "replay/logprob_diff_mean")
METRICS = (
    *("loss", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"),
    *REPLAY_GAPS,
)
"""Metrics of every update."""


class PolicyUpdate:
    """Computes the gradients of updates. The optimiser's step is the trainer's.

    Args:
        model: the policy.
        config: options.
        exploration: noise of the rollouts.
        reference: the reference of the KL; None without KL.
        bf16: compute matrix products in bf16.
    """

    def __init__(
        self,
        model: LatentModel,
        config: GRPOOptions,
        exploration: Exploration,
        reference: ReferencePolicy | None,
        *,
        bf16: bool,
    ) -> None:
        self.model, self.config, self.exploration, self.bf16 = model, config, exploration, bf16
        self.reference = reference
        self.batches = MicroBatches(config.named("micro_batch_size"), config.micro_batch_size)
        self._objective = partial(
            surrogate,
            epsilon=config.epsilon,
            epsilon_high=config.epsilon_high,
            importance_sampling_level=config.importance_sampling_level,
            loss_type=config.loss_type,
            kl_estimator=config.kl_estimator,
            kl_delta=config.kl_delta,
        )

    def backward(
        self,
        groups: Groups,
        advantages: Tensor,
        *,
        rollouts: int | None = None,
        tokens: int | None = None,
        beta: float | None = None,
        unchanged: bool = False,
    ) -> dict[str, float] | None:
        """Compute gradients of the objective over N groups; return its metrics, or None if the gradient is exactly 0.

        Args:
            groups: rows of the answers without a token in ``mask`` are left out of the update.
            advantages: [N, K].
            rollouts: number of rollouts that the objective averages over; N * K when None.
            tokens: number of answer tokens that ``dapo`` averages over; those in ``mask`` when None.
            beta: weight of the KL; the config's when None.
            unchanged: the policy is the one that sampled the rollouts, and they are replayed under their own masks. The
                replay's log-probs then replace those of the rollouts, which differ by rounding: in bf16 by about 0.01,
                more than the clip range of GSPO. So the ratio of a first update is exactly 1.
        """
        beta = self.config.beta if beta is None else beta
        k, mask = groups.seeds.shape[1], groups.answers.mask
        used_tokens = max(1, int(mask.sum()))
        totals = Totals(
            rollouts=max(1, groups.seeds.numel() if rollouts is None else rollouts),
            tokens=used_tokens if tokens is None else max(1, tokens),
            max_completion_length=self.config.max_completion_length,
        )
        used = mask.view(*groups.seeds.shape, -1).any(-1).cpu()  # [N, K]
        if self.reference is None:  # the KL has a gradient in every group with a token in the update
            used &= advantages != 0
        has_gradient = used.any(dim=1)
        replayed = groups.prompts.longest_first()
        replayed = replayed[has_gradient[replayed]]
        if len(replayed) == 0:
            return None
        costs = self._token_forwards(groups)[replayed].tolist()
        shares = processes.balanced(costs, processes.size())
        mine = replayed[sorted(shares[processes.rank()])]

        replays: list[tuple[Tensor, Tensor]] = []  # rows and their log-probs

        def accumulate(size: int) -> list[list[float]]:
            replays.clear()  # of micro-batches that did not fit
            return self.accumulate(groups, advantages, mine.split(size), totals, beta, replays if unchanged else None)

        sums = [[0.0] * 7]  # of a process without a group
        if len(mine):
            sums = self.batches.fit(
                len(mine),
                accumulate,
                rows=k,
                clear=lambda: self.model.zero_grad(set_to_none=True),
                relieve=partial(checkpointing_instead, self.model, self.config.gradient_checkpointing),
            )
        for rows, logprobs in replays:  # for later updates on the batch too
            groups.answers.logprobs[rows] = logprobs
        *added, gap_max = zip(*sums, strict=True)
        loss, kl, low, high, gap_sum, replayed_tokens = processes.add_up(*(sum(values) for values in added))
        metrics = {
            "loss": loss,
            "kl": kl / used_tokens,
            "clip_ratio/low_mean": low / used_tokens,
            "clip_ratio/high_mean": high / used_tokens,
            "clip_ratio/region_mean": (low + high) / used_tokens,
            "replay/logprob_diff_max": processes.greatest(max(gap_max))[0],
            "replay/logprob_diff_mean": gap_sum / max(1.0, replayed_tokens),
        }
        if processes.size() > 1:
            metrics["replay/imbalance"] = processes.imbalance(costs, shares)
        return metrics

    def _token_forwards(self, groups: Groups) -> Tensor:
        """Token-forwards of each group's replay, int64 [N] on the CPU: the cost by which processes divide the work."""
        k, read = groups.seeds.shape[1], groups.prompts.attention_mask.sum(-1)
        if "prompt" in self.exploration.phases:
            read = read * k
        return (read + k * self.model.latent_steps + groups.answers.mask.view(len(read), -1).sum(-1)).cpu()

    def accumulate(
        self,
        groups: Groups,
        advantages: Tensor,
        micro_batches: Sequence[Tensor],
        totals: Totals,
        beta: float,
        replays: list[tuple[Tensor, Tensor]] | None = None,
    ) -> list[list[float]]:
        """Accumulate gradients of the objective over micro-batches of groups, given by their indices.

        With a list of ``replays`` the policy is unchanged: see ``backward``. It gets the rows of each micro-batch and
        their log-probs.

        Returns:
            For each micro-batch: its part of the loss; sums over its answer tokens of the KL, of those clipped below
            and above, and of the differences between rollout and replay; their number; and the greatest difference.
        """
        answers, sums = groups.answers, []
        for some in micro_batches:
            rows = rows_of(some, groups.seeds.shape[1]).to(answers.mask.device)
            old_logprobs, used = answers.logprobs[rows], answers.mask[rows]
            rollouts = (groups.prompts.select(some), groups.seeds[some], answers.token_ids[rows])
            ref_logprobs = None
            if self.reference is not None and beta > 0:  # first, while no activations are kept
                with autocast(self.model.device, self.bf16):
                    ref_logprobs = self.reference.logprobs(*rollouts, used)
            with autocast(self.model.device, self.bf16):
                temperature = self.config.temperature
                logprobs = replay(self.model, *rollouts, self.exploration, temperature=temperature, mask=used)
            gap = torch.where(used, logprobs.detach() - old_logprobs, torch.zeros_like(old_logprobs)).abs()
            if replays is not None:
                old_logprobs = logprobs.detach()
                replays.append((rows, old_logprobs))
            part = self._objective(
                logprobs,
                old_logprobs,
                used,
                advantages[some].flatten().to(logprobs),
                totals=totals,
                beta=0.0 if ref_logprobs is None else beta,
                ref_logprobs=ref_logprobs,
            )
            part.loss.backward()
            numbers = (part.loss, part.kl, part.clipped_low, part.clipped_high, gap.sum(), used.sum(), gap.max())
            sums.append(torch.stack([number.detach().double() for number in numbers]))
            self.batches.give_back()
        return torch.stack(sums).tolist()  # one wait for the device
