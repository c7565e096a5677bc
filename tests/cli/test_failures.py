"""Failures of the machine: one line, exit status 2, no traceback; signals at the start; a closed pipe."""

import errno
import os
import subprocess
import sys
from typing import Any

import pytest
from safetensors import SafetensorError

from dropout_grpo.cli.main import main
from dropout_grpo.cli.messages import one_line

SIGNAL = """
import os, signal, sys, threading
from dropout_grpo.cli.entry import entry
threading.Timer({seconds}, os.kill, (os.getpid(), signal.{name})).start()
reading, writing = os.pipe()
sys.stdin = os.fdopen(reading)  # a question that never comes
sys.argv = ["dropout-grpo", "ask", "checkpoint"]
sys.exit(entry())
"""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the command ``sft`` raise an exception."""

    def fail(error: BaseException) -> None:
        def sft(*args: Any) -> None:
            raise error

        monkeypatch.setattr("dropout_grpo.commands.sft.sft", sft)

    return fail


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device: free some space."),
        (OSError(errno.EFBIG, "File too large"), "File too large: raise the limit on file sizes (ulimit -f)."),
        (PermissionError(errno.EACCES, "Permission denied", "a"), "a: Permission denied: check the permissions, or"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "a: Read-only file system: choose a path"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a"), "a: File name too long: choose a shorter path."),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "it may have been moved or removed"),
        (OSError("odd"), "odd: check the files and the machine."),
        (ValueError("embedded null byte"), "a path has a NUL character"),
        (UnicodeEncodeError("utf-8", "a\ud800", 1, 2, "surrogates not allowed"), "'a\\ud800' has half of a character"),
        (SafetensorError("I/O error"), "weights cannot be read or written: I/O error"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
    ],
)
def test_a_failure_of_the_machine_is_one_line(
    failing: Any, error: BaseException, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(error)
    assert main(["sft"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), ValueError("a bug"), KeyError("a bug"), UnicodeEncodeError("ascii", "é", 0, 1, "a bug")],
)
def test_a_bug_keeps_its_traceback(failing: Any, error: Exception) -> None:
    failing(error)
    with pytest.raises(type(error)):
        main(["sft"])


@pytest.mark.parametrize(("name", "status", "seconds"), [("SIGINT", 130, 0.05), ("SIGTERM", 143, 0.3)])
def test_a_signal_while_modules_are_imported(name: str, status: int, seconds: float) -> None:
    program = SIGNAL.format(seconds=seconds, name=name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr == {"SIGINT": "interrupted\n", "SIGTERM": "stopped by SIGTERM\n"}[name]


def test_only_commands_that_can_resume_say_so(
    failing: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(KeyboardInterrupt())
    assert main(["sft"]) == 130
    assert capsys.readouterr().err == "interrupted; continue with the same command and --resume true\n"

    def ask(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dropout_grpo.commands.ask.ask", ask)
    assert main(["ask", "c", "q"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


PRINTS = """
import sys
from dropout_grpo.cli.main import main
from dropout_grpo.commands import report
report.run = lambda options: print("x" * 100_000)
sys.exit(main(["report", "run"]))
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize(("target", "status"), [("/dev/full", 2), ("closed", 141)])
def test_standard_output_that_takes_nothing(target: str, status: int) -> None:
    """A command prints to a full disk, and to a pipe whose reader has gone."""
    if target == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(target, os.O_WRONLY)
    command = [sys.executable, "-c", PRINTS]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == status, done.stderr
    assert "No space left on device" in done.stderr or status == 141
    assert done.stderr.count("\n") == (status == 2)


def test_standard_output_that_was_closed_before_the_start() -> None:
    """Fault: a traceback after a whole run."""
    command = [sys.executable, "-c", PRINTS]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["sft", "--run_dir", "a\0b"], ["ask", "c", "\udcff"], ["report", "\udcff"]])
def test_text_that_no_file_can_hold(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "NUL and bytes that are not UTF-8 cannot be used" in capsys.readouterr().err


def test_a_message_is_one_line_of_bounded_length() -> None:
    assert one_line("a\n  b\n\nc\x1b[31m") == "a  b  c\\x1b[31m"
    assert len(one_line("x" * 10**6)) <= 1000
