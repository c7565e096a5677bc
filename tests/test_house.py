"""The order of the packages: no import runs in a circle, and none runs upward."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "dropout_grpo"

FLOORS = (
    ("config", "data", "tasks"),
    ("distributed",),
    ("exploration",),
    ("latent",),
    ("runs", "training"),
    ("evaluation",),
    ("rl", "curriculum", "report"),
    ("commands",),
    ("integrations",),
    ("cli", "__main__"),
)
"""From the ground up. A package may import from its own floor and from those below. Modules outside of packages
(errors.py and others) are below them all."""


def modules() -> dict[str, Path]:
    """Every module but the packages' own, whose ``__init__`` only passes names on, by its name inside the package."""
    found = sorted(PACKAGE.rglob("*.py"))
    return {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in found if p.stem != "__init__"}


def imports_of(text: str, known: set[str]) -> set[str]:
    """The package's modules that a module imports anywhere: inside functions and for type checkers too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dropout_grpo"):
            place = (node.module or "").removeprefix("dropout_grpo").removeprefix(".")
            names = {f"{place}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= (names & known) or {place}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("dropout_grpo.") for a in node.names if a.name.startswith("dropout_grpo.")}
    return found & known


def graph() -> dict[str, set[str]]:
    places = modules()
    return {name: imports_of(path.read_text(encoding="utf-8"), set(places)) for name, path in places.items()}


def circle(arrows: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward(arrows: dict[str, set[str]]) -> list[str]:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    floor = dict.fromkeys((name for name in arrows if "." not in name), -1) | floor
    new = {name.split(".")[0] for name in arrows} - floor.keys()
    assert not new, f"give {', '.join(sorted(new))} a floor in FLOORS"
    return sorted(
        f"{name} -> {other}"
        for name, others in arrows.items()
        for other in others
        if floor[other.split(".")[0]] > floor[name.split(".")[0]]
    )


def test_no_import_runs_in_a_circle() -> None:
    """Imports inside functions and for type checkers count as well."""
    arrows = graph()
    assert len(arrows) > 100
    assert "latent.recurrence" in arrows["latent.model"]
    assert circle(arrows) == []


def test_no_import_runs_upward() -> None:
    assert upward(graph()) == []


@pytest.mark.parametrize(
    ("line", "added"),
    [
        ("def f():\n    from dropout_grpo.latent.model import LatentModel", "latent.model"),
        ("from dropout_grpo.latent import model", "latent.model"),
        ("import dropout_grpo.latent.model", "latent.model"),
        ("if TYPE_CHECKING:\n    from dropout_grpo.cli import failures", "cli.failures"),
    ],
)
def test_a_circle_and_an_upward_arrow_are_noticed(line: str, added: str) -> None:
    arrows = graph()
    assert imports_of(line, set(arrows)) == {added}
    broken = arrows | {"exploration.seeds": arrows["exploration.seeds"] | {added}}
    assert f"exploration.seeds -> {added}" in upward(broken)
    assert (circle(broken) != []) == (added == "latent.model")


def test_the_package_does_not_import_the_evidence() -> None:
    """It is not installed."""
    assert [path for path in modules().values() if "from evidence" in path.read_text(encoding="utf-8")] == []
