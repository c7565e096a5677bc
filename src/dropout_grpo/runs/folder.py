"""The writer of a run folder: config, metrics, checkpoints, results. It never replaces another run silently."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dropout_grpo.config.choices import TrackerName
from dropout_grpo.distributed.processes import is_main, on_main
from dropout_grpo.errors import RESUME, UserError, reading
from dropout_grpo.runs.files import (
    CONFIG_FILE,
    DATA_FOLDER,
    FLIPS_FILE,
    MEASURES_FILE,
    METRICS_FILE,
    RESULTS_FILE,
    SAMPLES_FILE,
    THOUGHTS_FILE,
    checkpoint_folder,
    jsonable,
    sync,
    write_json,
    write_text,
    writing,
)
from dropout_grpo.runs.lock import LOCK_FILE, lock_folder
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.read import read_config, read_metrics
from dropout_grpo.runs.record import Record, require_equal_processes
from dropout_grpo.runs.trackers import Trackers, require_trackers

_DRAFTS = {CONFIG_FILE, f"{CONFIG_FILE}.part", LOCK_FILE}
_BEFORE_A_RUN = {*_DRAFTS, DATA_FOLDER}


class RunFolder:
    """The folder of one run. Of several processes only rank 0 writes; the calls of the others do nothing.

    Args:
        path: the folder, created if missing.
        command: the subcommand that runs.
        config: the resolved options, a dataclass.
        resume: continue the run in the folder; its config must be the same.
        report_to: experiment trackers that also get the metrics.
        digests: SHA-256 of what the options name, such as ``{"data.train": ...}``; see ``Record``.
        reasons: reasons for the options that the program has chosen, by name of the option.
        joins: True if this process writes a part of a run whose folder its parent process has locked.

    Raises:
        UserError: the folder holds a run, and ``resume`` is False, or its options or digests differ, or it was started
            by a command and is continued by a trainer in Python, or the reverse; another process has locked it; it
            cannot be created; a tracker is not installed; or the processes of this run differ. A run that stopped
            before it wrote anything but its config may be replaced.
    """

    def __init__(
        self,
        path: str | Path,
        command: str,
        config: Any,
        *,
        resume: bool = False,
        report_to: Sequence[TrackerName] = (),
        digests: Mapping[str, str | None] | None = None,
        reasons: Mapping[str, str] | None = None,
        joins: bool = False,
    ) -> None:
        require_trackers(report_to)
        self.path, self.report_to = Path(path), report_to if is_main() else ()
        self._trackers: Trackers | None = None
        self._grown: dict[str, Any] | None = None
        self._config = jsonable(config)
        record = Record(options=self._config, digests=dict(digests or {}))
        require_equal_processes(replace(record, options={"command": command, **self._config}))
        written = {
            "command": command,
            "config": self._config,
            "digests": record.digests,
            "reasons": dict(reasons or {}),
        }
        on_main(lambda: self._open(record, written, resume=resume, joins=joins))

    def _open(self, record: Record, written: dict[str, Any], *, resume: bool, joins: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run folder {self.path} is a file: choose another path.")
        with reading(self.path):
            names = {item.name for item in self.path.iterdir()} if self.path.is_dir() else set()
        begun = bool(names - _BEFORE_A_RUN) or (bool(names) and not names & _DRAFTS)
        if begun:
            if not (self.path / CONFIG_FILE).is_file():
                raise UserError(
                    f"{self.path} holds files but no {CONFIG_FILE}: it is not a run folder, choose another."
                )
            self._require_same_side()
            if not resume:
                raise UserError(
                    f"run folder {self.path} exists already: continue it with {RESUME}, or choose another folder."
                )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"{error.strerror}; choose another path."
            raise UserError(f"run folder {self.path} cannot be created: {reason}") from error
        self._lock = None if joins else lock_folder(self.path)
        if resume and (self.path / CONFIG_FILE).is_file():
            self._check_same(record, written)
            if not joins:
                self._tidy()
            return
        with writing(self.path / CONFIG_FILE):
            write_json(
                self.path / CONFIG_FILE, {**written, "id": uuid.uuid4().hex[:12], "started": _now(), **provenance()}
            )

    def _require_same_side(self) -> None:
        """Check that a command continues a command's run, and a trainer in Python a trainer's: options differ."""
        try:
            old, here = "run_dir" in read_config(self.path)["config"], "run_dir" in self._config
        except UserError:  # no run's config, or a damaged one: told by what follows
            return
        if old and not here:
            raise UserError(
                f"run folder {self.path} holds a run of the command line, which a trainer in Python cannot continue: "
                "name another folder, with run=... or output_dir=..."
            )
        if here and not old:
            raise UserError(
                f"run folder {self.path} holds a run of a trainer in Python, which a command cannot continue: name "
                "another --run_dir."
            )

    def _check_same(self, record: Record, written: dict[str, Any]) -> None:
        old = read_config(self.path)
        if old["command"] != written["command"]:
            raise UserError(f"{self.path} is a run of `{old['command']}`, not of `{written['command']}`.")
        then = Record(options=old["config"], digests=old["digests"])
        may_grow = old["command"] != "demo"  # it compares its parts, which have one length
        if then.require_same(record, str(self.path), may_grow=may_grow):
            self._grown = {**old, "config": written["config"]}

    def record_length(self) -> None:
        """Write to config.json the options of a run that is made longer, once it is sure to go on."""
        if self._grown is not None:
            with writing(self.path / CONFIG_FILE):
                write_json(self.path / CONFIG_FILE, self._grown)
            self._grown = None

    def _tidy(self) -> None:
        """Remove unfinished and temporary files of a killed process."""
        for old in checkpoint_folder(self.path, "").glob("*.old"):
            whole = old.with_suffix("")
            if whole.exists():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.rename(whole)
        for draft in [*self.path.glob("*.part"), *checkpoint_folder(self.path, "").glob("*.part")]:
            shutil.rmtree(draft, ignore_errors=True) if draft.is_dir() else draft.unlink(missing_ok=True)

    @property
    def id(self) -> str | None:
        """The run's id; None for a run of an older version."""
        return on_main(lambda: read_config(self.path).get("id"))

    @contextmanager
    def tracking(self, part: str, done: int) -> Iterator[None]:
        """Send what is logged inside the block to the trackers too, as a separate tracker run for the part.

        Args:
            part: name of the part of the run that logs.
            done: steps already done, when resuming.
        """
        run_id = read_config(self.path).get("id")
        self._trackers = Trackers(self.report_to, self.path, part, self._config, run_id=run_id, done=done)
        try:
            yield
        finally:
            self._trackers.finish()
            self._trackers = None

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl and send it to the trackers."""
        if not is_main():
            return
        path = self.path / METRICS_FILE
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._trackers is not None:
            self._trackers.log(record)

    def forget_after(self, part: str, step: int, every: int | None = None) -> None:
        """Drop a part's metrics after ``step``, which a resumed run writes again, and an incomplete last line.

        Args:
            part: name of the part.
            step: the last step that is kept.
            every: number of steps between two lines. If given, the lines that are kept must be complete.

        Raises:
            UserError: metrics.jsonl is damaged, lacks a step or has one twice, or cannot be replaced.
        """
        if not is_main():
            return
        path = self.path / METRICS_FILE
        lines = [r for r in read_metrics(self.path, whole_lines=True) if r["part"] != part or r["step"] <= step]
        if every is not None:
            _require_complete([r for r in lines if r["part"] == part], part, step, every, path)
        if path.is_file():
            with writing(path):
                write_text(path, _lines(lines))

    def sync_metrics(self) -> None:
        """Sync metrics.jsonl to disk, before a checkpoint that relies on its lines."""
        path = self.path / METRICS_FILE
        if is_main() and path.is_file():
            with writing(path):
                sync(path)

    def checkpoint(self, name: str) -> Path:
        """The folder of the checkpoint with this name."""
        return checkpoint_folder(self.path, name)

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json."""
        self._write(RESULTS_FILE, lambda path: write_json(path, results))

    def write_measures(self, measures: Mapping[str, Any]) -> None:
        """Write measures.json of an evaluation."""
        self._write(MEASURES_FILE, lambda path: write_json(path, measures))

    def write_samples(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Write samples.jsonl of an evaluation; see ``evaluation/measures.py``."""
        self._write(SAMPLES_FILE, lambda path: write_text(path, _lines(samples)))

    def write_flips(self, flips: Sequence[Mapping[str, Any]]) -> None:
        """Write flips.jsonl of a demo."""
        self._write(FLIPS_FILE, lambda path: write_text(path, _lines(flips)))

    def write_thoughts(self, thoughts: Sequence[Mapping[str, Any]]) -> None:
        """Write thoughts.jsonl; see ``commands/shared/thoughts.py``."""
        self._write(THOUGHTS_FILE, lambda path: write_text(path, _lines(thoughts)))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        if is_main():
            with writing(self.path / name):
                write(self.path / name)


def _now() -> str:
    """The time in UTC, to the second: ``2026-11-29 04:33:49 UTC``."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"


def as_run_folder(
    run: RunFolder | str | Path, command: str, record: Record, *, resume: bool, report_to: Sequence[TrackerName] = ()
) -> RunFolder:
    """The run folder that a trainer is given; made from the record if it is a path. See ``RunFolder``."""
    if isinstance(run, RunFolder):
        return run
    return RunFolder(run, command, record.options, resume=resume, report_to=report_to, digests=record.digests)


def _require_complete(records: Sequence[Mapping[str, Any]], part: str, last: int, every: int, path: Path) -> None:
    """Check that a part has one line of every logged step up to the last, in order; a validation has its own lines."""
    trained = [record["step"] for record in records if "loss" in record]
    logged = [step for step in trained if step % every == 0]
    expected = list(range(every, last + 1, every))
    if trained != sorted(set(trained)) or logged != expected:
        wrong = next((step for step in expected if trained.count(step) != 1), None)
        what = "are not in order" if wrong is None else f"have step {wrong} {trained.count(wrong)} times, not once"
        raise UserError(
            f"{path}: the lines of {part} {what}: the file has changed since the run wrote it. Restore it, or start a "
            "new run in another folder."
        )


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
