"""One process at a time writes a run folder; a lock never outlives its process."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dropout_grpo.errors import UserError
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.lock import LOCK_FILE, is_locked, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from dropout_grpo.runs.lock import LOCK_FILE, is_locked, lock_folder
lock = lock_folder(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_a_crash_releases_the_lock(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "sft", {})
    run.log({"part": "sft", "step": 1})
    del run
    with holder(tmp_path) as process:
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        told = rf"{tmp_path} is in use by process {process.pid} on host {socket.gethostname()}: wait"
        with pytest.raises(UserError, match=told):
            RunFolder(tmp_path, "sft", {}, resume=True)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        RunFolder(tmp_path, "sft", {}, resume=True, joins=True).log({"part": "b", "step": 1})  # its own second process
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        RunFolder(tmp_path, "sft", {}, resume=True)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """Fault: the file that it points to was overwritten."""
    (tmp_path / "mine.txt").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UserError, match=r"run/lock: Too many levels of symbolic links.*symbolic link.*remove it"):
        RunFolder(tmp_path / "run", "sft", {})
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_a_holder_that_has_not_written_its_name(tmp_path: Path) -> None:
    with holder(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(UserError, match="in use by another process"):
            lock_folder(tmp_path)


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("dropout_grpo.runs.lock.fcntl.flock", flock)
    with pytest.raises(UserError, match="cannot be locked: No locks available"):
        lock_folder(tmp_path)


def test_whether_a_folder_is_locked(tmp_path: Path) -> None:
    """Looking does not lock it."""
    assert not is_locked(tmp_path)
    lock = lock_folder(tmp_path)
    assert is_locked(tmp_path)
    del lock
    assert (tmp_path / LOCK_FILE).exists()
    assert not is_locked(tmp_path)
    lock_folder(tmp_path)


def test_a_lock_that_lives_until_the_interpreter_ends_is_released_without_a_traceback(tmp_path: Path) -> None:
    keep = "import os, sys, pathlib; from dropout_grpo.runs.lock import lock_folder\n"
    keep += "os.kept = lock_folder(pathlib.Path(sys.argv[1]))"  # freed after the names in `os`, as in a long script
    done = subprocess.run([sys.executable, "-c", keep, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
