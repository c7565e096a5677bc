"""Experiment trackers beside metrics.jsonl: TensorBoard, Weights & Biases, trackio, through accelerate's classes.

None is needed to train. Each part of a run (the curriculum, an arm of GRPO) is a run of its own in a tracker, with the
same names of metrics, so that two arms lie over each other in one chart.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from dropout_grpo.errors import UserError

TrackerName = Literal["tensorboard", "wandb", "trackio"]
"""As accelerate and PyPI name them."""

_PROJECT = "dropout-grpo"


def require_trackers(report_to: Sequence[TrackerName]) -> None:
    """Are they and accelerate installed? Asked before anything is trained.

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
        report_to: which ones.
        folder: the run's folder. TensorBoard writes to tensorboard/PART in it.
        part: name of the part.
        config: options, nested, for the trackers that keep them.
        run_id: of the run in the folder, another for every run.
        done: steps already done. TensorBoard drops what it has of later ones. The others continue their run, wandb by
            its id, trackio by its name, and keep what they have.
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

        PartialState()  # which accelerate's own log messages ask for
        for name in report_to:
            kind = LOGGER_TYPE_TO_CLASS[name]
            if name == "tensorboard":
                tracker = kind(part, str(folder / name), purge_step=done + 1)
                tracker.start()
            else:
                run = folder.resolve().name
                same: dict[str, Any] = {"resume": "allow" if done else "never"}
                if name == "wandb" and run_id is not None:
                    same = {"id": f"{run_id}-{part}", "resume": "allow"}
                tracker = kind(_PROJECT, name=f"{run}-{part}", group=run, **same)
                tracker.start()
                tracker.store_init_configuration(flat(config))  # TensorBoard would make another run of it
            self._trackers.append(tracker)

    def log(self, record: Mapping[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl, at its step."""
        numbers = {
            name: value
            for name, value in record.items()
            if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.log(numbers, step=record["step"])

    def finish(self) -> None:
        """Write what is not yet written and close."""
        for tracker in self._trackers:
            tracker.finish()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"grpo": {"beta": 0.0}}`` as ``{"grpo.beta": 0.0}``, the names on the command line; lists as text."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = str(value) if isinstance(value, (list, tuple)) else value
    return found
