"""A check: one claim, one number, a verdict, and a table of the numbers behind it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["holds", "fails", "measured"]
Row = list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A claim and the evidence for it.

    Attributes:
        id: short name; the part before the dot is the claim's section in ``docs/theory.md``.
        claim: one sentence.
        quantity: the quantity whose value is ``exact`` and ``estimate``.
        exact: its value according to the claim; None if the claim gives no value, or only a direction.
        estimate: its value as computed or measured.
        error: distance of an exact sum from the claim, relative to the size of the compared values.
        interval: 99.9 % confidence interval of a Monte-Carlo estimate.
        verdict: ``holds`` or ``fails``; ``measured`` if nothing is claimed.
        detail: JSON values. ``columns`` and ``rows`` are the numbers behind the verdict, for tables and figures.
    """

    id: str
    claim: str
    quantity: str
    exact: float | None = None
    estimate: float | None = None
    error: float | None = None
    interval: tuple[float, float] | None = None
    verdict: Verdict
    detail: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> list[Any]:
        """One column of the table, by its name."""
        place = self.detail["columns"].index(name)
        return [row[place] for row in self.detail["rows"]]


def holds_if(condition: bool) -> Verdict:
    """The verdict of a claim that must satisfy a condition."""
    return "holds" if condition else "fails"


def checks_to_json(checks: Sequence[Check]) -> str:
    """Indented JSON, one object per check. Numbers keep six digits, because further digits differ between machines."""
    return json.dumps([_rounded(asdict(check)) for check in checks], indent=2, ensure_ascii=False) + "\n"


def checks_from_json(text: str) -> list[Check]:
    """The inverse of ``checks_to_json``, up to rounding."""
    records = json.loads(text)
    for record in records:
        if record["interval"] is not None:
            record["interval"] = tuple(record["interval"])
    return [Check(**record) for record in records]


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
