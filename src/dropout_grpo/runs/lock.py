"""A lock, so that only one process at a time writes to a run folder.

It is an advisory lock of the operating system (``flock``) on the file ``lock`` in the folder. The system releases it
when the process ends, for whatever reason, so a crash never leaves a folder locked.
"""

import fcntl
import json
import os
import socket
import weakref
from collections.abc import Callable
from pathlib import Path

from dropout_grpo.errors import UserError
from dropout_grpo.runs.files import writing

LOCK_FILE = "lock"

_held: weakref.WeakValueDictionary[tuple[int, int], "FolderLock"] = weakref.WeakValueDictionary()


class FolderLock:
    """Holds the lock of a folder as long as the object lives; see ``lock_folder``."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit, `os` may be empty already
        close(self._descriptor)


def lock_folder(folder: Path) -> FolderLock:
    """Lock a folder for this process. A process that already holds the lock gets it again.

    Raises:
        UserError: another process holds the lock; the message names its id and host.
    """
    path = folder / LOCK_FILE
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    status = os.fstat(descriptor)
    key = (status.st_dev, status.st_ino)
    if (held := _held.get(key)) is not None:
        os.close(descriptor)
        return held
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _owner(descriptor)
        os.close(descriptor)
        raise UserError(
            f"run folder {folder} is in use by {owner}: wait until that process has ended, or choose another folder."
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise UserError(
            f"run folder {folder} cannot be locked: {error.strerror}. Choose one on a file system with locks."
        ) from error
    lock = _held[key] = FolderLock(descriptor)
    with writing(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
    return lock


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock, this one included."""
    try:
        descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {owner['pid']} on host {owner['host']}"
    except (ValueError, TypeError, KeyError):  # the owner has not written its id yet
        return "another process"
