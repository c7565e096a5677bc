"""The exception for mistakes that the user can fix: the command line prints it in one line, without a traceback."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

_OUT_OF_MEMORY = re.compile(
    "DefaultCPUAllocator: (can't allocate|not enough) memory"
    "|CUDA error: out of memory"  # torch.AcceleratorError: memory that is not the caching allocator's
    "|CU[A-Z]+_STATUS_(ALLOC_FAILED|INSUFFICIENT_RESOURCES)"  # cuBLAS, cuDNN and others allocate their own memory
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling .cublas(Lt)?Create"  # each thread's handle does, at its first product
    "|Failed to CUDA (malloc|calloc)|Cuda failure .{0,20}out of memory"  # NCCL
    "|could not create a primitive"  # oneDNN, the CPU's matrix library, when it gets no memory for its kernels
)


SAME_COMMAND = "the same command and --resume true"
RESUME = f"{SAME_COMMAND} (in Python: resume_from_checkpoint=True)"
"""How a run is continued, for messages of the command line and of Python."""


_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "check the permissions, or choose another path",
    errno.EPERM: "check the permissions, or choose another path",
    errno.EROFS: "choose a path that can be written to",
    errno.ENOENT: "check the path; it may have been moved or removed meanwhile",
    errno.ENOTDIR: "check the path; it may have been moved or removed meanwhile",
    errno.EISDIR: "check the path",
    errno.ELOOP: "it is a symbolic link, which is not followed: remove it",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


def remedy(number: int | None) -> str:
    """What to do about a failure of the system, by its errno."""
    return _REMEDIES.get(number or 0, "check the files and the machine")


class UserError(ValueError):
    """A mistake in what the user gave. The message names the value, the place and the remedy."""


class QuestionTooLong(UserError):
    """A question does not fit into the model's positions."""


class LostProcess(RuntimeError):
    """Another process of the run has been killed, has failed, or does not arrive. The message names its rank."""


@contextmanager
def at_place(place: str, kind: type[UserError] = UserError) -> Iterator[None]:
    """Prefixes the message of a UserError of this kind with its location, for example a file name."""
    try:
        yield
    except kind as error:
        raise kind(f"{place}: {error}") from error


_DAMAGE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError)
"""What reading a file raises that is not as the program wrote it: no JSON, no UTF-8, too deep, other keys or types."""


@contextmanager
def reading(place: str | Path, kind: type[UserError] = UserError) -> Iterator[None]:
    """Raise ``kind`` if what the block reads cannot be read, or is not as the program wrote it.

    The block is the whole of the reading, with all that assumes the file to be right, so that damage of any sort
    ends in one line here.

    Args:
        place: the file, or a place in it, for the message.
        kind: the exception. A UserError that the block raises itself is not changed.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise kind(f"cannot read {place}: {error.strerror or error}. Make it readable.") from error
    except _DAMAGE as error:
        what = f"{type(error).__name__}: {error}"
        raise kind(f"{place} is damaged ({what:.200}): restore it, or start again in another folder.") from error


def nearest(name: str, known: tuple[str, ...]) -> str:
    """``" (did you mean 'x'?)"`` with the most similar known name, or an empty string if none is similar."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is an out-of-memory error. Only torch's CUDA allocator has an exception class for it."""
    if not isinstance(error, RuntimeError):
        return False
    named = any(
        kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__
    )  # torch's, which is not imported here
    return named or _OUT_OF_MEMORY.search(str(error)) is not None


LESS_MEMORY = (
    "A training takes less with an adapter (lora.r; in Python peft_config), moments in 8 bits (adamw_8bit), weights in "
    "bf16 (param_dtype bfloat16), or shards on several GPUs (fsdp); everything takes less with a smaller model, "
    "shorter questions, fewer thoughts or shorter answers."
)
"""The remedies of all messages about memory."""


@contextmanager
def out_of_memory_is(message: str) -> Iterator[None]:
    """A block in which an out-of-memory error becomes a UserError with this message."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(message) from error
