"""Small pieces of HTML. Whatever comes from a file passes through `text`; tables escape their own cells."""

from collections.abc import Sequence
from html import escape

_BESIDE = 3
"""Columns that fit a phone."""
_MISSING = "–"
_THIN = "\u202f"  # a thin space that does not break, between a number and its unit


def text(value: object) -> str:
    """`value` as text that is safe between tags and in quoted attributes."""
    return escape(str(value), quote=True)


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; a dash where there is none."""
    return _MISSING if value is None else f"{value * 100:.1f}{_THIN}%"


def count(value: float | None) -> str:
    """A whole number with separated thousands; a dash where there is none."""
    return _MISSING if value is None else f"{value:,.0f}"


def points(value: float) -> str:
    """A difference of fractions in percentage points, always with its sign."""
    return f"{value * 100:+.1f}".replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds in the unit one would say: "41.2 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f}{_THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_THIN}min {rest:02d}{_THIN}s"
    return f"{minutes // 60}{_THIN}h {minutes % 60:02d}{_THIN}min"


def percent_interval(ends: tuple[float, float] | None) -> str:
    """An interval of fractions, "[38.2, 42.5] %"; empty where there is none."""
    return "" if ends is None else f"[{ends[0] * 100:.1f}, {ends[1] * 100:.1f}]{_THIN}%"


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "") -> str:
    """A table whose first cell of every row is that row's heading. Takes plain text and escapes it.

    `kind` "facts" is the style for names and long values under a heading of their own: the values wrap, and
    caption and column headings are left to screen readers. In the style "read" they wrap as well. On a phone, the cells
    of a row stand below each other if there are more than fit.
    """
    assert all(len(row) == len(header) for row in rows), (header, rows)
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f'<td data-label="{text(name)}">{text(c)}</td>' for name, c in zip(header[1:], rest, strict=True))
        + "</tr>"
        for first, *rest in rows
    )
    css = " ".join([*kind.split(), *(["stack"] if len(header) > _BESIDE else [])])
    named = f' class="{text(css)}"' if css else ""
    return (
        f'<div class="scroll" role="region" aria-label="{text(caption)}" tabindex="0"><table{named}>'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def figure(title: str, caption: str, svg: str) -> str:
    """A figure with its title and caption; `svg` comes from svg.inline_svg."""
    return f"<figure><h3>{text(title)}</h3><figcaption>{text(caption)}</figcaption>{svg}</figure>"


def section(heading: str, *parts: str) -> str:
    """A section of HTML parts; empty if every part is."""
    body = "".join(parts)
    return f"<section><h2>{text(heading)}</h2>{body}</section>" if body else ""
