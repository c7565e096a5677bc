"""GRPO with shared masks: sample rollouts, compute rewards and advantages, replay under the same masks, update.

A step is ``GRPOTrainer.step``. `rl/sampler.py` has the rollouts, `rl/advantage.py` the advantages, `rl/update.py` the
gradient and `rl/objective.py` the objective. The loop around the steps is `training/loop.py`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from dropout_grpo.config.choices import ParamDtype
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.from_trl import require_accepted
from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.config.grpo_config import GRPOConfig, either
from dropout_grpo.data.problem import problem_fingerprint
from dropout_grpo.data.records import as_problems, as_sets
from dropout_grpo.data.rewards import RewardFunction, as_reward_functions, reward_names
from dropout_grpo.distributed import processes
from dropout_grpo.distributed.sharding import as_shards
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.validation import Validation, require_one_validation, tell_without_effect
from dropout_grpo.exploration.base import Exploration, FollowsTraining
from dropout_grpo.exploration.build import options_of, require_exploration
from dropout_grpo.exploration.dropout import SharedDropout
from dropout_grpo.exploration.seeds import fold
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Generation, Sampling
from dropout_grpo.latent.io.card import CardFacts
from dropout_grpo.latent.io.checkpoint import save_latent_model
from dropout_grpo.latent.io.hub import is_local, push_folder
from dropout_grpo.latent.lora.checkpoint import has_adapter, peft_config
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts, replay
from dropout_grpo.latent.tokens import CHAT, set_template_variables
from dropout_grpo.rl.advantage import (
    MovingAverage,
    baseline_advantages,
    counted_rollouts,
    group_advantages,
    zero_variance,
)
from dropout_grpo.rl.groups import Groups
from dropout_grpo.rl.logging import Watch, completions_table, rollout_metrics
from dropout_grpo.rl.reference import ReferencePolicy, scheduled_beta
from dropout_grpo.rl.sampler import RolloutSampler
from dropout_grpo.rl.update import METRICS, REPLAY_GAPS, PolicyUpdate
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.record import code_digest, weights_digest
from dropout_grpo.training.adamw_8bit import eight_bit_parameters
from dropout_grpo.training.checkpoint import restore_optimizer, saved_reference
from dropout_grpo.training.loop import Trainer, join_processes
from dropout_grpo.training.masters import masters_as_weights
from dropout_grpo.training.model_argument import as_latent_model, bf16_products, require_param_dtype
from dropout_grpo.training.optimizer import NonFinite, build_optimizer, build_schedule, last_good_is
from dropout_grpo.training.plan import Held, Work, optimizer_bytes, sampled
from dropout_grpo.training.progress import console
from dropout_grpo.training.resume import Saved

Evaluate = Callable[[LatentModel], float | Mapping[str, float]]

_FEW = 64
"""Rollouts of a step for which the default learning rate is too high."""

_UNTAUGHT = (
    " warning: the model has never learnt to think before an answer. Train the curriculum first (CurriculumTrainer, or "
    "dropout-grpo sft): GRPO improves only what a model does sometimes."
)
_EXPLORATION = "exploration."
"""Prefix of the names of the exploration's tensors in a checkpoint."""


class GRPOTrainer(Trainer):
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
        exploration: the noise that makes the rollouts of a question differ; ``SharedDropout(0.1)`` when not given.
        run: where metrics and checkpoints go: a run folder, or its path; ``runs/grpo`` when not given.
        seed: seed of the data order, masks and samples; 0 when not given.
        bf16: compute matrix products in bf16; when not given, on a GPU that has units for it.
        param_dtype: dtype of the weights during training; ``bfloat16`` computes everything in bf16, and trains float32
            masters, which are the weights after the training.
        fsdp: shard weights, gradients and optimiser state over the processes.
        evaluation: how ``eval_dataset`` is asked. Its ``num_samples`` is ignored: the plain network answers greedily,
            and ``num_generations_eval`` is the number of answers under masks. When not given, answers have at most
            ``max_completion_length`` tokens, and batches ``rollout_batch_size`` rows.
        evaluate: a validation function instead of ``eval_dataset``: takes the model, and returns pass@1 in [0, 1] or
            several shares by name.
        callbacks: transformers' callbacks, objects or classes; `training/callbacks.py` lists the events.
        part: name of this part in metrics.jsonl, and of its checkpoints.
        of_trl: TRL's other arguments, which may only be None; see ``docs/from-trl.md``.

    Raises:
        UserError: an argument that is not supported, no problems, a model with no latent steps, a question too long, or
            options that contradict the exploration.
    """

    SHOWN = ("reward", "loss")
    config: GRPOOptions

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
        param_dtype: ParamDtype | None = None,
        fsdp: bool = False,
        evaluation: EvaluationConfig | None = None,
        evaluate: Evaluate | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        part: str = "grpo",
        **of_trl: Any,
    ) -> None:
        require_accepted(of_trl, tuple(signature(GRPOTrainer).parameters)[:-1])
        join_processes(fsdp=fsdp)
        args = GRPOConfig() if args is None else args
        if not isinstance(args, GRPOOptions):
            raise UserError(f"args is a {type(args).__name__}: give a dropout_grpo.GRPOConfig.")
        beside = args if isinstance(args, GRPOConfig) else GRPOConfig()
        run = either("run", run, "output_dir", beside.output_dir, "runs/grpo")
        seed, bf16 = either("seed", seed, "seed", beside.seed, 0), either("bf16", bf16, "bf16", beside.bf16, None)
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
        require_param_dtype(param_dtype, model, fsdp=fsdp)
        bf16 = bf16_products(bf16, model, param_dtype)
        set_template_variables(model.tokenizer, beside.chat_template_kwargs)
        if beside.chat_template_kwargs and model.prompt_format != CHAT and all(p.messages is None for p in problems):
            console.print("warning: chat_template_kwargs has no effect: no question is a conversation.")
        if model.latent_steps == 0:
            raise UserError("the checkpoint has latent_steps 0: there is no latent phase for GRPO to explore.")
        if config.reward_weights is not None and len(config.reward_weights) != len(reward_funcs):
            raise UserError(
                f"reward_weights has {len(config.reward_weights)} numbers for {len(reward_funcs)} reward functions: "
                "give one each, or none for equal weights."
            )
        if fsdp and config.optim == "adamw_8bit" and processes.size() > 1:
            raise UserError(
                f"{config.named('optim')} adamw_8bit needs whole matrices, and fsdp shards them: leave one of them out."
            )
        self.args, self.exploration = args, exploration
        self._follower = exploration if isinstance(exploration, FollowsTraining) else FollowsTraining()
        self.sampler = RolloutSampler(model, config, exploration, reward_funcs, problems, seed=seed, bf16=bf16)
        if isinstance(args, GRPOConfig):  # an epoch is of the questions that max_prompt_length leaves
            config = args.settled(len(self.sampler.problems), processes.size())
        noisy = model.noise(exploration, torch.zeros(1, dtype=torch.int64)) is not None
        if not config.replay and not noisy:
            raise UserError(
                "replay: false draws a fresh mask for the update, and without exploration there is no mask: choose an "
                "exploration.kind with p above 0, or leave replay out."
            )
        deterministic = config.answers == "greedy" and config.baseline == "group_mean" and not noisy
        if deterministic:
            console.print(
                "warning: answers: greedy without exploration makes all rollouts of a question the same, so every "
                "advantage is 0 and nothing can be learned. Use it only as a control.",
                markup=False,
            )
        rollouts, rate = config.prompts_per_step * config.num_generations, config.learning_rate
        if rollouts <= _FEW and rate == GRPOOptions.learning_rate and config.max_steps > 2:  # more than --smoke
            console.print(
                f"warning: {config.named('learning_rate')} is {rate:g}, the default for steps of about 1,000 rollouts. "
                f"With the {rollouts} of this training it may ruin the model: give a smaller one, such as 1e-5.",
                markup=False,
            )
        reference = None
        if config.beta > 0 and not deterministic:  # a policy that never changes has a KL of 0
            reference = ReferencePolicy(model, config, exploration, bf16=bf16, param_dtype=param_dtype)
        self.update = PolicyUpdate(model, config, exploration, reference, bf16=bf16)
        self.updates = 0
        self.baseline = MovingAverage()
        self._watch = Watch(config)
        require_one_validation(eval_dataset, evaluate, evaluation, config.eval_steps)
        if config.num_generations_eval and eval_dataset is None:
            samples = config.num_generations_eval
            tell_without_effect(config.named("num_generations_eval"), samples, "eval_dataset")
        if beside.metric_for_best_model and (config.eval_steps == 0 or (eval_dataset is None and evaluate is None)):
            metric = beside.metric_for_best_model
            tell_without_effect("metric_for_best_model", metric, "eval_dataset, and eval_steps above 0")
        if eval_dataset is not None:
            if evaluation is not None and evaluation.max_new_tokens < config.max_completion_length:
                console.print(
                    f"warning: validation cuts answers at evaluation.max_new_tokens={evaluation.max_new_tokens}, below "
                    f"{config.named('max_completion_length')}={config.max_completion_length}: set both.",
                    markup=False,
                )
            evaluation = evaluation or EvaluationConfig(
                max_new_tokens=config.max_completion_length, batch_size=config.rollout_batch_size
            )
            differ = noisy or evaluation.temperature > 0  # the samples of a problem
            if config.num_generations_eval and not differ:
                needs = "masks or evaluation.temperature above 0"
                tell_without_effect(config.named("num_generations_eval"), config.num_generations_eval, needs)
            evaluation = replace(evaluation, num_samples=config.num_generations_eval if differ else 0)
            sets = as_sets(eval_dataset, "eval_dataset")
            evaluate = Validation(sets, evaluation, exploration, seed=seed, bf16=bf16)
            evaluate.check(model)
        super().__init__(
            model,
            config,
            run,
            command="grpo",
            part=part,
            seed=seed,
            bf16=bf16,
            param_dtype=param_dtype,
            fsdp=fsdp,
            max_steps=config.max_steps,
            steps_per_epoch=len(self.sampler.problems) / config.questions_per_step,
            encoded=self.sampler.encoded,
            batches=[self.update.batches, self.sampler.batches],
            evaluate=evaluate,
            callbacks=callbacks or (),
            start=f"the one it started from, {model.name}",
            report_to=beside.trackers,
            metric_for_best_model=beside.metric_for_best_model,
            greater_is_better=beside.greater_is_better,
        )
        self.sampler.trainer_state = self.state
        if isinstance(evaluate, Validation):
            self._callbacks.require_best(evaluate.measures)

    def step(self, step: int) -> dict[str, float]:
        """Sample a batch of rollouts, make ``num_iterations`` updates on it, and return the metrics."""
        config, start = self.config, time.monotonic()
        self._follower.begin_step(step, self.model.sites)
        sampled, by_function = self.sampler.sample(step)
        if not bool(sampled.answers.logprobs.isfinite().all()):
            raise NonFinite(f"{self.where(step)}: rollout log-probs are not finite. {last_good_is(self.last_good)}")
        metrics = {**rollout_metrics(sampled, self._truncated(sampled.answers)), "learning_rate": self.learning_rate}
        if config.baseline == "ema":
            metrics["baseline"] = self.baseline.value
        groups, advantages, selection = self._selected(sampled)
        metrics |= selection
        if config.log_completions and step % config.logging_steps == 0:
            console.print(self._completions(step, groups, advantages))
        groups, tokens = self._without_unused(groups)
        metrics["rollout_time"] = time.monotonic() - start
        for iteration in range(config.num_iterations):
            metrics |= self._iterate(step, iteration, groups, advantages, tokens)
        if self.update.reference is not None:
            self.update.reference.end_step(step, self.model)
        metrics["step_time"] = time.monotonic() - start
        for warning in self._watch.after(metrics):
            console.print(warning, markup=False)
        if clash := sorted({"part", "step", *metrics} & by_function.keys()):
            raise UserError(f"a reward function logs {clash[0]!r}, a metric of every run: choose another name.")
        return metrics | by_function

    def _selected(self, groups: Groups) -> tuple[Groups, Tensor, dict[str, float]]:
        """The sampled groups that the update uses with their advantages, and metrics of the selection."""
        config, rewards = self.config, groups.rewards
        if config.baseline == "ema":
            advantages = baseline_advantages(rewards, self.baseline.value)
            self.baseline = self.baseline.after(rewards, config.ema_decay)
        else:
            advantages = group_advantages(
                rewards, scale_rewards=config.scale_rewards, leave_one_out=config.leave_one_out
            )
        if config.dynamic_sampling_max_gen_batches is None and config.filter_groups is None:
            return groups, advantages, {}
        selected = self.sampler.selected(rewards)
        metrics: dict[str, float] = {
            "groups/sampled": len(rewards),
            "groups/mixed": int((~zero_variance(rewards)).sum()),
            "groups/kept": len(selected),
        }
        if config.filter_groups is not None:
            metrics["groups/step_skipped"] = int(len(selected) == 0)
        return groups.select(selected), advantages[selected], metrics

    def _without_unused(self, groups: Groups) -> tuple[Groups, int]:
        """The groups without the tokens that the update leaves out: answers not judged, and truncated ones if asked.

        The number is that of the tokens with the truncated answers, over which ``dapo`` averages, as in TRL: otherwise
        a batch of which most is cut would make larger steps.
        """
        answers = groups.answers
        used = answers.mask & self._counted(groups.rewards).flatten()[:, None].to(answers.mask.device)
        tokens = int(used.sum())
        if self.config.mask_truncated_completions:
            used = used & ~self._truncated(answers)[:, None]
        return replace(groups, answers=replace(answers, mask=used)), tokens

    def _iterate(self, step: int, iteration: int, groups: Groups, advantages: Tensor, tokens: int) -> dict[str, float]:
        """Make one of the updates on a step's groups, iteration 0 to ``num_iterations - 1``; return its metrics."""
        config, beta = self.config, scheduled_beta(self.config, self.learning_rate)
        metrics = {"beta": beta} if config.beta_schedule == "learning_rate" else {}
        gradient = None  # metrics of the update's gradient
        if groups.indices:
            if not config.replay:
                # Negative, so that the fresh seed differs from those of latent steps' masks (`PerStepDropout`).
                groups = replace(groups, seeds=fold(groups.seeds, -1 - iteration))
            counted = int(self._counted(groups.rewards).sum())
            unchanged = iteration == 0 and config.replay
            gradient = self.update.backward(
                groups, advantages, rollouts=counted, tokens=tokens, beta=beta, unchanged=unchanged
            )
        if gradient is None:  # it is exactly 0
            if groups.indices or config.filter_groups is None:
                self.optimizer.step()  # no effect without gradients, but the schedule expects it before its own step
                self.schedule.step()
                self.updates += 1
            return metrics | dict.fromkeys((*METRICS, "grad_norm"), 0.0)
        gradient["grad_norm"] = self._update(gradient["loss"], f"{self.where(step)}, update {iteration + 1}")
        self.updates += 1
        if iteration > 0:  # rollout and replay have the same policy only before the first update
            for name in REPLAY_GAPS:
                del gradient[name]
        return metrics | gradient

    def _counted(self, rewards: Tensor) -> Tensor:
        """True for the rollouts that the update averages over, bool [N, K]."""
        return counted_rollouts(rewards, at_least=2 if self.config.baseline == "group_mean" else 1)

    def _truncated(self, answers: Generation) -> Tensor:
        """True for answers cut at ``max_completion_length``, bool [R]."""
        full = answers.mask.sum(-1) == self.config.max_completion_length
        return full & ~self.model.tokens.end_answer(answers.token_ids[:, -1])

    def _completions(self, step: int, groups: Groups, advantages: Tensor) -> Table:
        """The first ``num_completions_to_print`` questions of a step with their rollouts."""
        first = torch.arange(min(self.config.num_completions_to_print, len(groups.indices)))
        few, k = groups.select(first), groups.seeds.shape[1]
        problems = [self.sampler.problems[i] for i in few.indices]
        texts = self.model.decode(few.answers.token_ids, few.answers.mask)
        return completions_table(
            step,
            [problem.question for problem in problems],
            [texts[i * k : i * k + k] for i in range(len(problems))],
            few.rewards.tolist(),
            advantages[first].tolist(),
            [problem.answer for problem in problems],
        )

    def where(self, step: int) -> str:
        """See ``Trainer``."""
        return f"{self.part} seed {self.seed}, step {step}"

    def training(self) -> AbstractContextManager[None]:
        """That of the exploration."""
        return self._follower.training(self.model, self.model.sites)

    def inputs(self) -> tuple[dict[str, Any], dict[str, str | None]]:
        """See ``Trainer``."""
        rewards = self.sampler.reward_funcs
        options = {"exploration": options_of(self.exploration), "reward_funcs": reward_names(rewards)}
        digests = {
            "model": weights_digest(self.model),
            "train_dataset": problem_fingerprint(self.sampler.problems),
            "exploration.kind": code_digest(self.exploration),
            **{f"reward_funcs[{i}]": code_digest(function) for i, function in enumerate(rewards)},
        }
        return options, digests

    def begin(self, saved: Saved | None) -> None:
        """See ``Trainer``."""
        config = self.config
        with as_shards(self.model):
            self.optimizer = build_optimizer(
                self.model.parameters(),
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                betas=(config.adam_beta1, config.adam_beta2),
                eight_bit=eight_bit_parameters(self.model, config.optim),
            )
        self.updates, self.baseline = 0, MovingAverage()  # a training before this one may have begun and left no trace
        if saved is not None:
            restore_optimizer(saved.path, self.optimizer)
            self.restore(saved.state, saved_reference(saved.path))
        self.schedule = build_schedule(
            self.optimizer,
            config.lr_scheduler_type,
            warmup_steps=config.warmup_steps,
            updates=config.max_steps * config.num_iterations,
            done=self.updates,
            min_lr_rate=config.min_lr_rate,
        )
        if saved is not None:
            self._tell_of_length(saved.options.get("max_steps"), saved.step)
        self.model.exploration = options_of(self.exploration)

    def checkpoint_state(self, step: int) -> dict[str, Any]:
        """See ``Trainer``."""
        return {"updates": self.updates, "baseline": asdict(self.baseline)}

    def reference_tensors(self) -> dict[str, Tensor]:
        """The reference's weights if training updates them, and the exploration's tensors."""
        tensors = {} if self.update.reference is None else self.update.reference.tensors()
        own = self._follower.tensors(self.model.sites)
        return tensors | {_EXPLORATION + name: tensor for name, tensor in own.items()}

    def restore(self, state: Mapping[str, Any], reference: Mapping[str, Tensor]) -> None:
        """The inverse of ``checkpoint_state`` and ``reference_tensors``; ``state`` also has the key ``step``."""
        self.updates = state.get("updates", state["step"] * self.config.num_iterations)
        self.baseline = MovingAverage(**state.get("baseline", {}))
        if self.update.reference is not None:
            self.update.reference.load({n: t for n, t in reference.items() if not n.startswith(_EXPLORATION)})
        own = {n.removeprefix(_EXPLORATION): t for n, t in reference.items() if n.startswith(_EXPLORATION)}
        self._follower.load(own, self.model.sites)

    def _tell_of_length(self, before: int | None, done: int) -> None:
        now, kind = self.config.max_steps, self.config.lr_scheduler_type
        if before is None or before == now:
            return
        rate = self.learning_rate
        change = f"the learning rate, {rate:.3g}, stays as it was"
        if kind != "constant":
            change = (
                f"the {kind} schedule now ends at step {now}, so that step {done + 1} has the learning rate "
                f"{rate:.3g}; the steps before had that of a run of {before} steps"
            )
        console.print(f"max_steps was {before} and is now {now}: {change}.", markup=False)

    def reference_model(self) -> nn.Module | None:
        """See ``Trainer``."""
        return None if self.update.reference is None else self.update.reference.model

    def optimizer_bytes(self) -> int:
        """See ``Trainer``."""
        eight_bit = eight_bit_parameters(self.model, self.config.optim)
        return optimizer_bytes(self.model.parameters(), eight_bit=eight_bit)

    def works(self) -> list[Work]:
        """The update and the rollouts of groups with the longest question and the longest answers, and validation."""
        config, k = self.config, self.config.num_generations
        self._follower.begin_step(1, self.model.sites)

        def groups(rows: int) -> tuple[Prompts, Tensor]:
            longest = self.sampler.longest_prompt().select(torch.zeros(rows // k, dtype=torch.int64))
            return longest, torch.arange(rows).view(-1, k)

        def update(rows: int) -> Tensor:
            answers = torch.zeros(rows, config.max_completion_length, dtype=torch.int64, device=self.model.device)
            with autocast(self.model.device, self.bf16):
                return replay(
                    self.model, *groups(rows), answers, self.exploration, temperature=config.temperature
                ).sum()

        def rollouts(rows: int) -> Held:
            prompts, seeds = groups(rows)
            strategy = Sampling(seeds.flatten().to(self.model.device), config.temperature, config.top_p)
            with autocast(self.model.device, self.bf16):
                return sampled(
                    self.model, prompts, seeds, self.exploration, strategy, length=config.max_completion_length
                )

        most = k * config.prompts_per_step
        works = [
            Work(name="update", batches=self.update.batches, rows=k, most=most, run=update),
            Work(name="rollouts", batches=self.sampler.batches, rows=k, most=most, run=rollouts),
        ]
        if isinstance(self._evaluate, Validation) and config.eval_steps > 0:
            works.append(self._evaluate.work(self.model))
        return works

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload the model with its model card to the Hugging Face Hub, and return the address.

        Args:
            repo_id: ``user/name``.
            private: whether a new repository is private.

        Raises:
            UserError: the upload fails, or the model is an adapter on a folder of this machine.
        """
        base = peft_config(self.model.model).base_model_name_or_path if has_adapter(self.model.model) else None
        if base is not None and is_local(base):
            raise UserError(
                f"the adapter is on {base}, a folder that only this machine has: call trainer.save_model(FOLDER), then "
                f"`dropout-grpo merge FOLDER --out MERGED` and `dropout-grpo push MERGED {repo_id}`; or push the base "
                "first, and train with its name on the Hub as model."
            )

        def push() -> str:
            with TemporaryDirectory() as folder:
                path = Path(folder) / repo_id.rpartition("/")[2]
                start = base or self.model.model.name_or_path or None  # None for a model made in memory
                save_latent_model(self.model, path, CardFacts(base=start, method="Dropout-GRPO"))
                return push_folder(path, repo_id, private=private)

        with masters_as_weights(self.model):
            return processes.on_main(push)
