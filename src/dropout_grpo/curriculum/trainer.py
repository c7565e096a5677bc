"""Trains a latent model through Coconut's curriculum, with the model's own ``read``, ``think`` and ``score``.

Stage 0 is chain of thought in words. In stage s the first s steps are replaced by s x c thoughts. Past the last stage
all steps are gone and the latent block has its full length, max_latent_stage x c (Hao et al. 2024, section 3 and
``dataset.py`` of facebookresearch/coconut). A problem with fewer than s steps still gets s x c thoughts: short problems
are padded to the block's length.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from dropout_grpo.config.choices import ParamDtype
from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.data.problem import problem_fingerprint
from dropout_grpo.data.records import as_problems, as_sets
from dropout_grpo.distributed import processes
from dropout_grpo.distributed.sharding import as_shards
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.validation import Validation, require_one_validation
from dropout_grpo.exploration.seeds import fold, uniform
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.head import at_temperature, token_logprobs
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import encode_answers, encode_steps, pad_left, pad_right
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.record import weights_digest
from dropout_grpo.training.adamw_8bit import eight_bit_parameters
from dropout_grpo.training.checkpoint import restore_optimizer, save_checkpoint
from dropout_grpo.training.loop import Trainer, join_processes
from dropout_grpo.training.memory import MicroBatches, checkpointing_instead
from dropout_grpo.training.model_argument import as_latent_model, bf16_products, require_param_dtype
from dropout_grpo.training.muon import hidden_matrices
from dropout_grpo.training.optimizer import build_optimizer, build_schedule
from dropout_grpo.training.plan import Work, optimizer_bytes
from dropout_grpo.training.resume import Saved

Evaluate = Callable[[LatentModel, int, int], float | Mapping[str, float]]
"""pass@1 on validation problems, in [0, 1], from a model, its latent steps and the answer tokens it may need."""

_Step = TypeVar("_Step")
_BATCHES_SORTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: the number of steps dropped (None for all), the thoughts that replace them, and the epochs."""

    index: int
    dropped_steps: int | None
    latent_steps: int
    epochs: int

    def words(self, steps: Sequence[_Step]) -> Sequence[_Step]:
        """The steps that stay in words, as texts or as tokens."""
        return [] if self.dropped_steps is None else steps[self.dropped_steps :]


def stages_of(config: CurriculumConfig) -> list[Stage]:
    """All stages in order: 0 (words), 1 .. max_latent_stage, and the final one, which has only answers."""
    c, last = config.c_thought, config.max_latent_stage
    return [
        Stage(index=0, dropped_steps=0, latent_steps=0, epochs=config.cot_epochs),
        *(
            Stage(index=s, dropped_steps=s, latent_steps=s * c, epochs=config.epochs_per_stage)
            for s in range(1, last + 1)
        ),
        Stage(index=last + 1, dropped_steps=None, latent_steps=last * c, epochs=config.final_epochs),
    ]


class CurriculumTrainer(Trainer):
    """Coconut's curriculum on problems with steps. Names are those of TRL's trainers. A step is one update.

    Args:
        model: trained in place: a latent model, whose ``latent_steps`` must be the curriculum's number of thoughts; or
            a plain language model, an object or by name, which gets Coconut's tokens.
        args: options.
        train_dataset: problems with steps, dicts with ``question``, ``steps`` and ``answer``, or a
            ``datasets.Dataset``. A problem without steps (GSM8K has a few) is trained on its answer in every stage, as
            in Coconut.
        run: where metrics and checkpoints go: a run folder, or its path.
        eval_dataset: problems to validate on, in the same forms; or several sets of them by name. The plain network is
            asked, with the thoughts and the answer length of the stage.
        processing_class: the tokenizer of a plain language model that is given as an object.
        peft_config: PEFT's ``LoraConfig`` (``r``, ``lora_alpha``, ``target_modules``), to train an adapter.
        seed: order of the data and of stage mixing, and new weights.
        bf16: compute matrix products in bf16; when not given, on a GPU that has units for it.
        param_dtype: dtype of the weights during training; ``bfloat16`` computes everything in bf16, and trains float32
            masters, which are the weights after the training.
        fsdp: weights, gradients and optimiser state are sharded over the processes.
        evaluation: how ``eval_dataset`` is asked. Only the plain network answers, greedily, with the thoughts and the
            answer length of the stage, so only ``batch_size`` and ``tolerance`` have an effect.
        evaluate: a validation function instead of ``eval_dataset``: takes the model, and the number of thoughts and of
            answer tokens of the stage.
        callbacks: transformers' callbacks, objects or classes; `training/callbacks.py` lists the events.
        part: name of this part in metrics.jsonl, and of its checkpoints.

    Raises:
        UserError: no problems, no steps in any of them, a problem too long for the model, or answers that its
            tokenizer cannot write.
    """

    SHOWN = ("stage", "loss")
    config: CurriculumConfig

    def __init__(
        self,
        model: LatentModel | PreTrainedModel | str | Path,
        args: CurriculumConfig | None = None,
        train_dataset: Iterable[Any] = (),
        run: RunFolder | str | Path = "runs/sft",
        eval_dataset: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        peft_config: Any = None,
        seed: int = 0,
        bf16: bool | None = None,
        param_dtype: ParamDtype | None = None,
        fsdp: bool = False,
        evaluation: EvaluationConfig | None = None,
        evaluate: Evaluate | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        part: str = "sft",
    ) -> None:
        join_processes(fsdp=fsdp)
        config = CurriculumConfig() if args is None else args
        if not isinstance(config, CurriculumConfig):
            raise UserError(f"args is a {type(args).__name__}: give a dropout_grpo.CurriculumConfig.")
        problems = as_problems(train_dataset, "train_dataset")
        model = as_latent_model(
            model,
            processing_class=processing_class,
            latent_steps=None if isinstance(model, LatentModel) else config.latent_steps,
            thought=config.thought,
            peft_config=peft_config,
            seed=seed,
        )
        if (model.latent_steps, model.thought.kind) != (config.latent_steps, config.thought):
            raise UserError(
                f"{model.name} has latent_steps {model.latent_steps} and thought {model.thought.kind!r}, and the "
                f"curriculum trains {config.latent_steps} (c_thought x max_latent_stage) and {config.thought!r}: set "
                "its options so, or load it with LatentModel.from_pretrained(NAME, latent_steps=..., thought=...)."
            )
        require_param_dtype(param_dtype, model, fsdp=fsdp)
        bf16 = bf16_products(bf16, model, param_dtype)
        require_one_validation(eval_dataset, evaluate, evaluation, config.eval_steps)
        if eval_dataset is not None:
            plain = replace(evaluation or EvaluationConfig(), num_samples=0)
            evaluate = Validation(as_sets(eval_dataset, "eval_dataset"), plain, seed=seed, bf16=bf16)
        if fsdp and config.optimizer != "adamw" and processes.size() > 1:
            raise UserError(
                f"curriculum.optimizer {config.optimizer} needs whole matrices, and fsdp shards them: "
                "leave one of them out."
            )
        if not any(problem.steps for problem in problems):
            raise UserError(
                "no training problem has steps, and the curriculum needs them: use the problems for GRPO, which "
                "needs only answers."
            )
        self.args, self.problems, self.stages = config, problems, stages_of(config)
        self._prompts = model.tokenize_for_training([problem.prompt for problem in problems])
        steps = encode_steps(model.tokenizer, [p.steps for p in problems])
        answers = encode_answers(model.tokenizer, [p.answer for p in problems], model.tokens)
        self._answers = {  # stage index -> what follows the end marker: the steps still in words, then the answer
            stage.index: [[*chain.from_iterable(stage.words(s)), *a] for s, a in zip(steps, answers, strict=True)]
            for stage in self.stages
        }
        self._shares: list[list[list[int]]] = []  # of each problem, where thoughts predict
        if config.thoughts_predict:
            if not model.plain_head:
                raise UserError(
                    f"thoughts_predict: {model.name} does more to its logits than its head, a cap or a scale, and "
                    "thoughts are read by the head alone: leave it out for this model."
                )
            self._shares = [_share_out(s, config.c_thought, config.max_latent_stage) for s in steps]
        self._trained = [stage for stage in self.stages if stage.epochs]
        self._shown = self.stages if config.uniform_prob > 0 else self._trained
        shown, row = self._longest_row()
        room = self.stages[shown].latent_steps + len(self._answers[shown][row])
        model.check_length([prompt if i == row else [] for i, prompt in enumerate(self._prompts)], room)
        if isinstance(evaluate, Validation):
            for stage in self._trained:
                evaluate.check(model, stage.latent_steps, self._longest_answer(stage))
        model.require_writable(p.answer for p in problems)
        self._micro_batches = MicroBatches("curriculum.micro_batch_size", config.micro_batch_size or config.batch_size)
        self.updates_per_epoch = math.ceil(len(problems) / config.batch_size)  # the last batch may be smaller
        super().__init__(
            model,
            config,
            run,
            command="sft",
            part=part,
            seed=seed,
            bf16=bf16,
            param_dtype=param_dtype,
            fsdp=fsdp,
            max_steps=sum(stage.epochs for stage in self.stages) * self.updates_per_epoch,
            steps_per_epoch=self.updates_per_epoch,
            encoded=self._prompts,
            batches=[self._micro_batches],
            evaluate=evaluate,
            callbacks=[_EndOfStage(self), *(callbacks or ())],
        )

    def inputs(self) -> tuple[dict[str, Any], dict[str, str | None]]:
        """See ``Trainer``."""
        # Weights made from a seed differ in their last bits between machines, and the seed is compared.
        model = weights_digest(self.model) if self.model.model.name_or_path else None
        return {}, {"model": model, "train_dataset": problem_fingerprint(self.problems)}

    def begin(self, saved: Saved | None) -> None:
        """See ``Trainer``."""
        self._start_time = time.monotonic()
        self.optimizer = self._new_optimizer()
        stage, done = self.stage_of(min(1 if saved is None else saved.step + 1, self.max_steps))
        if saved is not None and (done > 0 or not self.config.reset_optimizer):
            restore_optimizer(saved.path, self.optimizer)
        self._begin_stage(stage, done)

    def stage_of(self, step: int) -> tuple[Stage, int]:
        """The stage of a step, which is counted from 1, and the number of the stage's steps before it."""
        done = step - 1
        for stage in self.stages:
            steps = stage.epochs * self.updates_per_epoch
            if done < steps:
                return stage, done
            done -= steps
        raise ValueError(f"step {step} is beyond the last of {self.max_steps}")

    def ends_stage(self, step: int) -> bool:
        """Whether a step is the last one of its stage."""
        stage, done = self.stage_of(step)
        return done + 1 == stage.epochs * self.updates_per_epoch

    def _begin_stage(self, stage: Stage, done: int) -> None:
        """Set schedule and batches of a stage of which ``done`` steps are done."""
        self._stage = stage
        self.schedule = build_schedule(
            self.optimizer,
            self.config.lr_scheduler_type,
            warmup_steps=self.config.warmup_steps,
            updates=stage.epochs * self.updates_per_epoch,
            done=done,
        )
        self._callbacks.use(self.optimizer, self.schedule)
        self._rest = islice(self._batches(stage), done, None)

    def step(self, step: int) -> dict[str, float]:
        """Update the model on the next batch of the stage."""
        stage, _ = self.stage_of(step)
        if stage is not self._stage:
            if self.config.reset_optimizer:
                self.optimizer = self._new_optimizer()
            self._begin_stage(stage, done=0)
        rate = self.learning_rate
        loss = self.backward(stage, next(self._rest), step - 1)
        return {
            "stage": stage.index,
            "loss": loss,
            "grad_norm": self._update(loss, self.where(step)),
            "learning_rate": rate,
            "seconds": round(time.monotonic() - self._start_time, 3),
        }

    def validated(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Validate as in the stage of the step. The validation has a line of its own."""
        self.write(step, metrics)
        stage, _ = self.stage_of(step)
        return {"stage": stage.index, **self.evaluate(stage)}

    def evaluate(self, stage: Stage | None = None) -> dict[str, float]:
        """pass@1 of the plain network on the validation problems, as ``{"eval/pass@1": ...}``.

        Args:
            stage: whose thoughts and answers are asked for; the last one that is trained when not given.

        Raises:
            UserError: the trainer has no problems to validate on.
        """
        stage = stage or self._trained[-1]
        return self._validated(stage.latent_steps, self._longest_answer(stage))

    def save(self, step: int) -> None:
        """Save the checkpoint of a step, and the model of a stage that ends, if it is to be kept."""
        if self.config.save_stages and self.ends_stage(step):
            stage, _ = self.stage_of(step)
            steps, self.model.latent_steps = self.model.latent_steps, stage.latent_steps
            save_checkpoint(self.run.checkpoint(f"{self.part}-stage-{stage.index}"), self.model)
            self.model.latent_steps = steps
        super().save(step)

    def checkpoint_state(self, step: int) -> dict[str, Any]:
        """The stage; it follows from the step, and is there to be read."""
        return {"stage": self.stage_of(step)[0].index}

    def works(self) -> list[Work]:
        """The update on the longest row of all stages that are shown, and the validation with the longest answers."""
        shown, longest = self._longest_row()

        def update(rows: int) -> Tensor:
            with autocast(self.model.device, self.bf16):
                return self._loss(self.stages[shown], [longest] * rows)

        works = [
            Work(name="update", batches=self._micro_batches, rows=1, most=self.config.batch_size, run=update),
        ]
        if isinstance(self._evaluate, Validation):
            steps = max(stage.latent_steps for stage in self._trained)
            answer = max(map(self._longest_answer, self._trained))
            works.append(self._evaluate.work(self.model, steps, answer))
        return works

    def optimizer_bytes(self) -> int:
        """See ``Trainer``."""
        return optimizer_bytes(self.model.parameters(), **self._apart())

    def _apart(self) -> dict[str, list[nn.Parameter]]:
        """The parameters that are trained with Muon, and those whose moments are held in 8 bits."""
        model, optimizer = self.model, self.config.optimizer
        matrices = hidden_matrices(model, model.model.get_output_embeddings()) if optimizer == "muon" else []
        return {"matrices": matrices, "eight_bit": eight_bit_parameters(model, optimizer)}

    def _longest_answer(self, stage: Stage) -> int:
        """Number of tokens after the end marker, of the problem that has most in this stage."""
        return max(map(len, self._answers[stage.index]))

    def _longest_row(self) -> tuple[int, int]:
        """The stage and problem with most positions of those that are shown."""
        rows = [(stage.index, i) for stage in self._shown for i in range(len(self.problems))]
        return max(rows, key=lambda row: self._cost(*row))

    def _cost(self, stage: int, problem: int) -> int:
        """Number of positions of a problem when it is shown as in ``stage``."""
        latent_steps = self.stages[stage].latent_steps
        return len(self._prompts[problem]) + latent_steps + len(self._answers[stage][problem])

    def where(self, step: int) -> str:
        """See ``Trainer``."""
        return f"curriculum seed {self.seed}, step {step}, stage {self.stage_of(step)[0].index}"

    def _new_optimizer(self) -> Optimizer:
        with as_shards(self.model):
            return build_optimizer(
                self.model.parameters(),
                learning_rate=self.config.learning_rate,
                weight_decay=self.config.weight_decay,
                betas=(0.9, 0.999),
                **self._apart(),
            )

    def _batches(self, stage: Stage) -> Iterator[list[int]]:
        for epoch in range(stage.epochs):
            seed = fold(fold(torch.tensor(self.seed), stage.index), epoch)
            generator = torch.Generator().manual_seed(int(seed))
            order = torch.randperm(len(self.problems), generator=generator).tolist()
            yield from self._buckets(order, stage, generator)

    def _buckets(self, order: list[int], stage: Stage, generator: torch.Generator) -> Iterator[list[int]]:
        """Batches of problems of similar length, to pad little, in random order.

        Only a few batches' worth of problems is sorted at a time, so the composition of batches stays random.
        """
        size = self.config.batch_size
        batches = []
        for start in range(0, len(order), size * _BATCHES_SORTED):
            few = sorted(
                order[start : start + size * _BATCHES_SORTED],
                key=lambda i: len(self._prompts[i]) + len(self._answers[stage.index][i]),
            )
            batches += [few[i : i + size] for i in range(0, len(few), size)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]

    def backward(self, stage: Stage, batch: list[int], step: int) -> float:
        """Back-propagate the mean loss over the answer tokens of a batch. The gradients stay in the model.

        Args:
            stage: one of ``stages``.
            batch: indices of the problems in ``problems``.
            step: updates done so far; the seed of stage mixing.

        Returns:
            The loss of the whole batch, over all processes.
        """
        rows = list(zip(self._mixed_stages(stage, batch, step), batch, strict=True))
        tokens = sum(len(self._answers[s][i]) for s, i in rows)
        costs = [self._cost(s, i) for s, i in rows]
        mine = [rows[i] for i in sorted(processes.balanced(costs, processes.size())[processes.rank()])]
        loss = 0.0
        if mine:
            loss = self._micro_batches.fit(
                len(mine),
                lambda size: self._accumulate(mine, size, tokens),
                clear=self._clear_gradients,
                relieve=partial(checkpointing_instead, self.model, self.config.gradient_checkpointing),
            )
        return processes.add_up(loss)[0]

    def _accumulate(self, mine: Sequence[tuple[int, int]], size: int, tokens: int) -> float:
        """Gradients of this process's rows (stage, problem), at most ``size`` at a time, and their part of the loss."""
        by_stage: dict[int, list[int]] = defaultdict(list)  # stage index -> problems shown as in that stage
        for index, i in mine:
            by_stage[index].append(i)
        loss = 0.0
        for index, rows in sorted(by_stage.items()):
            for start in range(0, len(rows), size):
                with autocast(self.model.device, self.bf16):
                    part = self._loss(self.stages[index], rows[start : start + size]) / tokens
                part.backward()
                loss += float(part.detach())
                self._micro_batches.give_back()
        return loss

    def _mixed_stages(self, stage: Stage, batch: list[int], step: int) -> list[int]:
        if self.config.uniform_prob == 0:
            return [stage.index] * len(batch)
        draws = uniform(fold(fold(torch.tensor([self.seed]), step), torch.tensor(batch)), torch.arange(2))  # [B, 2]
        last = len(self.stages) - 1
        return [  # as Coconut's code: a problem with s steps is drawn to one of the stages 0 .. s, at most the last
            min(int(where * (len(self.problems[i].steps) + 1)), last) if mix < self.config.uniform_prob else stage.index
            for i, (mix, where) in zip(batch, draws.tolist(), strict=True)
        ]

    def _loss(self, stage: Stage, rows: list[int]) -> Tensor:
        model = self.model
        ids, mask = pad_left([self._prompts[i] for i in rows], model.tokens.pad, model.device)
        answers, answer_mask = pad_right([self._answers[stage.index][i] for i in rows], model.tokens.pad, model.device)
        state = model.read(ids, mask)
        hidden = [state.hidden]
        for _ in range(stage.latent_steps):
            state = model.think(state, 1)
            hidden.append(state.hidden)
        loss = -model.score(state, answers, mask=answer_mask).sum()
        return loss + self._thoughts_loss(torch.cat(hidden, dim=1), rows) if self.config.thoughts_predict else loss

    def _thoughts_loss(self, hidden: Tensor, rows: list[int]) -> Tensor:
        """Loss of the words that the thoughts replace, predicted from the hidden states [B, 1 + thoughts, D].

        Averaged over the words of a hidden state, so that it learns their distribution, and summed over hidden states.
        """
        length = hidden.shape[1]
        where = [
            (row, t, share) for row, i in enumerate(rows) for t, share in enumerate(self._shares[i][:length]) if share
        ]
        if not where:
            return hidden.new_zeros(())
        row, thought, shares = zip(*where, strict=True)
        words, mask = pad_right(shares, self.model.tokens.pad, hidden.device)  # [N, W]
        states, table = hidden[list(row), list(thought)], self.model.head_in_pieces(len(row))  # [N, D]
        if table is None:
            logits = self.model.model.get_output_embeddings()(states)  # [N, V]
            logprobs = at_temperature(logits, 1.0).log_softmax(-1).gather(-1, words)  # [N, W]
        else:
            logprobs = token_logprobs(table, states, words)
        return -(logprobs * mask / mask.sum(-1, keepdim=True)).sum()


class _EndOfStage(TrainerCallback):
    """Asks for a validation and a checkpoint at the end of every stage."""

    def __init__(self, trainer: CurriculumTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self._trainer.ends_stage(state.global_step):
            control.should_evaluate = control.should_save = True


def _share_out(steps: Sequence[list[int]], c_thought: int, max_latent_stage: int) -> list[list[int]]:
    """The words that each thought of the full block replaces: a step's words are dealt to its thoughts in turn."""
    return [step[t::c_thought] for step in steps[:max_latent_stage] for t in range(c_thought)]
