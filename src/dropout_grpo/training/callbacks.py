"""Transformers' callbacks in the loops of both trainers, through its CallbackHandler, TrainerState and TrainerControl.

The events of a run, in transformers' order::

    on_init_end
    on_train_begin
        on_epoch_begin                      an epoch is one pass over the problems
            on_step_begin
            on_pre_optimizer_step, on_optimizer_step          for each update of the step that has a gradient
            on_step_end
        (on_epoch_end)                      here, so that what it asks for is done after the same step
            on_log                          where control.should_log
            on_log, on_evaluate             where control.should_evaluate
            on_save                         where control.should_save
    on_log                                  seconds and mean loss of the whole training
    on_train_end
"""

import dataclasses
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from types import SimpleNamespace
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ExportableState
from transformers.trainer_utils import TrainOutput

from dropout_grpo.distributed import processes
from dropout_grpo.errors import UserError
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.runs.files import jsonable

OURS, THEIRS = "eval/", "eval_"
"""Prefixes of validation metrics, in a run's files and in transformers' callbacks."""

_BEST = ("best_metric", "best_global_step")
_CALLBACKS = "callbacks"
_FLAGS = ("should_log", "should_evaluate", "should_save", "should_training_stop")


class Arguments(SimpleNamespace):
    """What callbacks get as ``args``: the trainer's options, and names of TrainingArguments that callbacks read."""

    def to_dict(self) -> dict[str, Any]:
        """All options, of types that JSON has."""
        return dict(jsonable(vars(self)))

    to_sanitized_dict = to_dict

    def to_json_string(self) -> str:
        """``to_dict`` as JSON."""
        return json.dumps(self.to_dict(), indent=2)


def arguments(
    config: Any, *, output_dir: str, evaluates: bool, metric_for_best_model: str | None, greater_is_better: bool | None
) -> Arguments:
    """The ``args`` of callbacks.

    Args:
        config: the trainer's options, a dataclass with ``eval_steps`` and ``save_steps``.
        output_dir: the run folder.
        evaluates: whether there are problems to validate on.
        metric_for_best_model: a validation metric such as ``pass@1``.
        greater_is_better: whether more of it is better; None for yes, unless it ends in "loss".
    """
    metric = metric_for_best_model and THEIRS + metric_for_best_model.removeprefix(OURS).removeprefix(THEIRS)
    if greater_is_better is None and metric:
        greater_is_better = not metric.endswith("loss")
    theirs: dict[str, Any] = {
        "output_dir": output_dir,
        "run_name": None,
        "project": "dropout-grpo",
        "trackio_space_id": None,
        "trackio_bucket_id": None,
        "trackio_static_space_id": False,
        "hub_private_repo": None,
        "report_to": [],
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_first_step": False,
        "eval_strategy": "steps" if evaluates and config.eval_steps > 0 else "no",
        "eval_delay": 0,
        "save_strategy": "steps" if config.save_steps > 0 else "no",
        "load_best_model_at_end": False,
        "world_size": processes.size(),
        "process_index": processes.rank(),
    }
    ours = {option.name: getattr(config, option.name) for option in dataclasses.fields(config)}
    return Arguments(**theirs | ours | {"metric_for_best_model": metric, "greater_is_better": greater_is_better})


class _Flow(DefaultFlowCallback):
    """Asks for logs, validation and checkpoints at the options' intervals, and for a checkpoint at the end."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        def due(steps: int) -> bool:
            return steps > 0 and state.global_step % steps == 0

        control.should_log |= due(args.logging_steps)
        control.should_evaluate |= args.eval_strategy == "steps" and due(args.eval_steps)
        last = args.save_steps > 0 and state.global_step == state.max_steps
        control.should_save |= due(args.save_steps) or last

    def on_epoch_end(self, *args: Any, **more: Any) -> None:
        """Nothing: all intervals are steps."""


class Callbacks:
    """Calls the callbacks of a trainer, and keeps the state that they see.

    Args:
        callbacks: callbacks of transformers, objects or classes, in the order in which they are called.
        args: what they get as ``args``.
        model: what they get as ``model``; its tokenizer is their ``processing_class``.
        max_steps: steps of the whole training.
        steps_per_epoch: steps in one pass over the problems, may be a fraction.

    Raises:
        UserError: see ``add``.
    """

    def __init__(
        self,
        callbacks: Sequence[TrainerCallback | type[TrainerCallback]],
        args: Arguments,
        model: LatentModel,
        *,
        max_steps: int,
        steps_per_epoch: float,
    ) -> None:
        self._args, self._steps_per_epoch = args, steps_per_epoch
        self.control = TrainerControl()
        self.state = TrainerState(
            max_steps=max_steps,
            num_train_epochs=math.ceil(max_steps / steps_per_epoch),
            logging_steps=args.logging_steps,
            eval_steps=args.eval_steps,
            save_steps=args.save_steps,
            is_local_process_zero=processes.is_main(),
            is_world_process_zero=processes.is_main(),
        )
        self._handler = CallbackHandler([_Flow()], model, model.tokenizer, None, None)
        for callback in callbacks:
            self.add(callback)
        self._call("on_init_end")

    def add(self, callback: TrainerCallback | type[TrainerCallback]) -> None:
        """Add a callback, an object or a class that needs no arguments.

        Raises:
            UserError: it is not a TrainerCallback; or it stops early, and there is no metric or no validation.
        """
        kind = callback if isinstance(callback, type) else type(callback)
        if not issubclass(kind, TrainerCallback):
            raise UserError(
                f"callbacks: {kind.__name__} is not a transformers.TrainerCallback: derive the class from it, and give "
                "the class or an object of it."
            )
        if issubclass(kind, EarlyStoppingCallback):
            if self._args.metric_for_best_model is None:
                raise UserError(
                    f"callbacks: {kind.__name__} compares a validation metric: set metric_for_best_model of "
                    'GRPOConfig, for example to "pass@1". The curriculum has no such option.'
                )
            if self._args.eval_strategy == "no":
                raise UserError(
                    f"callbacks: {kind.__name__} needs validations: give the trainer an eval_dataset, and set "
                    "eval_steps above 0."
                )
        self._handler.add_callback(callback)

    def pop(self, callback: TrainerCallback | type[TrainerCallback]) -> TrainerCallback | None:
        """Remove a callback, or the first one of a class, and return it; None if there is none."""
        removed: TrainerCallback | None = self._handler.pop_callback(callback)
        return removed

    def begin(self, done: int, optimizer: Any, schedule: Any) -> None:
        """Announce the training, of which ``done`` steps are done already."""
        self.use(optimizer, schedule)
        self._at(done)
        self._call("on_train_begin")

    def use(self, optimizer: Any, schedule: Any) -> None:
        """What callbacks get as ``optimizer`` and ``lr_scheduler`` from now on."""
        self._handler.optimizer, self._handler.lr_scheduler = optimizer, schedule

    def begin_step(self, step: int, *, first: bool) -> None:
        """Announce a step, and the epoch that it begins; ``first`` if it is the first one of this training."""
        before, now = self._epoch(step - 1), self._epoch(step)
        if first or before != now:
            self._call("on_epoch_begin")
        self._call("on_step_begin")

    @contextmanager
    def optimizer_step(self) -> Iterator[None]:
        """Announce an update: enter with the clipped gradients, leave before they are cleared."""
        self._call("on_pre_optimizer_step")
        yield
        self._call("on_optimizer_step")

    def end_step(self, step: int) -> None:
        """Announce the end of a step, and of the epoch that it ends."""
        self._at(step)
        self._call("on_step_end")
        if self._epoch(step + 1) != self._epoch(step) or step == self.state.max_steps:
            self._call("on_epoch_end")

    def agree(self, signum: int = 0) -> int:
        """Make what the callbacks of one process ask for what those of all ask for; returns the signal of any."""
        signum, *asked = map(int, processes.greatest(signum, *(getattr(self.control, flag) for flag in _FLAGS)))
        for flag, on in zip(_FLAGS, asked, strict=True):
            setattr(self.control, flag, bool(on))
        return signum

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Add numbers to ``state.log_history`` and announce them."""
        logs = {**_theirs(metrics), "epoch": self.state.epoch}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self._call("on_log", logs=logs)

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """Log and announce a validation."""
        self.log(metrics)
        self._call("on_evaluate", metrics=_theirs(metrics))

    def require_best(self, names: Collection[str]) -> None:
        """Check that ``metric_for_best_model``, if any, is one of a validation's metrics, named as in its result.

        Raises:
            UserError: it is not.
        """
        wanted = self._args.metric_for_best_model
        if wanted is not None and wanted.removeprefix(THEIRS) not in names:
            raise UserError(
                f"metric_for_best_model {wanted.removeprefix(THEIRS)!r} is not a metric of the validation, which has "
                f"{', '.join(names)}: choose one of these."
            )

    def keep_best(self, metrics: Mapping[str, float]) -> None:
        """Keep the best value of ``metric_for_best_model``, after the validation of a step.

        Raises:
            UserError: see ``require_best``.
        """
        wanted, best = self._args.metric_for_best_model, self.state.best_metric
        if wanted is None:
            return
        measured = {name.removeprefix(OURS): metrics[name] for name in metrics if name.startswith(OURS)}
        self.require_best(measured)
        value = measured[wanted.removeprefix(THEIRS)]
        if best is None or (value > best if self._args.greater_is_better else value < best):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step

    def saved(self) -> None:
        """Announce a checkpoint."""
        self._call("on_save")

    def end(self, losses: Sequence[float], seconds: float) -> TrainOutput:
        """Log the mean loss and the time of a training, announce its end, and return what ``train`` returns."""
        loss = fmean(losses) if losses else 0.0
        metrics = {"train_runtime": round(seconds, 4), "train_loss": loss}
        self.log(metrics)
        self._call("on_train_end")
        return TrainOutput(self.state.global_step, loss, metrics)

    def checkpoint_state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the best metric, and what callbacks export, such as EarlyStopping's patience."""
        best = {name: getattr(self.state, name) for name in _BEST}
        own = {type(c).__name__: c.state()["attributes"] for c in self._exporting()}
        return (best if best["best_metric"] is not None else {}) | ({_CALLBACKS: own} if own else {})

    def _exporting(self) -> list[ExportableState]:
        return [callback for callback in self._handler.callbacks if isinstance(callback, ExportableState)]

    def restore(self, saved: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], part: str) -> None:
        """Continue a run: the inverse of ``checkpoint_state``, with the log so far from the lines of metrics.jsonl."""
        for name in _BEST:
            setattr(self.state, name, saved.get(name))
        for callback in self._exporting():
            for name, value in saved.get(_CALLBACKS, {}).get(type(callback).__name__, {}).items():
                setattr(callback, name, value)
        self.state.log_history = []
        for line in metrics:
            if line["part"] == part:
                numbers = {name: value for name, value in line.items() if name not in ("part", "step")}
                epoch = line["step"] / self._steps_per_epoch
                self.state.log_history.append({**_theirs(numbers), "epoch": epoch, "step": line["step"]})

    def _at(self, step: int) -> None:
        self.state.global_step, self.state.epoch = step, step / self._steps_per_epoch

    def _epoch(self, step: int) -> int:
        """The epoch, from 0, that a step belongs to."""
        return math.floor((step - 1) / self._steps_per_epoch + 1e-9)

    def _call(self, event: str, **more: Any) -> None:
        self.control = getattr(self._handler, event)(self._args, self.state, self.control, **more) or self.control


def _theirs(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with transformers' prefix for those of a validation."""
    return {THEIRS + name.removeprefix(OURS) if name.startswith(OURS) else name: metrics[name] for name in metrics}
