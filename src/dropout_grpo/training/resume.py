"""The checkpoints of a training: which one a run continues from, which are kept, and which may be called good.

They are ``checkpoints/PART-step-N`` of the run folder.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dropout_grpo.distributed.processes import is_main, on_main
from dropout_grpo.errors import UserError
from dropout_grpo.latent.io.checkpoint import load_in_place
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.runs.files import writing
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.read import read_metrics
from dropout_grpo.runs.record import Record, require_equal_processes
from dropout_grpo.training.checkpoint import DamagedCheckpoint, save_checkpoint, trainer_state
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.optimizer import NonFinite, last_good_is
from dropout_grpo.training.progress import console

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


class Checkpoints:
    """The checkpoints of one part of a run.

    Args:
        run: the run folder.
        part: prefix of the checkpoints' names.
        model: the model that is saved and loaded.
        record: what the part is made from. A checkpoint keeps it, and only the same part continues from there.
        batches: micro-batches of the trainer. Their sizes are saved and restored, since a reduced size changes the
            rounding of sums.
        save_total_limit: number of checkpoints to keep, as in transformers; None keeps all.
        start: name of the model before the first checkpoint, for messages.
    """

    def __init__(
        self,
        run: RunFolder,
        part: str,
        model: LatentModel,
        record: Record,
        *,
        batches: Sequence[MicroBatches],
        save_total_limit: int | None,
        start: str,
    ) -> None:
        require_equal_processes(record)
        self._run, self._part, self._model, self._limit = run, part, model, save_total_limit
        self._record = replace(record, run=run.id)
        # Named without their section, as in the checkpoints of earlier versions.
        self._batches = {b.option.rpartition(".")[2]: b for b in batches}
        lacking = non_finite(model)
        self.last_good = start if lacking is None else f"none: {lacking} of the model it started from is not finite"
        """The last good checkpoint, for messages."""

    def load(self, resume: bool | str | Path | None, *, logging_steps: int, updated: bool) -> Saved | None:
        """Load the checkpoint that a training continues from into the model, and drop the metrics after it.

        With True it is the newest good checkpoint: damaged ones are reported, renamed to ``NAME.damaged`` and skipped.

        Args:
            resume: whether to continue the part; or the checkpoint to continue from.
            logging_steps: number of steps between two lines of metrics.
            updated: whether the model's weights are those of an earlier training of the part, not those it began with.

        Returns:
            The checkpoint; None if the part starts from the beginning, since it has not saved one yet.

        Raises:
            UserError: the part has been trained, or its weights have changed, and it is not resumed; a checkpoint is
                damaged, of another run, of a part with another record, or does not fit the model; all are damaged; or
                there is none, and the weights have changed.
        """
        if not resume:
            on_main(self._require_untrained)
            if updated:
                raise UserError(
                    f"an earlier training of {self._part} was interrupted and has changed the model: continue it with "
                    "train(resume_from_checkpoint=True), or make a new trainer with the model as it was."
                )
            return None
        find = self._newest_good if resume is True else lambda: self._named(Path(resume))
        name, state, damaged = on_main(find)
        if name is None:
            if damaged:
                raise UserError(
                    f"no checkpoint of {self._part} in {self._run.path} is good: {'; '.join(damaged)}. Restore one, or "
                    f"remove the folders {self._part}-step-* to start {self._part} again."
                )
            if updated:
                raise UserError(
                    f"{self._run.path} has no checkpoint of {self._part} to continue from, and the training that was "
                    "interrupted has changed the model: make a new trainer with the model as it was."
                )
            self._run.forget_after(self._part, 0)
            self._run.record_length()
            return None
        path = Path(name)
        self._load_weights(path)
        for option, batches in self._batches.items():
            batches.size = int(state.get(_BATCH_SIZES, {}).get(option, batches.size))
        on_main(lambda: self._set_aside(damaged, path, ".damaged" if resume is True else ".unused"))
        self._run.forget_after(self._part, int(state["step"]), every=logging_steps)
        self._run.record_length()
        self.last_good = str(path)
        return Saved(path=path, state=state)

    def _require_untrained(self) -> None:
        steps = [line["step"] for line in read_metrics(self._run.path, whole_lines=True) if line["part"] == self._part]
        if steps:
            raise UserError(
                f"{self._run.path} already has {max(steps)} steps of {self._part}: continue them with "
                "train(resume_from_checkpoint=True) and, to train further, a greater max_steps; or train in another "
                "run folder."
            )

    def _named(self, path: Path) -> tuple[str, dict[str, Any], list[str]]:
        """As ``_newest_good``, for one checkpoint."""
        if not path.is_dir():
            raise UserError(f"resume_from_checkpoint={str(path)!r}: there is no such folder.")
        state = trainer_state(path)
        self._require_same(state, path)
        if path.resolve() not in [known.resolve() for known in self._folders()]:
            raise UserError(
                f"resume_from_checkpoint={str(path)!r} is not a checkpoint of {self._part} in {self._run.path}: "
                "continue a run in its own folder, or start a new run with the checkpoint as its model."
            )
        return str(path), state, []

    def _newest_good(self) -> tuple[str | None, dict[str, Any], list[str]]:
        """Path and state of the newest good checkpoint, None if there is none, and messages about damaged ones."""
        for draft in self._run.checkpoint("").glob(f"{self._part}-step-*.part"):  # of a run killed while it saved
            shutil.rmtree(draft, ignore_errors=True)
        damaged: list[str] = []
        for path in reversed(self._folders()):
            try:
                state = trainer_state(path)
            except DamagedCheckpoint as error:
                damaged.append(str(error))
            else:
                self._require_same(state, path)
                return str(path), state, damaged
        return None, {}, damaged

    def _require_same(self, state: Mapping[str, Any], path: Path) -> None:
        Record.from_json(state.get(_RECORD)).require_same(self._record, str(path))

    def _load_weights(self, path: Path) -> None:
        if load_in_place(self._model, path):
            return
        try:  # a model whose files have other names than its weights, or one that does not fit
            dtype = next(self._model.parameters()).dtype
            self._model.load_state_dict(LatentModel.from_pretrained(path, dtype=dtype).state_dict())
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"checkpoint {path} does not fit the model that is trained: {reason}") from error

    def _set_aside(self, damaged: Sequence[str], used: Path, suffix: str) -> None:
        """Report damaged checkpoints, and rename all that are newer than the one that is used."""
        for message in damaged:
            console.print(f"warning: {message}: the checkpoint is damaged and is not used", markup=False)
        if damaged:
            console.print(f"warning: continuing from {used}", markup=False)
        for path in self._folders():
            if _step_of(path) > _step_of(used):
                moved = path.with_name(path.name + suffix)
                with writing(moved):
                    shutil.rmtree(moved, ignore_errors=True)
                    path.rename(moved)

    def save(
        self, step: int, optimizer: Optimizer, state: Mapping[str, Any], reference: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the checkpoint of a step and remove the oldest ones beyond ``save_total_limit``, but not the best one.

        Call ``require_finite`` first.

        Args:
            step: steps done.
            optimizer: its state is saved.
            state: what else the trainer needs to continue, as JSON.
            reference: weights of a reference model that training has changed.
        """
        path = self._run.checkpoint(f"{self._part}-step-{step}")
        self._run.sync_metrics()
        sizes = {option: batches.size for option, batches in self._batches.items()}
        whole = {"step": step, **state, _BATCH_SIZES: sizes, _RECORD: self._record.as_json()}
        save_checkpoint(path, self._model, optimizer, whole, reference)
        self.last_good = str(path)
        if self._limit is not None and is_main():
            for old in self._folders()[: -self._limit]:
                if _step_of(old) != state.get("best_global_step"):
                    shutil.rmtree(old, ignore_errors=True)

    def _folders(self) -> list[Path]:
        """The folders of this part's checkpoints, by step."""
        folder = self._run.checkpoint("")
        names = re.compile(re.escape(self._part) + r"-step-\d+")
        paths = [path for path in folder.iterdir() if names.fullmatch(path.name)] if folder.is_dir() else []
        return sorted(paths, key=_step_of)

    def require_finite(self, prompt: tuple[Tensor, Tensor], where: str) -> None:
        """Check the weights, and the logits of an answer, before the model is saved as a good checkpoint.

        Weights can be finite and yet so large that logits are not.

        Args:
            prompt: ids and mask of questions, [B, S] each.
            where: seed and step, for the message.

        Raises:
            NonFinite: a weight or a logit of the first answer token is not finite.
        """
        lacking = non_finite(self._model)
        if lacking is None:
            with torch.no_grad():
                state = self._model.think(self._model.read(*prompt), self._model.latent_steps)
                logits, _ = self._model.logits(state, self._model.end_marker(state.rows), None)
            if bool(logits.isfinite().all()):
                return
        what = "logits are" if lacking is None else f"{lacking} is"
        raise NonFinite(f"{where}: after the update, {what} not finite. {last_good_is(self.last_good)}")


def non_finite(model: LatentModel) -> str | None:
    """The name of a weight tensor that holds NaN or infinity; None if all are finite."""
    weights = model.named_parameters()
    # The extremes are NaN if any weight is; ``isfinite`` of every weight takes 25 times as long.
    extremes = ((name, torch.stack(weight.detach().aminmax())) for name, weight in weights if weight.numel())
    return next((name for name, ends in extremes if not bool(ends.isfinite().all())), None)


def _step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])
