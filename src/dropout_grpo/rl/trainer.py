"""The GRPO loop: sample rollouts, compute rewards and advantages, replay under the same masks, update."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import TrainOutput

from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.grpo import GRPOConfig, GRPOOptions, either
from dropout_grpo.data.problem import Problem, problem_fingerprint
from dropout_grpo.data.records import as_problems, as_sets
from dropout_grpo.data.rewards import RewardFunction, as_reward_functions, reward_names
from dropout_grpo.distributed import processes
from dropout_grpo.distributed.sharding import as_shards, start_together
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.evaluation.measures import as_logged, validation_metrics
from dropout_grpo.exploration.base import Exploration, FollowsTraining
from dropout_grpo.exploration.build import options_of, require_exploration
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.exploration.seeds import fold
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.io.card import CardFacts
from dropout_grpo.latent.io.checkpoint import save_latent_model
from dropout_grpo.latent.io.hub import push_folder
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts, replay
from dropout_grpo.rl.advantage import (
    MovingAverage,
    all_correct,
    all_wrong,
    baseline_advantages,
    counted_rollouts,
    group_advantages,
    standard_deviations,
    zero_variance,
)
from dropout_grpo.rl.completions import completions_table
from dropout_grpo.rl.groups import Groups, rows_of
from dropout_grpo.rl.objective import Batch, surrogate
from dropout_grpo.rl.reference import Reference
from dropout_grpo.rl.sampler import Sampler
from dropout_grpo.rl.watch import Watch
from dropout_grpo.runs.files import jsonable
from dropout_grpo.runs.folder import RunFolder, as_run_folder
from dropout_grpo.runs.read import read_metrics
from dropout_grpo.runs.record import Record, code_digest, weights_digest
from dropout_grpo.training.callbacks import Callbacks, HasCallbacks, arguments
from dropout_grpo.training.given_model import as_latent_model, require_trainable
from dropout_grpo.training.memory import MicroBatches, free_memory, saved_bytes
from dropout_grpo.training.optimizer import NonFinite, build_optimizer, build_schedule, last_good_is, update
from dropout_grpo.training.progress import console
from dropout_grpo.training.session import TrainingSession

Evaluate = Callable[[LatentModel], float | Mapping[str, float]]

_CLIP_RATIOS = ("clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")
_REPLAY_GAPS = ("replay/logprob_diff_max", "replay/logprob_diff_mean")
_UNTAUGHT = (
    " warning: the model has never learnt to think before an answer. Train the curriculum first (CurriculumTrainer, or "
    "dropout-grpo sft): GRPO improves only what a model does sometimes."
)
_EXPLORATION = "exploration."
"""Prefix of the names of the exploration's tensors in a checkpoint."""
_UPDATE_METRICS = ("loss", "grad_norm", "kl", *_REPLAY_GAPS, *_CLIP_RATIOS)


@dataclass(slots=True, kw_only=True)
class Sums:
    """Sums of one process in an update, to be added over processes."""

    loss: float = 0.0
    kl: float = 0.0  # summed over answer tokens
    clipped_low: float = 0.0  # answer tokens
    clipped_high: float = 0.0
    difference: float = 0.0  # a maximum
    differences: float = 0.0  # summed over answer tokens
    replayed: float = 0.0  # answer tokens


class GRPOTrainer(HasCallbacks):
    """Dropout-GRPO on problems with answers; steps are not used. Names are those of TRL.

    Args:
        model: the policy, trained in place; or its folder or hub name. Weights without ``requires_grad`` stay as they
            are. A language model without latent tokens, an object or by name, gets them, and needs ``latent_steps``.
        reward_funcs: one or several, as in TRL: ``f(prompts, completions, **columns) -> list[float | None]``, which may
            be async, or an object with ``__call__``; `data/rewards.py` lists the arguments.
        args: options; of a ``GRPOConfig`` also ``output_dir``, ``seed`` and ``bf16``, which the arguments below repeat.
        train_dataset: questions with answers: problems, dicts with ``question`` and ``answer`` (or TRL's ``prompt`` and
            ``solution``), or a ``datasets.Dataset``. Other columns go to the reward functions. Without any column of
            answers, the reward functions judge by other columns.
        eval_dataset: problems to validate on, in the same forms; or several sets of them by name, as in TRL.
        processing_class: the tokenizer of a language model that is given as an object.
        latent_steps: number of thoughts before an answer; what the model has when not given.
        peft_config: PEFT's ``LoraConfig`` (``r``, ``lora_alpha``, ``target_modules``), to train an adapter.
        exploration: where the randomness of the latent phase comes from; ``SharedDropout(0.1)`` when not given.
        run: where metrics and checkpoints go: a run folder, or its path; ``runs/grpo`` when not given.
        seed: seed of the data order, masks and samples; 0 when not given.
        bf16: compute matrix products in bf16.
        fsdp: shard weights, gradients and optimiser state over the processes.
        evaluate: a function of the model that returns pass@1 on validation problems, in [0, 1], or several shares by
            name. When not given, ``eval_dataset`` is asked: the plain network with greedy answers, and
            ``num_generations_eval`` masks.
        callbacks: transformers' callbacks, objects or classes; `training/callbacks.py` lists the events.
        part: name of this part in metrics.jsonl, and of its checkpoints.

    Raises:
        UserError: no problems, a model with no latent steps, a question too long, or options that contradict the
            exploration.
    """

    def __init__(
        self,
        model: LatentModel | PreTrainedModel | str | Path,
        reward_funcs: RewardFunction | Sequence[RewardFunction],
        args: GRPOConfig | GRPOOptions | None = None,
        train_dataset: Iterable[Any] = (),
        eval_dataset: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        latent_steps: int | None = None,
        peft_config: Any = None,
        exploration: Exploration | None = None,
        run: RunFolder | str | Path | None = None,
        seed: int | None = None,
        bf16: bool | None = None,
        fsdp: bool = False,
        evaluate: Evaluate | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        part: str = "grpo",
    ) -> None:
        args = GRPOConfig() if args is None else args
        if not isinstance(args, GRPOOptions):
            raise UserError(f"args is a {type(args).__name__}: give a dropout_grpo.GRPOConfig.")
        beside = args if isinstance(args, GRPOConfig) else GRPOConfig()
        run = either("run", run, "output_dir", beside.output_dir, "runs/grpo")
        seed, bf16 = either("seed", seed, "seed", beside.seed, 0), either("bf16", bf16, "bf16", beside.bf16, False)
        if beside.trackers and isinstance(run, RunFolder):
            raise UserError("report_to: a RunFolder has its own: give it to the RunFolder, or give a path as run.")
        exploration = SharedDropout(0.1) if exploration is None else require_exploration(exploration, "exploration")
        reward_funcs = as_reward_functions(reward_funcs)
        problems = as_problems(train_dataset, "train_dataset", require_answers=False)
        config = args.settled(len(problems), processes.size()) if isinstance(args, GRPOConfig) else args
        model = as_latent_model(
            model,
            processing_class=processing_class,
            latent_steps=latent_steps,
            peft_config=peft_config,
            seed=seed,
            untaught=_UNTAUGHT,
        )
        if evaluate is None and eval_dataset is not None:
            evaluate = partial(_validated, as_sets(eval_dataset, "eval_dataset"), config, exploration, seed, bf16)
        if model.latent_steps == 0:
            raise UserError("the checkpoint has latent_steps 0: there is no latent phase for GRPO to explore.")
        if config.reward_weights is not None and len(config.reward_weights) != len(reward_funcs):
            raise UserError(
                f"reward_weights has {len(config.reward_weights)} numbers for {len(reward_funcs)} reward functions: "
                "give one each, or none for equal weights."
            )
        self.args, self._trackers = args, beside.trackers
        self.model, self.config, self.exploration, self._run = model, config, exploration, run
        self._follower = exploration if isinstance(exploration, FollowsTraining) else FollowsTraining()
        self.bf16, self.fsdp, self.part, self._validate = bf16, fsdp, part, evaluate
        self.sampler = Sampler(model, config, exploration, reward_funcs, problems, seed=seed, bf16=bf16)
        self._batches = MicroBatches("grpo.micro_batch_size", config.micro_batch_size)
        self._callbacks = Callbacks(
            callbacks or (),
            arguments(
                config,
                output_dir=str(run.path if isinstance(run, RunFolder) else run),
                evaluates=evaluate is not None,
                metric_for_best_model=beside.metric_for_best_model,
                greater_is_better=beside.greater_is_better,
            ),
            model,
            max_steps=config.max_steps,
            steps_per_epoch=len(self.sampler.problems) / config.prompts_per_step,
        )
        self._record: Record | None = None
        self.sampler.trainer_state = self.state
        self.updates = 0
        self.baseline = MovingAverage()
        noisy = model.noise(exploration, torch.zeros(1, dtype=torch.int64)) is not None
        if not config.replay and not noisy:
            raise UserError(
                "replay: false draws a fresh mask for the update, and without exploration there is no mask: choose an "
                "exploration.kind with p above 0, or leave replay out."
            )
        self.deterministic = config.answers == "greedy" and config.baseline == "group_mean" and not noisy
        if self.deterministic:
            console.print(
                "warning: answers: greedy without exploration makes all rollouts of a question the same, so every "
                "advantage is 0 and nothing can be learned. Use it only as a control.",
                markup=False,
            )
        self.reference: Reference | None = None
        if config.beta > 0 and not self.deterministic:  # a policy that never changes has a KL of 0
            self.reference = Reference(model, config, exploration)

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainOutput:
        """Run ``max_steps`` steps.

        Args:
            resume_from_checkpoint: True loads the newest good checkpoint of the run and continues after it; the path of
                one of its checkpoints loads that one. Model, data, rewards and options must be those that the run
                began with. Only ``max_steps`` may be greater. The reference is the model passed to the trainer.

        Returns:
            The number of steps, the mean of their losses, and ``train_runtime`` in seconds, as in transformers.

        Raises:
            UserError: the run has steps already and is not resumed, or it began with something else.
            NonFinite: loss, gradient or logits are not finite.
            Interrupted: the process was asked to stop; a checkpoint has been saved.
        """
        require_trainable(self.model)
        with self._follower.training(self.model, self.model.sites):
            return self._train(resume_from_checkpoint)

    def _train(self, resume_from_checkpoint: bool | str | Path | None) -> TrainOutput:
        config, callbacks = self.config, self._callbacks
        began: float = time.monotonic()
        losses: list[float] = []
        if self._record is None:
            self._record = self._made_from()
        resume = bool(resume_from_checkpoint)
        run = self._run = as_run_folder(self._run, "grpo", self._record, resume=resume, report_to=self._trackers)
        session = TrainingSession(
            run,
            self.part,
            self.model,
            record=self._record,
            batches=[self._batches, self.sampler.batches],
            save_total_limit=config.save_total_limit,
            logging_steps=config.logging_steps,
            start=f"the one it started from, {self.model.name}",
        )
        saved = session.begin(resume_from_checkpoint)
        done = 0 if saved is None else saved.step
        start_together(self.model, sharded=self.fsdp)
        with as_shards(self.model):
            optimizer = build_optimizer(
                self.model.parameters(),
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                betas=(config.adam_beta1, config.adam_beta2),
            )
        if saved is not None:
            saved.restore_optimizer(optimizer)
            self.restore(saved.state, saved.reference())
            callbacks.restore(saved.state, read_metrics(run.path, whole_lines=True), self.part)
        if saved is None and self.model.device.type == "cpu":
            self._limit_micro_batches()
        schedule = build_schedule(
            optimizer,
            config.lr_scheduler_type,
            warmup_steps=config.warmup_steps,
            updates=config.max_steps * config.num_iterations,
            done=self.updates,
            min_lr_rate=config.min_lr_rate,
        )
        if saved is not None:
            self._tell_of_length(saved.options.get("max_steps"), done, schedule)
        self.model.exploration = options_of(self.exploration)
        with session.steps(self.part.replace("_", "-"), config.max_steps, done) as bar:
            callbacks.begin(done, optimizer, schedule)
            watch = Watch(config)
            for step in range(done + 1, config.max_steps + 1):
                callbacks.begin_step(step, first=step == done + 1)
                metrics = self.step(step, optimizer, schedule, session.last_good)
                losses.append(metrics["loss"])
                callbacks.end_step(step)
                for warning in watch.after(metrics):
                    console.print(warning, markup=False)
                logs = callbacks.control.should_log
                evaluates = callbacks.control.should_evaluate and self._validate is not None
                if logs:
                    callbacks.log(metrics)
                if evaluates:
                    metrics |= self.evaluate()
                if logs or evaluates:
                    run.log({"part": self.part, "step": step, **metrics})
                interrupted = session.stopping
                save = interrupted or callbacks.control.should_training_stop or callbacks.control.should_save
                if save or step == config.max_steps:
                    first = self.sampler.prompts([0])
                    session.require_finite((first.input_ids, first.attention_mask), self._where(step))
                if save:
                    session.save(step, optimizer, self.checkpoint_state(), self.reference_tensors())
                    callbacks.saved()
                bar.advance(reward=metrics["reward"], loss=metrics["loss"])
                if interrupted:
                    session.stop(step)
                if callbacks.control.should_training_stop:
                    break
            return callbacks.end(losses, time.monotonic() - began)

    def _tell_of_length(self, before: int | None, done: int, schedule: Any) -> None:
        now, kind = self.config.max_steps, self.config.lr_scheduler_type
        if before is None or before == now:
            return
        rate = f"the learning rate, {schedule.get_last_lr()[0]:.3g}, stays as it was"
        if kind != "constant":
            rate = (
                f"the {kind} schedule now ends at step {now}, so that step {done + 1} has the learning rate "
                f"{schedule.get_last_lr()[0]:.3g}; the steps before had that of a run of {before} steps"
            )
        console.print(f"max_steps was {before} and is now {now}: {rate}.", markup=False)

    def _made_from(self) -> Record:
        """What a resumed run, and every process of a run, must have alike."""
        rewards = self.sampler.reward_funcs
        options = {
            **asdict(self.config),
            "seed": self.sampler.seed,
            "bf16": self.bf16,
            "fsdp": self.fsdp,
            "dtype": str(self.model.model.dtype).removeprefix("torch."),
            "latent_steps": self.model.latent_steps,
            "prompt_format": self.model.prompt_format,
            "exploration": options_of(self.exploration),
            "reward_funcs": reward_names(rewards),
        }
        digests = {
            "model": weights_digest(self.model),
            "train_dataset": problem_fingerprint(self.sampler.problems),
            "exploration.kind": code_digest(self.exploration),
            **{f"reward_funcs[{i}]": code_digest(function) for i, function in enumerate(rewards)},
        }
        return Record(options=jsonable(options), digests=digests)

    def evaluate(self) -> dict[str, float]:
        """pass@1 of the plain network on the validation problems, as ``{"eval/pass@1": ...}``; more with masks or
        several sets, see ``validation_metrics``.

        Raises:
            UserError: the trainer has no problems to validate on.
        """
        if self._validate is None:
            raise UserError("there is nothing to evaluate on: give the trainer an eval_dataset.")
        found = as_logged(self._validate(self.model))
        self._callbacks.evaluated(found)
        return found

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload the model with its model card to the Hugging Face Hub, and return the address.

        Args:
            repo_id: ``user/name``.
            private: whether a new repository is private.

        Raises:
            UserError: the upload fails.
        """
        with TemporaryDirectory() as folder:
            path = Path(folder) / repo_id.rpartition("/")[2]
            save_latent_model(self.model, path, CardFacts(base=self.model.name, method="Dropout-GRPO"))
            return push_folder(path, repo_id, private=private)

    def _limit_micro_batches(self) -> None:
        """Size the micro-batches by a group with the longest question and the longest answers."""
        k, length = self.config.num_generations, self.config.max_completion_length
        self._follower.begin_step(1, self.model.sites)
        zeros = torch.zeros(k, length, device=self.model.device)
        answers = Generation(token_ids=zeros.long(), mask=zeros == 0, logprobs=zeros, entropy=zeros)
        totals = Batch(rollouts=k, tokens=k * length, max_completion_length=length)
        group = (self.sampler.longest_prompt(), torch.arange(k)[None], answers, torch.ones(1, k), [torch.tensor([0])])
        kept = saved_bytes(lambda: self._accumulate(*group, totals, self.config.beta), self.model)
        self._clear_gradients()
        self._batches.limit(kept / k, free_memory(), rows=k)

    def _clear_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def checkpoint_state(self) -> dict[str, Any]:
        """State for a checkpoint in addition to weights, optimiser and step, as JSON."""
        return {"updates": self.updates, "baseline": asdict(self.baseline), **self._callbacks.checkpoint_state()}

    def reference_tensors(self) -> dict[str, Tensor]:
        """The reference's weights if training updates them, and the exploration's tensors."""
        tensors = {} if self.reference is None else dict(self.reference.tensors())
        own = self._follower.tensors(self.model.sites)
        return tensors | {_EXPLORATION + name: tensor for name, tensor in own.items()}

    def restore(self, state: Mapping[str, Any], reference: Mapping[str, Tensor]) -> None:
        """The inverse of ``checkpoint_state`` and ``reference_tensors``; ``state`` also has the key ``step``."""
        self.updates = state.get("updates", state["step"] * self.config.num_iterations)
        self.baseline = MovingAverage(**state.get("baseline", {}))
        if self.reference is not None:
            self.reference.load({n: tensor for n, tensor in reference.items() if not n.startswith(_EXPLORATION)})
        own = {n.removeprefix(_EXPLORATION): t for n, t in reference.items() if n.startswith(_EXPLORATION)}
        self._follower.load(own, self.model.sites)

    def step(self, step: int, optimizer: Any, schedule: Any, last_good: str = "none yet") -> dict[str, float]:
        """Sample a batch of rollouts, make ``num_iterations`` updates on it, and return the metrics."""
        config, start = self.config, time.monotonic()
        self._follower.begin_step(step, self.model.sites)
        sampled, by_function = self.sampler.sample(step)
        if not bool(sampled.answers.logprobs.isfinite().all()):
            raise NonFinite(f"{self._where(step)}: rollout log-probs are not finite. {last_good_is(last_good)}")
        metrics = {**self._metrics(sampled), "learning_rate": schedule.get_last_lr()[0]}
        groups, advantages, selection = self._for_update(sampled)
        metrics |= selection
        if config.log_completions and step % config.logging_steps == 0:
            console.print(self._completions(step, groups, advantages))
        rollout_seconds = time.monotonic() - start
        for iteration in range(config.num_iterations):
            seen, beta = None, self._beta(schedule)
            if config.beta_schedule == "learning_rate":
                metrics["beta"] = beta
            if groups.places:
                # Negative, so that the fresh seed differs from those of latent steps' masks (`PerStepDropout`).
                seeds = groups.seeds if config.replay else fold(groups.seeds, -1 - iteration)
                prompts = self.sampler.prompts(groups.places)
                counted = int(self._counted(groups.rewards).sum())
                seen = self.backward(prompts, seeds, groups.answers, advantages, rollouts=counted, beta=beta)
            if seen is None:  # the gradient is exactly 0
                metrics |= dict.fromkeys(_UPDATE_METRICS, 0.0)
                if groups.places or config.filter_groups is None:
                    optimizer.step()  # no effect without gradients, but the schedule expects it before its own step
                    schedule.step()
                    self.updates += 1
                continue
            seen["grad_norm"] = update(
                self.model,
                optimizer,
                schedule,
                loss=seen["loss"],
                max_grad_norm=config.max_grad_norm,
                where=f"{self._where(step)}, update {iteration + 1}",
                last_good=last_good,
                around=self._callbacks.optimizer_step,
            )
            self.updates += 1
            if iteration > 0:  # rollout and replay have the same policy only before the first update
                for name in _REPLAY_GAPS:
                    del seen[name]
            metrics |= seen
        if self.reference is not None:
            self.reference.end_step(step, self.model)
        metrics["rollout_time"] = rollout_seconds
        metrics["step_time"] = time.monotonic() - start
        if clash := sorted({"part", "step", *metrics} & by_function.keys()):
            raise UserError(f"a reward function logs {clash[0]!r}, a metric of every run: choose another name.")
        return metrics | by_function

    def _where(self, step: int) -> str:
        return f"{self.part} seed {self.sampler.seed}, step {step}"

    def _beta(self, schedule: Any) -> float:
        """Weight of the KL in the next update."""
        if self.config.beta_schedule == "constant":
            return self.config.beta
        return self.config.beta * schedule.get_last_lr()[0] / self.config.learning_rate

    def _counted(self, rewards: Tensor) -> Tensor:
        """True for the rollouts that the update averages over, bool [N, K]."""
        return counted_rollouts(rewards, at_least=2 if self.config.baseline == "group_mean" else 1)

    def _metrics(self, sampled: Groups) -> dict[str, float]:
        """Metrics of all rollouts of a step."""
        answers, rewards = sampled.answers, sampled.rewards
        lengths, judged = answers.mask.sum(-1), rewards[~rewards.isnan()]
        metrics = {
            "reward": float(judged.mean()) if len(judged) else 0.0,
            "reward_std": float(standard_deviations(rewards).mean()),
            "frac_reward_zero_std": float(zero_variance(rewards).float().mean()),
            "frac_groups_all_correct": float(all_correct(rewards).float().mean()),
            "frac_groups_all_wrong": float(all_wrong(rewards).float().mean()),
            "entropy": float(answers.entropy.sum() / lengths.sum()),
            "completions/mean_length": float(lengths.float().mean()),
            "completions/min_length": float(lengths.min()),
            "completions/max_length": float(lengths.max()),
            "completions/clipped_ratio": float(self._truncated(answers).float().mean()),
        }
        if self.config.baseline == "ema":
            metrics["baseline"] = self.baseline.value
        if len(judged) < rewards.numel():
            metrics["completions/unjudged"] = rewards.numel() - len(judged)
        return metrics

    def _completions(self, step: int, groups: Groups, advantages: Tensor) -> Table:
        """The first ``num_completions_to_print`` questions of a step with their rollouts."""
        shown = torch.arange(min(self.config.num_completions_to_print, len(groups.places)))
        few, k = groups.select(shown), groups.seeds.shape[1]
        problems = [self.sampler.problems[place] for place in few.places]
        texts = self.model.decode(few.answers.token_ids, few.answers.mask)
        return completions_table(
            step,
            [problem.question for problem in problems],
            [texts[i * k : i * k + k] for i in range(len(problems))],
            few.rewards.tolist(),
            advantages[shown].tolist(),
            [problem.answer for problem in problems],
        )

    def _truncated(self, answers: Generation) -> Tensor:
        """True for answers cut at ``max_completion_length``, bool [R]."""
        full = answers.mask.sum(-1) == self.config.max_completion_length
        return full & ~self.model.tokens.end_answer(answers.token_ids[:, -1])

    def _for_update(self, sampled: Groups) -> tuple[Groups, Tensor, dict[str, float]]:
        """The groups that the update uses with their advantages, and metrics of the selection."""
        config, answers, rewards = self.config, sampled.answers, sampled.rewards
        if config.baseline == "ema":
            advantages = baseline_advantages(rewards, self.baseline.value)
            self.baseline = self.baseline.after(rewards, config.ema_decay)
        else:
            advantages = group_advantages(
                rewards, scale_rewards=config.scale_rewards, leave_one_out=config.leave_one_out
            )
        used = answers.mask & self._counted(rewards).flatten()[:, None].to(answers.mask.device)
        if config.mask_truncated_completions:
            used = used & ~self._truncated(answers)[:, None]
        groups = replace(sampled, answers=replace(answers, mask=used))
        if config.dynamic_sampling_max_gen_batches is None and config.filter_groups is None:
            return groups, advantages, {}
        kept = self.sampler.selected(rewards)
        metrics: dict[str, float] = {
            "groups/sampled": len(rewards),
            "groups/mixed": int((~zero_variance(rewards)).sum()),
            "groups/kept": len(kept),
        }
        if config.filter_groups is not None:
            metrics["groups/step_skipped"] = int(len(kept) == 0)
        return groups.select(kept), advantages[kept], metrics

    def backward(
        self,
        prompts: Prompts,
        seeds: Tensor,
        answers: Generation,
        advantages: Tensor,
        *,
        rollouts: int | None = None,
        beta: float | None = None,
    ) -> dict[str, float] | None:
        """Compute gradients of the objective over N groups; return None if the gradient is exactly 0.

        Args:
            prompts: N questions.
            seeds: seeds of the masks, int64 [N, K].
            answers: answers of the rollouts, N * K rows; rows without a token in ``mask`` are left out of the update.
            advantages: [N, K].
            rollouts: number of rollouts that the objective averages over; N * K when None.
            beta: weight of the KL; the config's when None.
        """
        beta = self.config.beta if beta is None else beta
        totals = Batch(
            rollouts=max(1, seeds.numel() if rollouts is None else rollouts),
            tokens=max(1, int(answers.mask.sum())),
            max_completion_length=self.config.max_completion_length,
        )
        replayed = prompts.longest_first()
        if self.reference is None:
            wanted = (advantages != 0).any(dim=1)
        else:  # the KL has a gradient in every group with a token in the update
            wanted = answers.mask.view(len(seeds), -1).any(dim=1).cpu()
        replayed = replayed[wanted[replayed]]
        if len(replayed) == 0:
            return None
        costs = self._token_forwards(prompts, answers, seeds.shape[1])[replayed].tolist()
        shares = processes.balanced(costs, processes.size())
        mine = replayed[sorted(shares[processes.rank()])]

        def accumulate(size: int) -> Sums:
            return self._accumulate(prompts, seeds, answers, advantages, mine.split(size), totals, beta)

        seen = Sums()
        if len(mine):
            seen = self._batches.fit(len(mine), accumulate, rows=seeds.shape[1], clear=self._clear_gradients)
        loss, kl, low, high, differences, tokens = processes.add_up(
            seen.loss, seen.kl, seen.clipped_low, seen.clipped_high, seen.differences, seen.replayed
        )
        metrics = {
            "loss": loss,
            "kl": kl / totals.tokens,
            "clip_ratio/low_mean": low / totals.tokens,
            "clip_ratio/high_mean": high / totals.tokens,
            "clip_ratio/region_mean": (low + high) / totals.tokens,
            "replay/logprob_diff_max": processes.greatest(seen.difference)[0],
            "replay/logprob_diff_mean": differences / max(1.0, tokens),
        }
        if processes.size() > 1:
            metrics["replay/imbalance"] = processes.imbalance(costs, shares)
        return metrics

    def _token_forwards(self, prompts: Prompts, answers: Generation, k: int) -> Tensor:
        """Token-forwards of each group's replay, int64 [N] on the CPU: the cost by which processes divide the work."""
        read = prompts.attention_mask.sum(-1)
        if "prompt" in self.exploration.phases:
            read = read * k
        return (read + k * self.model.latent_steps + answers.mask.view(len(read), -1).sum(-1)).cpu()

    def _accumulate(
        self,
        prompts: Prompts,
        seeds: Tensor,
        answers: Generation,
        advantages: Tensor,
        micro_batches: Sequence[Tensor],
        totals: Batch,
        beta: float,
    ) -> Sums:
        """Accumulate gradients of the objective over micro-batches; return this process's part of the metrics."""
        config, seen = self.config, Sums()
        parts: list[Tensor] = []  # numbers of each micro-batch, on the device
        for groups in micro_batches:
            rows = rows_of(groups, seeds.shape[1]).to(answers.mask.device)
            old_logprobs, used = answers.logprobs[rows], answers.mask[rows]
            chosen = (prompts.select(groups), seeds[groups], answers.token_ids[rows])
            ref_logprobs = None
            if self.reference is not None and beta > 0:  # first, while no activations are kept
                with autocast(self.model.device, self.bf16):
                    ref_logprobs = self.reference.logprobs(*chosen)
            with autocast(self.model.device, self.bf16):
                logprobs = replay(self.model, *chosen, self.exploration, temperature=config.temperature)
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
                beta=0.0 if ref_logprobs is None else beta,
                ref_logprobs=ref_logprobs,
                kl_estimator=config.kl_estimator,
                kl_delta=config.kl_delta,
            )
            part.loss.backward()
            gap = torch.where(used, logprobs.detach() - old_logprobs, torch.zeros_like(old_logprobs)).abs()
            sums = (part.loss, part.kl, part.clipped_low, part.clipped_high, gap.max(), gap.sum(), used.sum())
            parts.append(torch.stack([number.detach().double() for number in sums]))
        for loss, kl, low, high, greatest, total, tokens in torch.stack(parts).tolist():  # one wait for the device
            seen.loss += loss
            seen.kl += kl
            seen.clipped_low += low
            seen.clipped_high += high
            seen.difference = max(seen.difference, greatest)
            seen.differences += total
            seen.replayed += tokens
        return seen


def _validated(
    sets: Mapping[str, Sequence[Problem]],
    config: GRPOOptions,
    exploration: Exploration,
    seed: int,
    bf16: bool,
    model: LatentModel,
) -> dict[str, float]:
    noisy = model.noise(exploration, torch.zeros(1, dtype=torch.int64)) is not None
    asked = EvaluationConfig(
        num_samples=config.num_generations_eval if noisy else 0,
        max_new_tokens=config.max_completion_length,
        batch_size=config.rollout_batch_size,
    )
    return validation_metrics(
        {
            name: answer_problems(model, problems, asked, exploration=exploration, seed=seed, bf16=bf16)
            for name, problems in sets.items()
        }
    )
