"""The loop of both trainers: resume, step, log, validate, save, stop.

What a step does is in `curriculum/trainer.py` and `rl/trainer.py`; what surrounds it is here, in the order in which it
happens.
"""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState
from transformers.trainer_utils import TrainOutput

from dropout_grpo.config.choices import ParamDtype, TrackerName
from dropout_grpo.distributed import processes
from dropout_grpo.distributed.sharding import start_together
from dropout_grpo.errors import UserError, out_of_memory_is
from dropout_grpo.latent.casts import autocast, held_in_bf16
from dropout_grpo.latent.graphs import allow_recordings_again, give_back_recordings
from dropout_grpo.latent.lora.checkpoint import has_adapter
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.runs.files import checkpoint_folder, jsonable
from dropout_grpo.runs.folder import RunFolder, as_run_folder
from dropout_grpo.runs.read import read_metrics
from dropout_grpo.runs.record import Record
from dropout_grpo.training.callbacks import OURS, Callbacks, arguments
from dropout_grpo.training.checkpoint import save_checkpoint
from dropout_grpo.training.embeddings import make_dense, rows_as_gradients
from dropout_grpo.training.interrupt import Interrupted, finishing_updates
from dropout_grpo.training.machine import bf16_for, freed_memory_kept, return_freed_memory
from dropout_grpo.training.masters import masters_as_weights, with_masters
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.model_argument import require_trainable
from dropout_grpo.training.optimizer import NO_ROOM, update
from dropout_grpo.training.plan import (
    GB,
    Plan,
    Work,
    available_memory,
    bytes_of_casts,
    lasting,
    planned,
    require_fitting,
    require_room,
)
from dropout_grpo.training.progress import Bar, console
from dropout_grpo.training.resume import Checkpoints, Saved

_NOT_GIVEN_BACK = int(2 * GB)
"""Memory of a process that is not worth giving back: a small model's steps would be longer."""


def join_processes(*, fsdp: bool) -> None:
    """Join those of a launched script, such as ``torchrun script.py``; only rank 0 prints. See ``processes.join``."""
    processes.join()
    console.quiet = console.quiet or not processes.is_main()
    for name in ("FSDP", "DEEPSPEED"):
        if not fsdp and os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            console.print(
                f"warning: accelerate's {name} has no effect: to shard weights, give the trainer fsdp=True.",
                markup=False,
            )


class Trainer(ABC):
    """The training of one model, as one part of a run. Methods have the names of transformers' Trainer.

    Arguments that are not listed are those of the subclasses.

    Args:
        config: options, a dataclass.
        command: the command that a new run folder records.
        max_steps: steps of the whole training.
        steps_per_epoch: steps in one pass over the problems, may be a fraction.
        encoded: token ids of the training questions. The first one is asked before each save.
        batches: micro-batches, whose sizes a checkpoint keeps.
        evaluate: validation, called by ``_validated``; None without validation problems.
        start: name of the model before the first checkpoint, for messages.
        report_to: experiment trackers of a new run folder.
        metric_for_best_model: see ``callbacks.arguments``.
        greater_is_better: see ``callbacks.arguments``.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ("loss",)
    """Metrics beside the progress bar."""

    optimizer: Optimizer
    schedule: LambdaLR
    run: RunFolder

    def __init__(
        self,
        model: LatentModel,
        config: Any,
        run: RunFolder | str | Path,
        *,
        command: str,
        part: str,
        seed: int,
        bf16: bool,
        param_dtype: ParamDtype | None,
        fsdp: bool,
        max_steps: int,
        steps_per_epoch: float,
        encoded: Sequence[Sequence[int]],
        batches: Sequence[MicroBatches],
        evaluate: Callable[..., float | Mapping[str, float]] | None,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
        start: str = "none yet",
        report_to: Sequence[TrackerName] = (),
        metric_for_best_model: str | None = None,
        greater_is_better: bool | None = None,
    ) -> None:
        self.model, self.config, self.part, self.seed = model, config, part, seed
        self.bf16, self.param_dtype, self.fsdp, self.max_steps = bf16, param_dtype, fsdp, max_steps
        self._run, self._command, self._report_to = run, command, report_to
        self._encoded, self._batch_sizes, self._evaluate, self._start = encoded, batches, evaluate, start
        self._record: Record | None = None
        self._checkpoints: Checkpoints | None = None
        self._stepped: Optimizer | None = None  # the optimiser of the last update
        self._callbacks = Callbacks(
            callbacks,
            arguments(
                config,
                output_dir=str(run.path if isinstance(run, RunFolder) else run),
                evaluates=evaluate is not None,
                metric_for_best_model=metric_for_best_model,
                greater_is_better=greater_is_better,
            ),
            model,
            max_steps=max_steps,
            steps_per_epoch=steps_per_epoch,
        )

    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> TrainOutput:
        """Make all steps.

        Args:
            resume_from_checkpoint: True loads the newest good checkpoint of the run and continues after it; the path of
                one of its checkpoints loads that one. Model, data, rewards and options must be those that the run
                began with. Only ``max_steps`` may be greater.

        Returns:
            The number of steps, the mean of their losses, and ``train_runtime`` in seconds, as in transformers.

        Raises:
            UserError: the run has steps already and is not resumed, or it began with something else.
            NonFinite: loss, gradient, weights, logits or log-probabilities of rollouts are not finite.
            Interrupted: in a command: the process was asked to stop; a checkpoint has been saved.
        """
        require_trainable(self.model, self.param_dtype)
        with self.training():
            return self._train(resume_from_checkpoint)

    def _train(self, resume_from_checkpoint: bool | str | Path | None) -> TrainOutput:
        checkpoints, saved = self._resumed(resume_from_checkpoint)
        start_together(self.model, sharded=self.fsdp)
        if self.bf16 or self.param_dtype == "bfloat16":
            self._warn_if_slow()
        with self._as_trained():
            try:
                return self._steps(checkpoints, saved)
            finally:
                return_freed_memory()  # of activations, before weights are float32 again

    def _warn_if_slow(self) -> None:
        fast, reason = bf16_for(self.model.device)
        if not fast:
            option = "bf16 false" if self.bf16 else "param_dtype float32"
            console.print(
                f"warning: bf16 is slow on this device: {reason}. With {option} products are in float32.", markup=False
            )

    def _as_trained(self) -> AbstractContextManager[None]:
        """While steps are made: whether layers run again, and in which precision the weights are held."""
        if self.config.gradient_checkpointing is not None:
            self.model.gradient_checkpointing = self.config.gradient_checkpointing
        if self.param_dtype == "bfloat16":
            return with_masters(self.model)
        halves = self.bf16 and has_adapter(self.model.model) and not self.fsdp  # FSDP wants weights of one dtype
        return held_in_bf16(self.model) if halves else nullcontext()

    def _steps(self, checkpoints: Checkpoints, saved: Saved | None) -> TrainOutput:
        start, losses, callbacks = time.monotonic(), list[float](), self._callbacks
        done = 0 if saved is None else saved.step
        self._clear_gradients()  # of a training that was interrupted, or of the caller
        if self.model.device.type == "cpu":
            self._fit_in_memory()  # first: its trial may begin a step of the exploration, whose state is restored next
        elif self.model.device.type == "cuda" and not self.fsdp:
            parts = lasting(self.model, optimizer=self.optimizer_bytes(), reference=self.reference_model())
            parts["casts"] = bytes_of_casts(self.model) if self.bf16 else 0
            require_room(parts, torch.cuda.get_device_properties(self.model.device).total_memory)
        self.begin(saved)
        title = self.part.replace("_", "-")
        with (
            self.run.tracking(self.part, done),
            Bar(title, self.max_steps, done) as bar,
            finishing_updates() as signal,
            rows_as_gradients(self.model),
        ):
            callbacks.begin(done, self.optimizer, self.schedule)
            for step in range(done + 1, self.max_steps + 1):
                callbacks.begin_step(step, first=step == done + 1)
                metrics = self.step(step)
                losses.append(metrics["loss"])
                callbacks.end_step(step)
                callbacks.agree()
                self._log(step, metrics)
                signum = callbacks.agree(signal() or 0)
                stops = signum > 0 or callbacks.control.should_training_stop
                saves = stops or callbacks.control.should_save
                if saves or step == self.max_steps:
                    with autocast(self.model.device, self.bf16):
                        checkpoints.require_finite(self.model.pad(self._encoded[:1]), self.where(step))
                if saves:
                    with masters_as_weights(self.model):
                        self.save(step)
                bar.advance(**{name: metrics[name] for name in self.SHOWN})
                if signum:
                    raise Interrupted(signum, f" after step {step} of {self.part}; saved")
                if stops:
                    break
            if signum := callbacks.agree(signal() or 0):  # it came after the last step's check
                with masters_as_weights(self.model):
                    self.save(self.state.global_step)
                raise Interrupted(signum, f" after step {self.state.global_step} of {self.part}; saved")
            return callbacks.end(losses, time.monotonic() - start)

    def _resumed(self, resume: bool | str | Path | None) -> tuple[Checkpoints, Saved | None]:
        """Open the run folder, and load the checkpoint that the training continues from; None if it begins."""
        if self._record is None:  # before a training changes the weights
            self._record = self._new_record()
        self.run = self._run = as_run_folder(
            self._run, self._command, self._record, resume=bool(resume), report_to=self._report_to
        )
        checkpoints = self._checkpoints = Checkpoints(
            self.run,
            self.part,
            self.model,
            self._record,
            batches=self._batch_sizes,
            save_total_limit=self.config.save_total_limit,
            start=self._start,
        )
        if resume and self.param_dtype == "bfloat16":
            for parameter in self.model.parameters():  # checkpoints hold the masters
                parameter.data = parameter.data.float()
        saved = checkpoints.load(resume, logging_steps=self.state.logging_steps, updated=self._stepped is not None)
        if saved is not None:
            logged = processes.on_main(lambda: read_metrics(self.run.path, whole_lines=True))
            self._callbacks.restore(saved.state, logged, self.part)
        return checkpoints, saved

    def _new_record(self) -> Record:
        """What a resumed run, and every process of a run, must have alike."""
        options, digests = self.inputs()
        template = self.model.tokenizer.chat_template
        if isinstance(template, str):
            digests["chat_template"] = sha256(template.encode()).hexdigest()
        common = {
            **asdict(self.config),
            "seed": self.seed,
            "bf16": self.bf16,
            "param_dtype": self.param_dtype,
            "fsdp": self.fsdp,
            "dtype": str(self.model.model.dtype).removeprefix("torch."),
            "latent_steps": self.model.latent_steps,
            "prompt_format": self.model.prompt_format,
        }
        return Record(options=jsonable(common | options), digests=digests)

    def _log(self, step: int, metrics: dict[str, float]) -> None:
        """Log a step, and validate after it, where these are due."""
        logs = self._callbacks.control.should_log
        if logs:
            self._callbacks.log(metrics)
            self._callbacks.agree()  # on what a callback asks for when it sees the numbers
        validates = self._callbacks.control.should_evaluate and self._evaluate is not None
        if validates:
            metrics = self.validated(step, metrics)
        if logs or validates or step % self.state.logging_steps == 0:  # a resume counts on these lines
            self.write(step, metrics)
        if validates:
            self._callbacks.keep_best(metrics)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a line of metrics.jsonl."""
        self.run.log({"part": self.part, "step": step, **metrics})

    # What a trainer has of its own.

    @abstractmethod
    def inputs(self) -> tuple[dict[str, Any], dict[str, str | None]]:
        """Options and digests of the record of a run, beside those that every training has."""

    def training(self) -> AbstractContextManager[None]:
        """A context for the whole training."""
        return nullcontext()

    @abstractmethod
    def begin(self, saved: Saved | None) -> None:
        """Set ``optimizer`` and ``schedule``, and restore what a checkpoint holds beside weights and batch sizes."""

    @abstractmethod
    def step(self, step: int) -> dict[str, float]:
        """Make a step, counted from 1; returns its metrics, with ``loss``."""

    @abstractmethod
    def works(self) -> list[Work]:
        """The works whose batches must fit in memory, each with the longest rows."""

    @abstractmethod
    def where(self, step: int) -> str:
        """Seed and step, for messages."""

    def save(self, step: int) -> None:
        """Save the checkpoint of a step."""
        assert self._checkpoints is not None, "train has not begun"
        state = {**self.checkpoint_state(step), **self._callbacks.checkpoint_state()}
        self._checkpoints.save(step, self.optimizer, state, self.reference_tensors())
        self._callbacks.saved()

    def checkpoint_state(self, step: int) -> dict[str, Any]:
        """State for a checkpoint in addition to weights, optimiser and step, as JSON."""
        return {}

    def reference_model(self) -> nn.Module | None:
        """The reference of a KL; None if there is none."""
        return None

    def reference_tensors(self) -> dict[str, Tensor]:
        """Weights of a reference model that training has changed."""
        return {}

    def validated(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Validate after a step with these metrics; returns what its line of metrics.jsonl holds."""
        return metrics | self.evaluate()

    @abstractmethod
    def optimizer_bytes(self) -> int:
        """Bytes of the optimiser's state."""

    # What the steps of both trainers share.

    def plan(self) -> Plan:
        """The memory that this training needs, and the sizes of batches that fit; see `plan.py`.

        Where nothing else helps, and the option leaves it open, the model's ``gradient_checkpointing`` is switched on.
        """
        return planned(
            self.model,
            self.works(),
            optimizer=self.optimizer_bytes(),
            reference=self.reference_model(),
            gradient_checkpointing=self.config.gradient_checkpointing,
            available=available_memory() if self.model.device.type != "cuda" else None,
        )

    def dry_run(self) -> Plan:
        """The plan before a training, also of a model on the device ``meta``. Nothing is trained."""
        with self.training(), self._as_trained():
            return self.plan()

    def _fit_in_memory(self) -> None:
        """Choose the sizes of batches, and print the plan.

        Raises:
            UserError: the training does not fit in the machine's memory.
        """
        plan = self.plan()
        for size in plan.sizes:
            size.batches.size, size.batches.planned = size.rows, max(plan.total, _NOT_GIVEN_BACK)
        console.print(str(plan), markup=False)
        require_fitting(plan)

    @property
    def last_good(self) -> str:
        """The last good checkpoint, for messages."""
        return self._start if self._checkpoints is None else self._checkpoints.last_good

    @property
    def learning_rate(self) -> float:
        """The rate of the next update."""
        return float(self.schedule.get_last_lr()[0])

    def _update(self, loss: float, where: str) -> float:
        """Clip the gradients, step, and advance the schedule; returns the gradient's norm. See ``optimizer.update``.

        An optimiser's first step allocates its state, which malloc keeps apart from what is freed soon.
        """
        first, self._stepped = self._stepped is not self.optimizer, self.optimizer
        if first:  # its state needs room, and graphs hold memory that nothing else can use
            give_back_recordings()
            allow_recordings_again()
        with out_of_memory_is(NO_ROOM):
            make_dense(self.model)
        self.model.trained |= not has_adapter(self.model.model)
        with nullcontext() if first else freed_memory_kept():
            return update(
                self.model,
                self.optimizer,
                self.schedule,
                loss=loss,
                max_grad_norm=self.config.max_grad_norm,
                where=where,
                last_good=self.last_good,
                around=self._callbacks.optimizer_step,
            )

    def _clear_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)

    # What transformers' Trainer has.

    @property
    def state(self) -> TrainerState:
        """transformers' state of the training: ``global_step``, ``epoch``, ``log_history``, the best metric."""
        return self._callbacks.state

    @property
    def processing_class(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.model.tokenizer

    def evaluate(self) -> dict[str, float]:
        """Shares of right answers on the validation problems: ``eval/pass@1`` of the plain network; more with masks or
        several sets, see ``validation_metrics``.

        Raises:
            UserError: the trainer has no problems to validate on.
        """
        return self._validated()

    def _validated(self, *arguments: Any) -> dict[str, float]:
        if self._evaluate is None:
            raise UserError("there is nothing to evaluate on: give the trainer an eval_dataset.")
        shares = self._evaluate(self.model, *arguments)
        if not isinstance(shares, Mapping):
            shares = {"pass@1": shares}
        metrics = {OURS + name: share for name, share in shares.items()}
        self._callbacks.evaluated(metrics)
        return metrics

    def add_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, an object or a class."""
        self._callbacks.add(callback)

    def remove_callback(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Remove a callback, or the first one of a class."""
        self._callbacks.pop(callback)

    def save_model(self, output_dir: str | Path | None = None) -> None:
        """Write the model as a plain Hugging Face folder, by default into the run folder, as checkpoint ``part``.

        Other files of ``output_dir`` stay. The run folder itself has a ``config.json`` of its own: for it the model
        goes to the default place, and a message says so.
        """
        run = self._run.path if isinstance(self._run, RunFolder) else Path(self._run)
        own = checkpoint_folder(run, self.part)
        if output_dir is not None and Path(output_dir).resolve() == run.resolve():
            console.print(f"{run} is the run folder: the model is in {own}.", markup=False)
            output_dir = None
        with masters_as_weights(self.model):
            if output_dir is None:
                save_checkpoint(own, self.model)
            else:
                processes.on_main(lambda: self.model.save_pretrained(output_dir))
