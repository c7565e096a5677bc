"""Options of GRPO, with TRL's names where TRL has the option. For Python, see `grpo_config`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dropout_grpo.config.choices import Schedule
from dropout_grpo.config.needs import Need, warn_without_effect
from dropout_grpo.config.ranges import check_ranges, ranged
from dropout_grpo.errors import UserError

LossType = Literal["sum", "grpo", "dr_grpo", "dapo"]
ImportanceSamplingLevel = Literal["token", "sequence"]
AnswerDecoding = Literal["sampled", "greedy"]
ScaleRewards = Literal["none", "group", "batch"]
Baseline = Literal["group_mean", "ema"]
KLEstimator = Literal["k3", "k3_huber", "k3_clamp"]
BetaSchedule = Literal["constant", "learning_rate"]
RefExploration = Literal["matched", "none"]


@dataclass(frozen=True, kw_only=True)
class GRPOOptions:
    """Options of GRPO.

    Args:
        max_steps: number of steps; each samples a batch of rollouts.
        prompts_per_step: questions in a batch; each gets num_generations rollouts.
        max_prompt_length: questions with more tokens than this, start marker included, are left out.
        dynamic_sampling_max_gen_batches: maximum number of batches that a step samples to get prompts_per_step mixed
            groups; the update uses only mixed groups (DAPO's dynamic sampling; in verl, filter_groups with
            max_num_gen_batches). When not given, a step is one batch and the objective averages over all of it.
        filter_groups: lowest and highest mean reward of the groups that the update uses; a step without such a group
            changes neither the weights nor the learning rate. When not given, every group is used. (verl's option of
            this name is dynamic sampling.)
        num_generations: K, rollouts per question; 1 only with baseline ema.
        num_iterations: mu, updates on each batch.
        max_completion_length: maximum number of answer tokens.
        answers: sampled at the temperature, or decoded greedily, so that only the exploration makes rollouts differ.
        temperature: tau, for sampling answers and for all log-probabilities, also those of greedy answers.
        top_p: answers are sampled from the smallest set of most probable tokens whose probabilities add up to this. As
            in TRL, log-probabilities stay those of the whole distribution, so ratios compare policies that were not
            quite the one that sampled: below 1 the gradient is biased, as tokens outside the set are never tried.
        replay: True recomputes a rollout's log-probabilities under its own mask; False, an ablation, under a fresh
            mask for every update.
        learning_rate: peak of the schedule; a constant rate gives worse results here, see lr_scheduler_type. Steps of
            few rollouts need a smaller rate than the default, which is for about 1,000: with 8 it may ruin a
            checkpoint.
        lr_scheduler_type: shape of the schedule over all updates, after warm-up.
        min_lr_rate: share of learning_rate at which a linear or cosine schedule ends.
        warmup_steps: updates of linear warm-up.
        weight_decay: weight decay of AdamW.
        optim: adamw_torch, or adamw_8bit, whose moments take 2 bytes per parameter instead of 8; it needs bitsandbytes.
        adam_beta1: beta1 of AdamW.
        adam_beta2: beta2 of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        beta: weight of the KL to the reference model; at 0 no reference model is kept.
        beta_schedule: constant, or learning_rate: beta times the schedule's current share of learning_rate.
        kl_estimator: k3 (TRL's), k3_huber (linear beyond kl_delta) or k3_clamp (constant beyond kl_delta).
        kl_delta: difference of log-probabilities beyond which k3_huber and k3_clamp differ from k3.
        ref_exploration: matched evaluates the reference under the policy's own masks, none without noise.
        sync_ref_model: update the reference from the policy during training; if False, it stays the starting model,
            or an adapter's base.
        ref_model_sync_steps: number of steps between two such updates.
        ref_model_mixup_alpha: alpha in reference = alpha * policy + (1 - alpha) * reference.
        epsilon: clip range of the ratio, below (and above, unless epsilon_high is set).
        epsilon_high: clip range above.
        importance_sampling_level: one ratio per token, or one per sequence: the product over its tokens, as in the
            theory. (TRL and GSPO take the root of this product: they average the log-ratios.)
        loss_type: sum (sums tokens and averages rollouts, as in the theory), or TRL's grpo, dr_grpo, dapo.
        baseline: what is subtracted from rewards: group_mean, or ema, the moving average of earlier steps' mean rewards
            (REINFORCE).
        ema_decay: decay of baseline ema per step.
        scale_rewards: none (as in the paper), or TRL's group or batch, which bias the gradient.
        leave_one_out: scale advantages by K/(K-1), which makes the estimator unbiased.
        mask_truncated_completions: answers cut at max_completion_length get no gradient.
        reward_weights: one weight per reward function; all 1 when not given.
        micro_batch_size: rollouts in one forward and backward pass; halved where memory runs out.
        rollout_batch_size: rollouts sampled at once; halved where memory runs out.
        gradient_checkpointing: run the decoder layers again in the backward pass instead of keeping what they compute:
            far less memory, more time, the same bits. If not given, on where a micro-batch of the smallest size does
            not fit otherwise.
        num_generations_eval: answers under masks for each validation problem, for eval/masked_pass@1 and eval/pass@k; 0
            validates the plain network alone.
        eval_steps: number of steps between two validations; 0 for no validation.
        save_steps: number of steps between two checkpoints, from which the run can be resumed, with one of the last
            step; 0 for none.
        save_total_limit: number of these checkpoints to keep, the newest ones; null keeps all.
        logging_steps: number of steps between two lines of metrics.
        log_completions: print a table of questions, answers under masks, rewards and advantages with the metrics.
        num_completions_to_print: number of questions in that table.
    """

    max_steps: int = ranged(200, at_least=1)
    prompts_per_step: int = ranged(128, at_least=1)
    max_prompt_length: int | None = ranged(None, at_least=1, why="to keep all questions, leave it out")
    dynamic_sampling_max_gen_batches: int | None = ranged(
        None, at_least=1, why="without dynamic sampling, leave it out"
    )
    filter_groups: tuple[float, float] | None = ranged(None)
    num_generations: int = ranged(8, at_least=1)
    num_iterations: int = ranged(1, at_least=1)
    max_completion_length: int = ranged(8, at_least=1)
    answers: AnswerDecoding = "sampled"
    temperature: float = ranged(1.0, above=0, why="for greedy answers, use answers: greedy with temperature 1")
    top_p: float = ranged(1.0, above=0, at_most=1)
    replay: bool = True
    learning_rate: float = ranged(3e-4, above=0)
    lr_scheduler_type: Schedule = "linear"
    min_lr_rate: float = ranged(0.0, at_least=0, at_most=1)
    warmup_steps: int = ranged(0, at_least=0)
    weight_decay: float = ranged(0.0, at_least=0)
    optim: Literal["adamw_torch", "adamw_8bit"] = "adamw_torch"
    adam_beta1: float = ranged(0.9, at_least=0, below=1)
    adam_beta2: float = ranged(0.999, at_least=0, below=1)
    max_grad_norm: float = ranged(1.0, above=0)
    beta: float = ranged(0.0, at_least=0)
    beta_schedule: BetaSchedule = "constant"
    kl_estimator: KLEstimator = "k3"
    kl_delta: float = ranged(5.0, above=0, at_most=80)  # e^80 is a float32
    ref_exploration: RefExploration = "matched"
    sync_ref_model: bool = False
    ref_model_sync_steps: int = ranged(512, at_least=1)
    ref_model_mixup_alpha: float = ranged(0.6, at_least=0, at_most=1)
    epsilon: float = ranged(0.2, at_least=0, at_most=1e6)
    epsilon_high: float | None = ranged(None, at_least=0, at_most=1e6)
    importance_sampling_level: ImportanceSamplingLevel = "token"
    loss_type: LossType = "sum"
    baseline: Baseline = "group_mean"
    ema_decay: float = ranged(0.9, at_least=0, below=1)
    scale_rewards: ScaleRewards = "none"
    leave_one_out: bool = False
    mask_truncated_completions: bool = False
    reward_weights: tuple[float, ...] | None = ranged(None)
    micro_batch_size: int = ranged(256, at_least=1)
    rollout_batch_size: int = ranged(1024, at_least=1)
    gradient_checkpointing: bool | None = None
    num_generations_eval: int = ranged(0, at_least=0, at_most=65536)
    eval_steps: int = ranged(0, at_least=0)
    save_steps: int = ranged(100, at_least=0)
    save_total_limit: int | None = ranged(2, at_least=1)
    logging_steps: int = ranged(1, at_least=1)
    log_completions: bool = False
    num_completions_to_print: int = ranged(2, at_least=1)

    SECTION: ClassVar[str] = "grpo"
    """The section of a recipe that messages name; empty for options that are given in Python."""

    NEEDS: ClassVar[tuple[Need, ...]] = (
        Need(
            ("beta_schedule", "kl_estimator", "kl_delta", "ref_exploration", "sync_ref_model"),
            "beta above 0",
            lambda grpo: grpo.beta > 0,
        ),
        Need(
            ("kl_delta",),
            "kl_estimator k3_huber or k3_clamp",
            lambda grpo: grpo.kl_estimator != "k3" or grpo.beta == 0,  # then it needs beta first
        ),
        Need(
            ("ref_model_sync_steps", "ref_model_mixup_alpha"),
            "sync_ref_model true",
            lambda grpo: grpo.sync_ref_model,
        ),
        Need(
            ("epsilon", "epsilon_high"),
            "num_iterations above 1, since the first update on a batch has the ratio 1 everywhere",
            lambda grpo: grpo.num_iterations > 1 or not grpo.replay,  # fresh masks change the ratio too
        ),
        Need(("top_p",), "answers sampled", lambda grpo: grpo.answers == "sampled"),
        Need(("ema_decay",), "baseline ema", lambda grpo: grpo.baseline == "ema"),
        Need(
            ("min_lr_rate",),
            "lr_scheduler_type linear or cosine",
            lambda grpo: grpo.lr_scheduler_type != "constant",
        ),
        Need(("save_total_limit",), "save_steps above 0", lambda grpo: grpo.save_steps > 0),
        Need(("num_completions_to_print",), "log_completions true", lambda grpo: grpo.log_completions),
    )

    @classmethod
    def named(cls, option: str) -> str:
        """The option's name in messages: ``grpo.beta``, or ``beta`` if options are given in Python."""
        return f"{cls.SECTION}.{option}".removeprefix(".")

    @property
    def questions_per_step(self) -> int:
        """Questions that a step may sample, and by which it moves on in their order."""
        return self.prompts_per_step * (self.dynamic_sampling_max_gen_batches or 1)

    def __post_init__(self) -> None:
        """Check the ranges, and that no options contradict each other, before anything is trained.

        Raises:
            UserError: names the option and the remedy.
        """
        self._check()
        warn_without_effect(self)

    def _check(self) -> None:
        check_ranges(self, self.SECTION)
        for name in ("micro_batch_size", "rollout_batch_size"):
            if getattr(self, name) < self.num_generations:
                raise UserError(
                    f"{name}={getattr(self, name)} must hold one group of num_generations={self.num_generations}."
                )
        if self.baseline == "group_mean" and self.num_generations < 2:
            raise UserError(
                f"num_generations={self.num_generations}: a group of one has no mean to differ from; use at least 2, "
                "or baseline: ema."
            )
        if self.baseline == "ema":
            if self.leave_one_out:
                raise UserError("leave_one_out corrects the group mean, which baseline: ema does not use: drop one.")
            if self.scale_rewards != "none":
                raise UserError(
                    f"scale_rewards={self.scale_rewards} scales group-relative advantages, and baseline: ema has none: "
                    "set scale_rewards to none."
                )
        if self.num_generations == 1:
            for name in ("dynamic_sampling_max_gen_batches", "filter_groups"):
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{name} selects groups by their rewards, and num_generations=1 makes no groups: leave it out."
                    )
        if self.filter_groups is not None and self.filter_groups[0] > self.filter_groups[1]:
            raise UserError(
                f"filter_groups={list(self.filter_groups)}: the lowest mean reward comes first, the highest second."
            )
        if self.scale_rewards != "none" and self.leave_one_out:
            raise UserError("leave_one_out removes a bias that scale_rewards puts back: set scale_rewards to none.")
