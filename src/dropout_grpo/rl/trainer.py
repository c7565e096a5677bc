"""The GRPO loop: roll out, reward, compare within groups, replay under the same masks, update."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.latent.generation import Generation
from dropout_grpo.latent.lora.adapter import adapter_off, reference_of
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.problems.problem import Problem
from dropout_grpo.problems.rewards import RewardFunction
from dropout_grpo.rl.advantage import group_advantages, zero_variance
from dropout_grpo.rl.config import GRPOConfig
from dropout_grpo.rl.dynamic_sampling import mixed_groups
from dropout_grpo.rl.groups import rows_of
from dropout_grpo.rl.objective import Batch, surrogate
from dropout_grpo.rl.rollout import Prompts, replay
from dropout_grpo.rl.sampler import Sampler
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.training.checkpoint import restore_optimizer, save_checkpoint, trainer_state
from dropout_grpo.training.finite import require_finite
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.optimizer import NonFinite, build_optimizer, build_schedule, last_good_is, update
from dropout_grpo.training.precision import autocast
from dropout_grpo.training.progress import Bar

Evaluate = Callable[[LatentModel], float]

_CLIP_RATIOS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
_UPDATE_METRICS = ("loss", "grad_norm", "kl", "replay/logprob_diff_max", *_CLIP_RATIOS)


class GRPOTrainer:
    """Dropout-GRPO on problems of which only the answers are used.

    Args:
        model: the policy, trained in place.
        config: options.
        exploration: where the randomness of the latent phase comes from.
        reward_funcs: as in TRL, ``f(prompts, completions, **columns) -> list[float | None]``.
        problems: questions with answers.
        run: where metrics and checkpoints go.
        seed: order of the data, masks and samples.
        bf16: matrix products in bf16.
        evaluate: pass@1 on validation problems, in [0, 1]; None for no validation.
        part: name of this part in metrics.jsonl, and of its checkpoints.

    Raises:
        UserError: no problems, a model with no latent steps, or a question too long.
    """

    def __init__(
        self,
        model: LatentModel,
        config: GRPOConfig,
        exploration: Exploration,
        reward_funcs: Sequence[RewardFunction],
        problems: Sequence[Problem],
        run: RunFolder,
        *,
        seed: int,
        bf16: bool = False,
        evaluate: Evaluate | None = None,
        part: str = "grpo",
    ) -> None:
        if not problems:
            raise UserError("the GRPO file has no problems.")
        most = config.prompts_per_step * (config.dynamic_sampling_max_gen_batches or 1)
        if most > len(problems):
            raise UserError(
                f"prompts_per_step={config.prompts_per_step} lets a step sample {most} questions, more than the "
                f"{len(problems)} problems: lower it, or dynamic_sampling_max_gen_batches."
            )
        if model.latent_steps == 0:
            raise UserError("the checkpoint has latent_steps 0: there is no latent phase for GRPO to explore.")
        if config.reward_weights is not None and len(config.reward_weights) != len(reward_funcs):
            raise UserError(
                f"reward_weights has {len(config.reward_weights)} numbers for {len(reward_funcs)} reward functions: "
                "give one each, or none for equal weights."
            )
        self.model, self.config, self.exploration, self.run = model, config, exploration, run
        self.bf16, self.evaluate, self.part = bf16, evaluate, part
        self.sampler = Sampler(model, config, exploration, reward_funcs, problems, seed=seed, bf16=bf16)
        self._batches = MicroBatches("micro_batch_size", config.micro_batch_size)
        self.reference: LatentModel | None = None
        if config.beta > 0:
            self.reference = reference_of(model)

    def train(self, *, resume: bool = False) -> None:
        """Run ``max_steps`` batches. With ``resume``, continue after the last checkpoint.

        Raises:
            NonFinite: loss or gradient is not finite.
        """
        config = self.config
        last = self.run.checkpoint(f"{self.part}-last")
        optimizer = build_optimizer(
            self.model.parameters(),
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            betas=(config.adam_beta1, config.adam_beta2),
        )
        state = trainer_state(last) if resume else None
        done = 0 if state is None else state["step"]
        if state is not None:  # the model given is the one it all started from: it stays the reference
            self.model.load_state_dict(LatentModel.from_pretrained(last).state_dict())
            restore_optimizer(last, optimizer)
        if resume:
            self.run.forget_after(self.part, done)
        schedule = build_schedule(
            optimizer,
            config.lr_scheduler_type,
            warmup_steps=config.warmup_steps,
            updates=config.max_steps * config.num_iterations,
            done=done * config.num_iterations,
        )
        with self.run.tracking(self.part, done), Bar(self.part.replace("_", "-"), config.max_steps, done=done) as bar:
            for step in range(done + 1, config.max_steps + 1):
                last_good = str(last) if last.exists() else f"the one it started from, {self.model.name}"
                metrics = self.step(step, optimizer, schedule, last_good)
                if self.evaluate is not None and config.eval_steps and step % config.eval_steps == 0:
                    metrics["eval/pass@1"] = self.evaluate(self.model)
                if step % config.logging_steps == 0 or "eval/pass@1" in metrics:
                    self.run.log({"part": self.part, "step": step, **metrics})
                save = config.save_steps and step % config.save_steps == 0
                if save or step == config.max_steps:
                    first = self.sampler.prompts([0])
                    require_finite(self.model, (first.input_ids, first.attention_mask), self._where(step), last_good)
                if save:
                    save_checkpoint(last, self.model, optimizer, {"step": step})
                bar.advance(reward=metrics["reward"], loss=metrics["loss"])

    def step(self, step: int, optimizer: Any, schedule: Any, last_good: str = "none yet") -> dict[str, float]:
        """One batch of rollouts and ``num_iterations`` updates on it; returns the metrics."""
        config, start = self.config, time.monotonic()
        sampled, by_function = self.sampler.sample(step)
        answers, rewards = sampled.answers, sampled.rewards
        if not bool(answers.logprobs.isfinite().all()):
            raise NonFinite(f"{self._where(step)}: rollout log-probs are not finite. {last_good_is(last_good)}")
        advantages = group_advantages(rewards, scale_rewards=config.scale_rewards, leave_one_out=config.leave_one_out)
        lengths = answers.mask.sum(-1)
        truncated = (lengths == config.max_completion_length) & (answers.token_ids[:, -1] != self.model.tokens.eos)
        metrics: dict[str, float] = {
            "reward": float(rewards.mean()),
            "reward_std": float(rewards.std(dim=1).mean()),
            "frac_reward_zero_std": float(zero_variance(rewards).float().mean()),
            "entropy": float(answers.entropy.sum() / lengths.sum()),
            "completions/mean_length": float(lengths.float().mean()),
            "completions/min_length": float(lengths.min()),
            "completions/max_length": float(lengths.max()),
            "completions/clipped_ratio": float(truncated.float().mean()),
            "learning_rate": schedule.get_last_lr()[0],
            **by_function,
        }
        groups = sampled
        if config.mask_truncated_completions:
            groups = replace(groups, answers=replace(answers, mask=answers.mask & ~truncated[:, None]))
        if config.dynamic_sampling_max_gen_batches is not None:
            mixed = mixed_groups(rewards)
            kept = mixed[: config.prompts_per_step]
            groups, advantages = groups.select(kept), advantages[kept]
            metrics |= {"groups/sampled": len(rewards), "groups/mixed": len(mixed), "groups/kept": len(kept)}
        rollout_seconds = time.monotonic() - start
        for iteration in range(config.num_iterations):
            seen = None
            if groups.places:
                seen = self.backward(self.sampler.prompts(groups.places), groups.seeds, groups.answers, advantages)
            where = f"{self._where(step)}, update {iteration + 1}"
            if seen is None:  # no group differs within itself: the gradient is exactly 0, and nothing moves
                metrics |= dict.fromkeys(_UPDATE_METRICS, 0.0)
                optimizer.step()  # without gradients it moves nothing, and the schedule wants to come after it
                schedule.step()
                continue
            seen["grad_norm"] = update(
                optimizer,
                schedule,
                loss=seen["loss"],
                max_grad_norm=config.max_grad_norm,
                where=where,
                last_good=last_good,
            )
            if iteration > 0:  # only before the first update are rollout and replay the same policy
                del seen["replay/logprob_diff_max"]
            metrics |= seen
        metrics["rollout_time"] = rollout_seconds
        metrics["step_time"] = time.monotonic() - start
        return metrics

    def _where(self, step: int) -> str:
        return f"{self.part} seed {self.sampler.seed}, step {step}"

    def backward(
        self, prompts: Prompts, seeds: Tensor, answers: Generation, advantages: Tensor
    ) -> dict[str, float] | None:
        """Gradients of the objective over the mixed of N groups; None where there is none to replay.

        Args:
            prompts: N questions.
            seeds: of their rollouts, int64 [N, K].
            answers: of their rollouts, N * K rows.
            advantages: [N, K].
        """
        replayed = prompts.longest_first()
        if self.reference is None:  # else the KL has a gradient in every group
            replayed = replayed[(advantages != 0).any(dim=1)[replayed]]
        if len(replayed) == 0:
            return None

        def accumulate(size: int) -> dict[str, float]:
            self.model.zero_grad(set_to_none=True)  # what an attempt that ran out of memory has left
            return self._accumulate(prompts, seeds, answers, advantages, replayed.split(size))

        return self._batches.fit(len(replayed), accumulate, rows=seeds.shape[1])

    def _accumulate(
        self,
        prompts: Prompts,
        seeds: Tensor,
        answers: Generation,
        advantages: Tensor,
        micro_batches: Sequence[Tensor],
    ) -> dict[str, float]:
        """Gradients of the objective, micro-batch by micro-batch, and what was seen on the way."""
        config = self.config
        totals = Batch(
            rollouts=seeds.numel(),
            tokens=max(1, int(answers.mask.sum())),
            max_completion_length=config.max_completion_length,
        )
        loss = kl = low = high = difference = 0.0
        for groups in micro_batches:
            rows = rows_of(groups, seeds.shape[1])
            old_logprobs, used = answers.logprobs[rows], answers.mask[rows]
            with autocast(self.model.device, self.bf16):
                chosen = (prompts.select(groups), seeds[groups], answers.token_ids[rows], self.exploration)
                logprobs = replay(self.model, *chosen, temperature=config.temperature)
                ref_logprobs = None
                if self.reference is not None:
                    with torch.no_grad(), adapter_off(self.reference):
                        ref_logprobs = replay(self.reference, *chosen, temperature=config.temperature)
            part = surrogate(
                logprobs,
                old_logprobs,
                used,
                advantages[groups].flatten().to(logprobs),
                batch=totals,
                epsilon=config.epsilon,
                epsilon_high=config.epsilon_high,
                importance_sampling_level=config.importance_sampling_level,
                loss_type=config.loss_type,
                beta=config.beta,
                ref_logprobs=ref_logprobs,
            )
            part.loss.backward()
            loss, kl = loss + float(part.loss.detach()), kl + float(part.kl)
            low, high = low + float(part.clipped_low), high + float(part.clipped_high)
            gap = (logprobs.detach() - old_logprobs).abs() * used
            difference = max(difference, float(gap.max()))
        return {
            "loss": loss,
            "kl": kl / totals.tokens,
            "clip_ratio/low_mean": low / totals.tokens,
            "clip_ratio/high_mean": high / totals.tokens,
            "clip_ratio/region_mean": (low + high) / totals.tokens,
            "replay/logprob_diff_max": difference,
        }
