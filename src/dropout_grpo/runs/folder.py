"""A run is a folder: resolved config, metrics.jsonl, checkpoints, results.json. Never overwritten silently."""

import json
import os
import platform
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dropout_grpo.errors import UserError
from dropout_grpo.latent.fast.attention import attention_choices
from dropout_grpo.runs.trackers import TrackerName, Trackers, require_trackers

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
_MAY_CHANGE = ("run_dir", "resume", "report_to")  # on resuming
_BEFORE_A_RUN = {CONFIG, "data"}
_PACKAGES = ("dropout-grpo", "torch", "transformers", "tokenizers", "safetensors")


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made if it is not there.
        command: the subcommand that runs.
        config: the resolved options, a dataclass.
        resume: continue what is there; the config must then be the one it was started with.
        report_to: experiment trackers that get the metrics too.

    Raises:
        UserError: the folder holds a run and ``resume`` is off, or its config differs; it cannot be made; a tracker is
            not installed. A folder in which a run was refused before it did anything holds no run.
    """

    def __init__(
        self,
        path: str | Path,
        command: str,
        config: Any,
        *,
        resume: bool = False,
        report_to: Sequence[TrackerName] = (),
    ) -> None:
        require_trackers(report_to)
        self.path, self.report_to = Path(path), report_to
        self._trackers: Trackers | None = None
        self._config = plain(config)
        record = {"command": command, "config": self._config}
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run folder {self.path} is a file: choose another path.")
        found = {item.name for item in self.path.iterdir()} if self.path.is_dir() else set()
        begun = not (CONFIG in found and found <= _BEFORE_A_RUN)
        if found and begun and not resume:
            raise UserError(
                f"run folder {self.path} exists already: continue it with --resume true, or choose another --run_dir."
            )
        if found and resume:
            self._check_same(record)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not (found and resume):
                write_json(self.path / CONFIG, {**record, "id": uuid.uuid4().hex[:12], **provenance()})
        except OSError as error:
            raise UserError(f"run folder {self.path} cannot be made: {error.strerror}; choose another path.") from error

    def _check_same(self, record: dict[str, Any]) -> None:
        if not (self.path / CONFIG).is_file():
            raise UserError(f"{self.path} holds files but no {CONFIG}: it is not a run folder, choose another.")
        old = started_with(self.path)
        if old["command"] != record["command"]:
            raise UserError(f"{self.path} is a run of `{old['command']}`, not of `{record['command']}`.")
        then, now = _options(old["config"]), _options(record["config"])
        for name in sorted(set(then) | set(now)):
            if name not in _MAY_CHANGE and then.get(name) != now.get(name):
                raise UserError(
                    f"cannot resume {self.path}: {name} was {then.get(name)!r} and is now {now.get(name)!r}. Resume "
                    "with the same options or choose another --run_dir."
                )

    @contextmanager
    def tracking(self, part: str, done: int) -> Iterator[None]:
        """While the block runs, what is logged goes to the trackers too, as a run of its own for the part.

        Args:
            part: name of the part of the run that logs.
            done: steps already done, when resuming.
        """
        run_id = json.loads((self.path / CONFIG).read_text(encoding="utf-8")).get("id")
        self._trackers = Trackers(self.report_to, self.path, part, self._config, run_id=run_id, done=done)
        try:
            yield
        finally:
            self._trackers.finish()
            self._trackers = None

    def log(self, record: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl, and tell the trackers."""
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._trackers is not None:
            self._trackers.log(record)

    def forget_after(self, part: str, step: int) -> None:
        """Drop a part's metrics after ``step``: a resumed run writes them again. So is half a line, of a killed run."""
        file = self.path / METRICS
        if not file.is_file():
            return
        whole = file.read_text(encoding="utf-8").rpartition("\n")[0]  # what follows was cut off while it was written
        records = [json.loads(line) for line in whole.splitlines()]
        kept = [r for r in records if r.get("part") != part or r["step"] <= step]
        write_text(file, "".join(json.dumps(r) + "\n" for r in kept))

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint of that name goes."""
        return self.path / "checkpoints" / name

    def write_results(self, results: dict[str, Any]) -> None:
        """results.json."""
        write_json(self.path / RESULTS, results)


def started_with(run: Path) -> dict[str, Any]:
    """``command`` and ``config`` of the run in a folder.

    Raises:
        UserError: its config is damaged.
    """
    try:
        record = json.loads((run / CONFIG).read_text(encoding="utf-8"))
        return {"command": record["command"], "config": dict(record["config"])}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{run / CONFIG} is damaged ({error}): choose another --run_dir.") from error


def provenance() -> dict[str, Any]:
    """Versions, commit, hardware and what was chosen by measurement on it, for every results file."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "commit": _commit(),
        "hardware": {
            "machine": platform.machine(),
            "cpu_count": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "attention": attention_choices(),
    }


def _commit() -> str | None:
    """The commit of the source tree, ``-dirty`` if changed since; None for an installed package."""
    here = Path(__file__).parent
    try:
        describe = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(describe, capture_output=True, text=True, timeout=10, check=False)
    except OSError:  # no git on this machine
        return None
    return found.stdout.strip() or None


def _options(config: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The options of a config by the names they have on the command line: grpo.max_steps."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _options(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return found


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path, value: Any) -> None:
    """Pretty JSON, replaced in one move so that a reader never sees half of it."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
