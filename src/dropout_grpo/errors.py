"""The one exception that means "the user can fix this": the command line prints it without a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what the user gave. The message names the value, the place and the remedy."""


@contextmanager
def told_of(place: str) -> Iterator[None]:
    """Whatever is refused inside the block is told with its place, a file for one, in front."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def nearest(name: str, known: tuple[str, ...]) -> str:
    """``" (did you mean 'x'?)"``, or nothing if no known name is near."""
    near = get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
