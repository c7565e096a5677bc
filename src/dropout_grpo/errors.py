"""The exception for mistakes that the user can fix: the command line prints it in one line, without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches


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


def nearest(name: str, known: tuple[str, ...]) -> str:
    """``" (did you mean 'x'?)"`` with the most similar known name, or an empty string if none is similar."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
