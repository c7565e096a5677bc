"""What both trainers do around their updates: resume from the newest good checkpoint, save, and check the model.

The checkpoints of a part are ``checkpoints/PART-step-N``. The newest ``save_total_limit`` are kept.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dropout_grpo.distributed.processes import greatest, is_main, on_main
from dropout_grpo.errors import UserError
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.runs.files import writing
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.read import read_metrics
from dropout_grpo.runs.record import Record, require_equal_processes
from dropout_grpo.training.checkpoint import (
    DamagedCheckpoint,
    restore_optimizer,
    save_checkpoint,
    saved_reference,
    trainer_state,
)
from dropout_grpo.training.interrupt import Interrupted, finishing_updates
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.optimizer import NonFinite, last_good_is
from dropout_grpo.training.progress import Bar, console

_BATCH_SIZES, _RECORD = "batch_sizes", "record"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A training checkpoint whose weights are in the model."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state["step"])

    @property
    def options(self) -> Mapping[str, Any]:
        """The options that the part was trained with so far; empty in an older checkpoint."""
        return Record.from_json(self.state.get(_RECORD)).options

    def restore_optimizer(self, optimizer: Optimizer) -> None:
        """Load the optimiser's state."""
        restore_optimizer(self.path, optimizer)

    def reference(self) -> dict[str, Tensor]:
        """The reference's weights; empty if training never changed them."""
        return saved_reference(self.path)


class TrainingSession:
    """The training of one model, as one part of a run.

    Args:
        run: where metrics and checkpoints go.
        part: name of the part in metrics.jsonl, and prefix of its checkpoints.
        model: trained in place.
        record: what the part is made from. A checkpoint keeps it, and only the same part continues from there.
        batches: micro-batches of the trainer. Their sizes are saved and restored, since a reduced size changes the
            rounding of sums.
        save_total_limit: number of checkpoints to keep, as in transformers; None keeps all.
        logging_steps: number of steps between two lines of metrics.
        start: name of the model before the first checkpoint, for messages.
    """

    def __init__(
        self,
        run: RunFolder,
        part: str,
        model: LatentModel,
        *,
        record: Record,
        batches: Sequence[MicroBatches] = (),
        save_total_limit: int | None = None,
        logging_steps: int = 1,
        start: str = "none yet",
    ) -> None:
        require_equal_processes(record)
        self.run, self.part, self.model, self._logging_steps = run, part, model, logging_steps
        self._record = replace(record, run=run.id)
        # Named without their section, as in the checkpoints of earlier versions.
        self.batches, self.save_total_limit = {b.option.rpartition(".")[2]: b for b in batches}, save_total_limit
        self._good: Path | None = None
        self._asked = 0
        self._signal: Callable[[], int | None] = lambda: None
        lacking = non_finite(model)
        self._start = start if lacking is None else f"none: {lacking} of the model it started from is not finite"

    @property
    def last_good(self) -> str:
        """The last good checkpoint, for messages."""
        return self._start if self._good is None else str(self._good)

    def begin(self, resume: bool | str | Path | None) -> Saved | None:
        """Begin the part, or load a checkpoint into the model and drop the metrics after it.

        With True it is the newest good checkpoint: damaged ones are reported, renamed to ``NAME.damaged`` and skipped.

        Args:
            resume: whether to continue the part; or the checkpoint to continue from.

        Returns:
            The checkpoint; None if the part starts from the beginning, since it has not saved one yet.

        Raises:
            UserError: the part has been trained and is not resumed; a checkpoint is damaged, of another run, of a part
                with another record, or does not fit the model; or all are damaged.
        """
        if not resume:
            on_main(self._require_untrained)
            return None
        find = self._newest_good if resume is True else lambda: self._named(Path(resume))
        name, state, damaged = on_main(find)
        if name is not None:
            path = Path(name)
            self._load(path)
            for option, batches in self.batches.items():
                batches.size = int(state.get(_BATCH_SIZES, {}).get(option, batches.size))
            on_main(lambda: self._report(damaged, path, aside=".damaged" if resume is True else ".unused"))
            self.run.forget_after(self.part, int(state["step"]), every=self._logging_steps)
            self.run.record_length()
            self._good = path
            return Saved(path=path, state=state)
        if damaged:
            raise UserError(
                f"no checkpoint of {self.part} in {self.run.path} is good: {'; '.join(damaged)}. Restore one, or "
                f"remove the folders {self.part}-step-* to start {self.part} again."
            )
        self.run.forget_after(self.part, 0)
        self.run.record_length()
        return None

    def _require_untrained(self) -> None:
        done = [line["step"] for line in read_metrics(self.run.path, whole_lines=True) if line["part"] == self.part]
        if done:
            raise UserError(
                f"{self.run.path} already has {max(done)} steps of {self.part}: continue them with "
                "train(resume_from_checkpoint=True) and, to train further, a greater max_steps; or train in another "
                "run folder."
            )

    def _named(self, path: Path) -> tuple[str, dict[str, Any], list[str]]:
        """As ``_newest_good``, for one checkpoint."""
        if not path.is_dir():
            raise UserError(f"resume_from_checkpoint={str(path)!r}: there is no such folder.")
        state = trainer_state(path)
        self._require_same(state, path)
        if path.resolve() not in [known.resolve() for known in self.checkpoints()]:
            raise UserError(
                f"resume_from_checkpoint={str(path)!r} is not a checkpoint of {self.part} in {self.run.path}: continue "
                "a run in its own folder, or start a new run with the checkpoint as its model."
            )
        return str(path), state, []

    def _require_same(self, state: Mapping[str, Any], path: Path) -> None:
        Record.from_json(state.get(_RECORD)).require_same(self._record, str(path))

    def _newest_good(self) -> tuple[str | None, dict[str, Any], list[str]]:
        """Path and state of the newest good checkpoint, None if there is none, and messages about damaged ones."""
        for draft in self.run.checkpoint("").glob(f"{self.part}-step-*.part"):  # of a run killed while it saved
            shutil.rmtree(draft, ignore_errors=True)
        damaged: list[str] = []
        for path in reversed(self.checkpoints()):
            try:
                state = trainer_state(path)
            except DamagedCheckpoint as error:
                damaged.append(str(error))
            else:
                self._require_same(state, path)
                return str(path), state, damaged
        return None, {}, damaged

    def _load(self, path: Path) -> None:
        try:
            dtype = next(self.model.parameters()).dtype
            self.model.load_state_dict(LatentModel.from_pretrained(path, dtype=dtype).state_dict())
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"checkpoint {path} does not fit the model that is trained: {reason}") from error

    def _report(self, damaged: Sequence[str], used: Path, aside: str) -> None:
        for message in damaged:
            console.print(f"warning: {message}: the checkpoint is damaged and is not used", markup=False)
        if damaged:
            console.print(f"warning: continuing from {used}", markup=False)
        for path in self.checkpoints():
            if _step_of(path) > _step_of(used):
                moved = path.with_name(path.name + aside)
                with writing(moved):
                    shutil.rmtree(moved, ignore_errors=True)
                    path.rename(moved)

    def save(
        self,
        step: int,
        optimizer: Optimizer,
        state: Mapping[str, Any] | None = None,
        reference: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the checkpoint of a step and remove the oldest ones beyond ``save_total_limit``.

        Call ``require_finite`` first.

        Args:
            step: steps done.
            optimizer: its state is saved.
            state: what else the trainer needs to continue, as JSON.
            reference: weights of a reference model that training has changed.
        """
        path = self.run.checkpoint(f"{self.part}-step-{step}")
        self.run.sync_metrics()
        sizes = {option: batches.size for option, batches in self.batches.items()}
        whole = {"step": step, **(state or {}), **({_BATCH_SIZES: sizes} if sizes else {})}
        whole[_RECORD] = self._record.as_json()
        save_checkpoint(path, self.model, optimizer, whole, reference)
        self._good = path
        if self.save_total_limit is not None and is_main():
            for old in self.checkpoints()[: -self.save_total_limit]:
                shutil.rmtree(old, ignore_errors=True)

    def checkpoints(self) -> list[Path]:
        """The folders of this part's checkpoints, by step."""
        folder = self.run.checkpoint("")
        names = re.compile(re.escape(self.part) + r"-step-\d+")
        found = [path for path in folder.iterdir() if names.fullmatch(path.name)] if folder.is_dir() else []
        return sorted(found, key=_step_of)

    @contextmanager
    def steps(self, title: str, total: int, done: int) -> Iterator[Bar]:
        """A context for the loop over steps: progress bar, trackers, and signals delayed to the end of an update.

        Args:
            title: title of the progress bar.
            total: number of steps.
            done: steps already done.
        """
        with self.run.tracking(self.part, done), Bar(title, total, done=done) as bar, finishing_updates() as asked:
            self._signal = asked
            yield bar

    @property
    def stopping(self) -> bool:
        """Whether any process was asked to stop. If so, the trainer saves and calls ``stop``.

        All processes must call this after each step: they decide together which step is the last.
        """
        self._asked = int(greatest(self._signal() or 0)[0])
        return self._asked > 0

    def stop(self, step: int) -> None:
        """Leave the loop after a save.

        Raises:
            Interrupted: always.
        """
        assert self._asked, "nothing asks for a stop"
        raise Interrupted(self._asked, f" after step {step} of {self.part}; saved")

    def require_finite(self, encoded: tuple[Tensor, Tensor], where: str) -> None:
        """Check the weights, and the logits of an answer, before the model is saved as a good checkpoint.

        Weights can be finite and yet so large that logits are not.

        Args:
            encoded: ids and mask of questions, [B, S] each.
            where: seed and step, for the message.

        Raises:
            NonFinite: a weight or a logit of the first answer token is not finite.
        """
        lacking = non_finite(self.model)
        if lacking is None:
            with torch.no_grad():
                state = self.model.think(self.model.read(*encoded), self.model.latent_steps)
                logits, _ = self.model.logits(state, self.model.end_marker(state.rows), None)
            if bool(logits.isfinite().all()):
                return
        what = "logits are" if lacking is None else f"{lacking} is"
        raise NonFinite(f"{where}: after the update, {what} not finite. {last_good_is(self.last_good)}")


def non_finite(model: LatentModel) -> str | None:
    """The name of a weight tensor that holds NaN or infinity; None if all are finite."""
    return next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), None)


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
