"""What the page's templates show: sections with tables and charts. All texts are plain; the templates escape them."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table; the first cell of every row is that row's heading, and each row has as many cells as the header.

    In the style "read" long cells wrap. "facts" is for names and long values under a heading of their own: caption and
    column headings are left to screen readers.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    style: str = ""

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.header) for row in self.rows), (self.header, self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A figure with its caption; ``described`` is read aloud in its place."""

    title: str
    caption: str = ""
    described: str
    figure: Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Part of the page, shown in this order; false if it has nothing to show."""

    heading: str
    lead: str = ""
    table: Table | None = None
    note: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()

    def __bool__(self) -> bool:
        return bool(self.table or self.charts or self.tables)
