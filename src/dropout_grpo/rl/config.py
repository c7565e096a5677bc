"""Options of the GRPO trainer, with TRL's names where TRL has the option."""

from dataclasses import dataclass
from typing import Literal

from dropout_grpo.errors import UserError
from dropout_grpo.training.config import Schedule

LossType = Literal["sum", "grpo", "dr_grpo", "dapo"]
ImportanceSamplingLevel = Literal["token", "sequence"]
Answers = Literal["sampled", "greedy"]
ScaleRewards = Literal["none", "group", "batch"]


@dataclass(frozen=True, kw_only=True)
class GRPOConfig:
    """Options of GRPO.

    Args:
        max_steps: batches of rollouts.
        prompts_per_step: questions in a batch; each gets num_generations rollouts.
        dynamic_sampling_max_gen_batches: batches that a step may sample until prompts_per_step groups are mixed, which
            alone make the update (DAPO's dynamic sampling). When not given, a step is one batch and the objective
            averages over all of it.
        num_generations: K, rollouts of a question.
        num_iterations: mu, updates on each batch.
        max_completion_length: answer tokens at most.
        answers: sampled at the temperature, or decoded greedily, so that the exploration alone makes rollouts differ.
        temperature: tau, at which answers are sampled, and of all log-probabilities, those of greedy answers too.
        learning_rate: peak of the schedule; a constant rate hurts here, see lr_scheduler_type.
        lr_scheduler_type: shape of the schedule over all updates, after warm-up.
        warmup_steps: updates of linear warm-up.
        weight_decay: AdamW's.
        adam_beta1: AdamW's.
        adam_beta2: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        beta: weight of the KL to the frozen starting model; at 0 no reference model is kept.
        epsilon: clip range of the ratio, below (and above, unless epsilon_high is set).
        epsilon_high: clip range above.
        importance_sampling_level: a ratio for each token, or one for the sequence.
        loss_type: sum (tokens summed, rollouts averaged: the theory's), or TRL's grpo, dr_grpo, dapo.
        scale_rewards: none (the paper's), or TRL's group or batch, which bias the gradient.
        leave_one_out: scale advantages by K/(K-1), which makes the estimator unbiased.
        mask_truncated_completions: answers cut at max_completion_length get no gradient.
        reward_weights: one a reward function; all 1 when not given.
        micro_batch_size: rollouts in one forward and backward pass; halved where memory runs out.
        rollout_batch_size: rollouts sampled at once; halved where memory runs out.
        eval_steps: validate every so many steps; 0 never.
        save_steps: keep a checkpoint every so many steps; 0 only at the end.
        logging_steps: write metrics every so many steps.
    """

    max_steps: int = 200
    prompts_per_step: int = 128
    dynamic_sampling_max_gen_batches: int | None = None
    num_generations: int = 8
    num_iterations: int = 1
    max_completion_length: int = 8
    answers: Answers = "sampled"
    temperature: float = 1.0
    learning_rate: float = 3e-4
    lr_scheduler_type: Schedule = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    beta: float = 0.0
    epsilon: float = 0.2
    epsilon_high: float | None = None
    importance_sampling_level: ImportanceSamplingLevel = "token"
    loss_type: LossType = "sum"
    scale_rewards: ScaleRewards = "none"
    leave_one_out: bool = False
    mask_truncated_completions: bool = False
    reward_weights: tuple[float, ...] | None = None
    micro_batch_size: int = 256
    rollout_batch_size: int = 1024
    eval_steps: int = 0
    save_steps: int = 0
    logging_steps: int = 1

    def __post_init__(self) -> None:
        """Refuse options that contradict the method, before anything is trained.

        Raises:
            UserError: names the option and the remedy.
        """
        if self.num_generations < 2:
            raise UserError(
                f"num_generations={self.num_generations}: a group of one has no mean to differ from; use at least 2."
            )
        if self.temperature <= 0:
            raise UserError(
                f"temperature={self.temperature}: log-probabilities need a temperature; use a temperature above 0, "
                "and for greedy answers answers: greedy with temperature 1."
            )
        for name in (
            "max_steps",
            "prompts_per_step",
            "num_iterations",
            "max_completion_length",
            "logging_steps",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.dynamic_sampling_max_gen_batches is not None and self.dynamic_sampling_max_gen_batches < 1:
            raise UserError(
                f"dynamic_sampling_max_gen_batches={self.dynamic_sampling_max_gen_batches} must be at least 1; without "
                "dynamic sampling, leave it out."
            )
        for name in ("micro_batch_size", "rollout_batch_size"):
            if getattr(self, name) < self.num_generations:
                raise UserError(
                    f"{name}={getattr(self, name)} must hold one group of num_generations={self.num_generations}."
                )
        for name in ("beta", "epsilon", "weight_decay", "warmup_steps", "eval_steps", "save_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative.")
        for name in ("learning_rate", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)} must be above 0.")
        if self.epsilon_high is not None and self.epsilon_high < 0:
            raise UserError(f"epsilon_high={self.epsilon_high} must not be negative.")
        if self.scale_rewards != "none" and self.leave_one_out:
            raise UserError("leave_one_out removes a bias that scale_rewards puts back: set scale_rewards to none.")
