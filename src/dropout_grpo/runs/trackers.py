"""Experiment trackers in addition to metrics.jsonl: TensorBoard, Weights & Biases and trackio, through accelerate.

All are optional. Each part of a run (the curriculum, an arm of GRPO) is a separate run in a tracker, with the same
metric names, so that a chart can overlay two arms.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dropout_grpo.config.choices import TrackerName
from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import flat_options

_PROJECT = "dropout-grpo"


def require_trackers(report_to: Sequence[TrackerName]) -> None:
    """Check that the trackers and accelerate are installed, before anything is trained.

    Raises:
        UserError: names the packages to install.
    """
    wanted = ["accelerate", *report_to] if report_to else []
    if missing := [name for name in wanted if find_spec(name) is None]:
        raise UserError(
            f"report_to {', '.join(report_to)} needs packages that are not installed: pip install {' '.join(missing)}"
        )


class Trackers:
    """Trackers of one part of a run.

    Args:
        report_to: names of the trackers. ``WANDB_PROJECT`` or ``TRACKIO_PROJECT`` names their project.
        folder: the run's folder. TensorBoard writes to its subfolder tensorboard/PART.
        part: name of the part.
        config: nested options, for the trackers that record them.
        run_id: unique id of the run in the folder.
        done: steps already done. TensorBoard drops the later steps that it has recorded. The other trackers continue
            their run (wandb by its id, trackio by its name) and keep all steps that they have.
    """

    def __init__(
        self,
        report_to: Sequence[TrackerName],
        folder: Path,
        part: str,
        config: Mapping[str, Any],
        *,
        run_id: str | None,
        done: int,
    ) -> None:
        self._trackers: list[Any] = []
        if not report_to:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's log messages need it
        for name in report_to:
            kind = LOGGER_TYPE_TO_CLASS[name]
            if name == "tensorboard":
                place: tuple[str, ...] = (part, str(folder / name))
                options: dict[str, Any] = {"purge_step": done + 1}
            else:
                run = folder.resolve().name
                same: dict[str, Any] = {"resume": "allow" if done else "never"}
                if name == "wandb" and run_id is not None:
                    same = {"id": f"{run_id}-{part}", "resume": "allow"}
                place = (os.environ.get(f"{name.upper()}_PROJECT") or _PROJECT,)
                options = {"name": f"{run}-{part}", "group": run, **same}
            try:
                tracker = kind(*place, **options)
                tracker.start()
                if name != "tensorboard":  # it would add a second run
                    tracker.store_init_configuration(_texts(config))
            except Exception as error:  # each tracker has its own, such as for a missing login
                raise UserError(
                    f"report_to {name} cannot start: {error}. Log in, use its offline mode, or leave it out."
                ) from error
            self._trackers.append(tracker)

    def log(self, record: Mapping[str, Any]) -> None:
        """Send the numbers of a line of metrics.jsonl to the trackers, at its step."""
        numbers = {
            name: value
            for name, value in record.items()
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.log(numbers, step=record["step"])

    def finish(self) -> None:
        """Flush and close."""
        for tracker in self._trackers:
            tracker.finish()


def _texts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options by their names on the command line, with lists as text."""
    return {
        name: str(value) if isinstance(value, (list, tuple, dict)) else value
        for name, value in flat_options(config).items()
    }
