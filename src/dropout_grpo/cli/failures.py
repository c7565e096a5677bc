"""Failures of the machine, such as a full disk, in one line for the user. Any other exception is a bug."""

from pathlib import Path

from dropout_grpo.errors import is_out_of_memory, remedy


def describe(error: BaseException) -> str | None:
    """What failed and what to do about it, or None if the exception is not a failure of the machine.

    An OSError names its file. SafetensorError and torch's errors are recognised without importing the packages.
    """
    if isinstance(error, OSError):
        place = f"{error.filename}: " if isinstance(error.filename, (str, Path)) else ""
        what = error.strerror or str(error) or type(error).__name__
        return f"{place}{what}: {remedy(error.errno)}."
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a path has a NUL character: remove it."
    if isinstance(error, UnicodeEncodeError) and "\ud800" <= error.object[error.start] <= "\udfff":
        return f"{error.object[:60]!r} has half of a character (a lone surrogate): remove it."
    if type(error).__name__ == "SafetensorError":
        return f"weights cannot be read or written: {error}: check the file and the free space."
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return "out of memory: use smaller batches, a smaller model or shorter texts."
    return None
