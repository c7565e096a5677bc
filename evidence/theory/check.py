"""A check: one claim, one number, a verdict, and a table of the numbers behind it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Row = list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A claim and the evidence for it.

    Attributes:
        id: short name; the part before the dot is the claim's section in ``docs/theory.md``.
        claim: one sentence.
        quantity: the quantity whose value is ``expected`` and ``value``.
        expected: its value according to the claim; None if the claim gives no value.
        value: its value as computed.
        interval: 99.9 % confidence interval of a Monte-Carlo estimate.
        holds: whether the claim holds.
        columns: headings of the table of the numbers behind the verdict.
        rows: its rows.
        curves: further numbers, for figures.
    """

    id: str
    claim: str
    quantity: str
    expected: float | None = None
    value: float
    interval: tuple[float, float] | None = None
    holds: bool
    columns: Sequence[str]
    rows: Sequence[Row]
    curves: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The verdict as a word."""
        return "holds" if self.holds else "fails"

    def column(self, name: str) -> list[Any]:
        """One column of the table, by its heading."""
        return [row[self.columns.index(name)] for row in self.rows]


def checks_to_json(checks: Sequence[Check]) -> str:
    """Indented JSON, one object per check. Numbers keep six digits, because further digits differ between machines."""
    return json.dumps([_rounded(asdict(check)) for check in checks], indent=2, ensure_ascii=False) + "\n"


def checks_from_json(text: str) -> list[Check]:
    """The inverse of ``checks_to_json``, up to rounding."""
    return [Check(**record) for record in json.loads(text)]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
