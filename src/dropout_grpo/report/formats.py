"""Numbers as the page shows them; the filters of its templates."""

_MISSING = "–"
_THIN = "\u202f"  # a thin space that does not break, between a number and its unit


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; a dash where there is none."""
    return _MISSING if value is None else f"{value * 100:.1f}{_THIN}%"


def percent_interval(ends: tuple[float, float] | None) -> str:
    """An interval of fractions, "[38.2, 42.5] %"; empty where there is none."""
    return "" if ends is None else f"[{ends[0] * 100:.1f}, {ends[1] * 100:.1f}]{_THIN}%"


def count(value: float | None) -> str:
    """A whole number with separated thousands; a dash where there is none."""
    return _MISSING if value is None else f"{value:,.0f}"


def points(value: float) -> str:
    """A difference of fractions in percentage points, always with its sign."""
    return f"{value * 100:+.1f}".replace("-", "−")


def p_value(p: float) -> str:
    """A p-value that is never broken over lines."""
    return "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"


def duration(seconds: float) -> str:
    """Seconds in the unit one would say: "41.2 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f}{_THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_THIN}min {rest:02d}{_THIN}s"
    return f"{minutes // 60}{_THIN}h {minutes % 60:02d}{_THIN}min"
