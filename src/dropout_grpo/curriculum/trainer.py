"""Trains a latent model through the curriculum, with the model's own ``read``, ``think`` and ``score``."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import TrainOutput

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.curriculum.stages import Stage, curriculum
from dropout_grpo.data.problem import Problem, problem_fingerprint
from dropout_grpo.data.records import as_problems, as_sets
from dropout_grpo.distributed import processes
from dropout_grpo.distributed.sharding import as_shards, start_together
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.evaluation.measures import as_logged, validation_metrics
from dropout_grpo.exploration.seeds import fold, uniform
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.tokens import encode_answers, encode_steps, pad_left, pad_right
from dropout_grpo.runs.files import jsonable
from dropout_grpo.runs.folder import RunFolder, as_run_folder
from dropout_grpo.runs.read import read_metrics
from dropout_grpo.runs.record import Record, weights_digest
from dropout_grpo.training.callbacks import Callbacks, HasCallbacks, arguments
from dropout_grpo.training.checkpoint import save_checkpoint
from dropout_grpo.training.given_model import as_latent_model, require_trainable
from dropout_grpo.training.memory import MicroBatches, free_memory, saved_bytes
from dropout_grpo.training.muon import hidden_matrices
from dropout_grpo.training.optimizer import build_optimizer, build_schedule, update
from dropout_grpo.training.session import TrainingSession

Evaluate = Callable[[LatentModel, int, int], float | Mapping[str, float]]
"""pass@1 on validation problems, in [0, 1], from a model, its latent steps and the answer tokens it may need."""

_BATCHES_SORTED = 8


class CurriculumTrainer(HasCallbacks):
    """Coconut's curriculum on problems with steps. Names are those of TRL's trainers.

    Args:
        model: trained in place: a latent model, whose ``latent_steps`` must be the curriculum's number of thoughts; or
            a plain language model, an object or by name, which gets Coconut's tokens.
        args: options.
        train_dataset: problems with steps, dicts with ``question``, ``steps`` and ``answer``, or a
            ``datasets.Dataset``. A problem without steps (GSM8K has a few) is trained on its answer in every stage, as
            in Coconut.
        run: where metrics and checkpoints go: a run folder, or its path.
        eval_dataset: problems to validate on, in the same forms; or several sets of them by name.
        processing_class: the tokenizer of a plain language model that is given as an object.
        peft_config: PEFT's ``LoraConfig`` (``r``, ``lora_alpha``, ``target_modules``), to train an adapter.
        seed: order of the data and of stage mixing, and new weights.
        bf16: matrix products in bf16.
        fsdp: weights, gradients and optimiser state are sharded over the processes.
        evaluate: validation, with the thoughts and the answer length of the stage. When not given, it is pass@1 of the
            plain network on ``eval_dataset``.
        callbacks: transformers' callbacks, objects or classes; `training/callbacks.py` lists the events.
        part: name of this part in metrics.jsonl, and of its checkpoints.

    Raises:
        UserError: no problems, no steps in any of them, a problem too long for the model, or answers that its
            tokenizer cannot write.
    """

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
        bf16: bool = False,
        fsdp: bool = False,
        evaluate: Evaluate | None = None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]] | None = None,
        part: str = "sft",
    ) -> None:
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
        if evaluate is None and eval_dataset is not None:
            evaluate = partial(_validated, as_sets(eval_dataset, "eval_dataset"), bf16)
        self.model, self.args, self.config, self.problems, self._run = model, config, config, problems, run
        self.seed, self.bf16, self.fsdp, self._ask, self.part = seed, bf16, fsdp, evaluate, part
        self._micro_batches = MicroBatches("curriculum.micro_batch_size", config.micro_batch_size or config.batch_size)
        self.stages = curriculum(
            c_thought=config.c_thought,
            max_latent_stage=config.max_latent_stage,
            cot_epochs=config.cot_epochs,
            epochs_per_stage=config.epochs_per_stage,
            final_epochs=config.final_epochs,
        )
        if fsdp and config.optimizer == "muon" and processes.size() > 1:
            raise UserError(
                "curriculum.optimizer muon needs whole matrices, and fsdp shards them: leave one of them out."
            )
        if not any(problem.steps for problem in problems):
            raise UserError(
                "no training problem has steps, and the curriculum needs them: use the problems for GRPO, which "
                "needs only answers."
            )
        self._prompts = model.tokenize_for_training([problem.prompt for problem in problems])
        steps = encode_steps(model.tokenizer, [p.steps for p in problems])
        answers = encode_answers(model.tokenizer, [p.answer for p in problems], model.tokens)
        self._answers = {  # stage index -> what follows the end marker: the steps still in words, then the answer
            stage.index: [[*chain.from_iterable(stage.words(s)), *a] for s, a in zip(steps, answers, strict=True)]
            for stage in self.stages
        }
        self._record: Record | None = None
        self._shares: list[list[list[int]]] = []  # of each problem, where thoughts predict
        if config.thoughts_predict:
            self._shares = [_share_out(s, config.c_thought, config.max_latent_stage) for s in steps]
        longest = max(stage.latent_steps + max(map(len, self._answers[stage.index])) for stage in self.stages)
        model.check_length(self._prompts, longest)
        model.require_writable(p.answer for p in problems)
        self._updates = sum(stage.epochs for stage in self.stages) * self.updates_per_epoch
        self._callbacks = Callbacks(
            callbacks or (),
            arguments(
                config,
                output_dir=str(run.path if isinstance(run, RunFolder) else run),
                evaluates=evaluate is not None,
                metric_for_best_model=None,
                greater_is_better=None,
            ),
            model,
            max_steps=self._updates,
            steps_per_epoch=self.updates_per_epoch,
        )

    @property
    def updates_per_epoch(self) -> int:
        """Number of updates in one pass over the problems; the last batch may be smaller."""
        return math.ceil(len(self.problems) / self.config.batch_size)

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainOutput:
        """Run all stages.

        Args:
            resume_from_checkpoint: True loads the newest good checkpoint of the run and continues after it; the path of
                one of its checkpoints loads that one. Data and options must be those that the run began with.

        Returns:
            The number of updates, the mean of their losses, and ``train_runtime`` in seconds, as in transformers.

        Raises:
            UserError: the run has steps already and is not resumed, or it began with something else.
            NonFinite: loss, gradient or logits are not finite.
            Interrupted: the process was asked to stop; a checkpoint has been saved.
        """
        config = self.config
        require_trainable(self.model)
        if self._record is None:
            self._record = self._made_from()
        run = self._run = as_run_folder(self._run, "sft", self._record, resume=bool(resume_from_checkpoint))
        callbacks, losses = self._callbacks, list[float]()
        session = TrainingSession(
            run,
            self.part,
            self.model,
            record=self._record,
            batches=[self._micro_batches],
            save_total_limit=config.save_total_limit,
        )
        saved = session.begin(resume_from_checkpoint)
        step = first = 0 if saved is None else saved.step
        if saved is not None:
            callbacks.restore(saved.state, read_metrics(run.path, whole_lines=True), self.part)
        start_together(self.model, sharded=self.fsdp)
        optimizer = self._optimizer()
        if saved is None and self.model.device.type == "cpu":
            self._limit_micro_batches()
        start, before = time.monotonic(), 0  # updates before the stage
        with session.steps("curriculum", self._updates, step) as bar:
            callbacks.begin(step, optimizer, None)
            for stage in self.stages:
                updates = stage.epochs * self.updates_per_epoch
                done, before = step - before, before + updates
                if done >= updates:  # a stage that is finished, or has no epochs
                    continue
                if done == 0 and config.reset_optimizer:
                    optimizer = self._optimizer()
                elif saved is not None:
                    saved.restore_optimizer(optimizer)
                saved = None
                schedule = build_schedule(
                    optimizer,
                    config.lr_scheduler_type,
                    warmup_steps=config.warmup_steps,
                    updates=updates,
                    done=done,
                )
                callbacks.use(optimizer, schedule)
                for batch in islice(self._batches(stage), done, None):
                    callbacks.begin_step(step + 1, first=step == first)
                    rate = schedule.get_last_lr()[0]
                    loss = self.backward(stage, batch, step)
                    norm = update(
                        self.model,
                        optimizer,
                        schedule,
                        loss=loss,
                        max_grad_norm=config.max_grad_norm,
                        where=self._where(step + 1, stage),
                        last_good=session.last_good,
                        around=callbacks.optimizer_step,
                    )
                    step += 1
                    losses.append(loss)
                    metrics = {
                        "stage": stage.index,
                        "loss": loss,
                        "grad_norm": norm,
                        "learning_rate": rate,
                        "seconds": round(time.monotonic() - start, 3),
                    }
                    callbacks.end_step(step)
                    run.log({"part": self.part, "step": step, **metrics})
                    callbacks.log(metrics)
                    ends = step == before
                    if self._ask is not None and (ends or callbacks.control.should_evaluate):
                        run.log({"part": self.part, "step": step, "stage": stage.index, **self.evaluate(stage)})
                    interrupted = session.stopping
                    asked = callbacks.control
                    if ends or asked.should_save or asked.should_training_stop or interrupted:
                        session.require_finite(self.model.pad(self._prompts[:1]), self._where(step, stage))
                        if ends and config.save_stages:
                            save_checkpoint(run.checkpoint(f"{self.part}-stage-{stage.index}"), self.model)
                        session.save(step, optimizer, {"stage": stage.index, **callbacks.checkpoint_state()})
                        callbacks.saved()
                    bar.advance(stage=stage.index, loss=loss)
                    if interrupted:
                        session.stop(step)
                    if callbacks.control.should_training_stop:
                        break
                if callbacks.control.should_training_stop:
                    break
            return callbacks.end(losses, time.monotonic() - start)

    def evaluate(self, stage: Stage | None = None) -> dict[str, float]:
        """pass@1 of the plain network on the validation problems, as ``{"eval/pass@1": ...}``.

        Args:
            stage: whose thoughts and answers are asked for; the last one when not given.

        Raises:
            UserError: the trainer has no problems to validate on.
        """
        if self._ask is None:
            raise UserError("there is nothing to evaluate on: give the trainer an eval_dataset.")
        stage = stage or self.stages[-1]
        longest = max(map(len, self._answers[stage.index]))
        found = as_logged(self._ask(self.model, stage.latent_steps, longest))
        self._callbacks.evaluated(found)
        return found

    def _made_from(self) -> Record:
        """What a resumed run, and every process of a run, must have alike."""
        options = {
            **asdict(self.config),
            "seed": self.seed,
            "bf16": self.bf16,
            "fsdp": self.fsdp,
            "dtype": str(self.model.model.dtype).removeprefix("torch."),
            "latent_steps": self.model.latent_steps,
            "prompt_format": self.model.prompt_format,
        }
        digests = {
            # Weights made from a seed differ in their last bits between machines, and the seed is compared.
            "model": weights_digest(self.model) if self.model.model.name_or_path else None,
            "train_dataset": problem_fingerprint(self.problems),
        }
        return Record(options=jsonable(options), digests=digests)

    def _limit_micro_batches(self) -> None:
        """Size the micro-batches by the longest row of all stages that train."""
        rows = [(stage.index, i) for stage in self.stages if stage.epochs for i in range(len(self.problems))]
        longest = max(rows, key=lambda row: self._cost(*row))
        kept = saved_bytes(lambda: self._accumulate([longest], 1, 1), self.model)
        self._clear_gradients()
        self._micro_batches.limit(kept, free_memory())

    def _cost(self, stage: int, problem: int) -> int:
        """Number of positions of a problem when it is shown as in ``stage``."""
        latent_steps = self.stages[stage].latent_steps
        return len(self._prompts[problem]) + latent_steps + len(self._answers[stage][problem])

    def _clear_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def _where(self, step: int, stage: Stage) -> str:
        return f"curriculum seed {self.seed}, step {step}, stage {stage.index}"

    def _optimizer(self) -> torch.optim.Optimizer:
        head = self.model.model.get_output_embeddings()
        with as_shards(self.model):
            return build_optimizer(
                self.model.parameters(),
                learning_rate=self.config.learning_rate,
                weight_decay=self.config.weight_decay,
                betas=(0.9, 0.999),
                matrices=hidden_matrices(self.model, head) if self.config.optimizer == "muon" else (),
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
        mine = [rows[place] for place in sorted(processes.balanced(costs, processes.size())[processes.rank()])]
        loss = 0.0
        if mine:
            loss = self._micro_batches.fit(
                len(mine), lambda size: self._accumulate(mine, size, tokens), clear=self._clear_gradients
            )
        return processes.add_up(loss)[0]

    def _accumulate(self, mine: Sequence[tuple[int, int]], size: int, tokens: int) -> float:
        """Gradients of this process's rows (stage, problem), at most ``size`` at a time, and their part of the loss."""
        shown: dict[int, list[int]] = defaultdict(list)  # stage index -> problems shown as in that stage
        for index, i in mine:
            shown[index].append(i)
        loss = 0.0
        for index, rows in sorted(shown.items()):
            for start in range(0, len(rows), size):
                with autocast(self.model.device, self.bf16):
                    part = self._loss(self.stages[index], rows[start : start + size]) / tokens
                part.backward()
                loss += float(part.detach())
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
        loss = -(model.score(state, answers) * answer_mask).sum()
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
        logits = self.model.model.get_output_embeddings()(hidden[list(row), list(thought)])  # [N, V]
        logprobs = logits.float().log_softmax(-1).gather(-1, words)  # [N, W]
        return -(logprobs * mask / mask.sum(-1, keepdim=True)).sum()


def _validated(
    sets: Mapping[str, Sequence[Problem]], bf16: bool, model: LatentModel, latent_steps: int, max_new_tokens: int
) -> dict[str, float]:
    asked = EvaluationConfig(num_samples=0, max_new_tokens=max_new_tokens, latent_steps=latent_steps)
    return validation_metrics({name: answer_problems(model, part, asked, bf16=bf16) for name, part in sets.items()})


def _share_out(steps: Sequence[list[int]], c_thought: int, max_latent_stage: int) -> list[list[int]]:
    """The words that each thought of the full block replaces: a step's words are dealt to its thoughts in turn."""
    return [step[t::c_thought] for step in steps[:max_latent_stage] for t in range(c_thought)]
