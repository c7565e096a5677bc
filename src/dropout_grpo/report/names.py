"""Names of the parts of a run in the report, and their order."""

from collections.abc import Iterable

_LABELS = {
    "baseline": "Baseline",
    "grpo": "GRPO",
    "dropout_grpo": "Dropout-GRPO",
    "temperature_only": "Temperature alone",
    "data": "Data",
    "sft": "Curriculum",
    "evaluation": "Evaluation",
    "total": "Total",
}
_FIRST = ("baseline", "grpo", "dropout_grpo", "temperature_only")


def label(name: str) -> str:
    """The name that the report shows; an unknown name is shown unchanged."""
    return _LABELS.get(name, name)


def in_order(names: Iterable[str]) -> list[str]:
    """Names without repetition, the known arms first: a colour means the same arm all over the page."""
    unique = list(dict.fromkeys(names))
    return [name for name in _FIRST if name in unique] + [name for name in unique if name not in _FIRST]
