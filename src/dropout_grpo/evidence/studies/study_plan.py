"""The settings of the study: which baselines and arms there are, and the command of each.

A settings file (``study.yaml``) names sets of options once, under ``masks`` and ``options``; an arm lists the sets that
it uses. An arm that several tables name runs once.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dropout_grpo.errors import UserError
from dropout_grpo.jobs.recipe_file import load_recipe

Questions = Literal["new", "curriculum"]
Options = Mapping[str, str]
"""Options of a command by name, as text."""

SETTINGS = Path(__file__).with_name("study.yaml")


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A Coconut that arms start from."""

    options: Options
    seconds: float  # CPU seconds for one seed


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """One GRPO run per seed."""

    name: str
    label: str
    baseline: str
    options: Options
    questions: Questions = "new"
    group: str | None = None  # a line of the figure over p
    p: float | None = None
    seconds: float  # CPU seconds for one seed, tests included


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Rows of a table: names of arms, and the arms that all rows are compared with besides their baseline."""

    against: tuple[str, ...]
    rows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole study."""

    recipe: str
    seeds: tuple[int, ...]
    common: Options
    baselines: Mapping[str, Baseline]
    arms: Mapping[str, ArmPlan]
    tables: Mapping[str, TablePlan] = field(default_factory=dict)

    def only(self, tables: Sequence[str], seeds: Sequence[int]) -> "Plan":
        """The part of the plan that some tables and seeds need; all of them where none is named.

        Raises:
            UserError: there is no such table.
        """
        for name in tables:
            if name not in self.tables:
                raise UserError(f"there is no table {name!r}: name some of {', '.join(self.tables)}.")
        kept = {name: self.tables[name] for name in tables or self.tables}
        arms = {name: self.arms[name] for table in kept.values() for name in table.rows}
        baselines = {arm.baseline: self.baselines[arm.baseline] for arm in arms.values()}
        return Plan(
            recipe=self.recipe,
            seeds=tuple(seeds) or self.seeds,
            common=self.common,
            baselines=baselines,
            arms=arms,
            tables=kept,
        )

    @property
    def core_seconds(self) -> float:
        """CPU seconds of everything."""
        each = [b.seconds for b in self.baselines.values()] + [a.seconds for a in self.arms.values()]
        return len(self.seeds) * sum(each)


def read_plan(file: Path = SETTINGS) -> Plan:
    """The plan in a settings file.

    Raises:
        UserError: the file cannot be read, or an arm uses options or a baseline that the file does not name.
    """
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as YAML: {error}.") from error
    named = {name: _texts(options) for name, options in {**found["masks"], **found["options"]}.items()}
    baselines = {
        name: Baseline(options=_texts(given.get("options", {})), seconds=given["seconds"])
        for name, given in found["baselines"].items()
    }
    arms: dict[str, ArmPlan] = {}
    tables = {}
    for table, given in found["tables"].items():
        if given["baseline"] not in baselines:
            raise UserError(f"{file}: table {table} has baseline {given['baseline']!r}, which is not a baseline.")
        for name, arm in given["arms"].items():
            if arm:
                arms[name] = _arm(file, name, arm, named, given["baseline"])
            elif name not in arms:
                raise UserError(f"{file}: table {table} repeats arm {name}, which no table before it describes.")
        tables[table] = TablePlan(against=tuple(given["against"]), rows=tuple(given["arms"]))
        for name in given["against"]:
            if name not in given["arms"]:
                raise UserError(f"{file}: table {table} compares with {name!r}, which is not one of its arms.")
    return Plan(
        recipe=found["recipe"],
        seeds=tuple(found["seeds"]),
        common=_texts(found["common"]),
        baselines=baselines,
        arms=arms,
        tables=tables,
    )


def _arm(file: Path, name: str, given: Mapping[str, Any], named: Mapping[str, Options], baseline: str) -> ArmPlan:
    options: dict[str, str] = {}
    for used in given["use"]:
        if used not in named:
            raise UserError(f"{file}: arm {name} uses {used!r}, which is neither under masks nor under options.")
        options |= named[used]
    p, group = given.get("p"), given.get("group")
    if p is not None:
        options["exploration.p"] = str(p)
    return ArmPlan(
        name=name,
        label=given.get("label") or f"{group}, p = {p}",
        baseline=baseline,
        options=options,
        questions=given.get("questions", "new"),
        group=group,
        p=p,
        seconds=given["seconds"],
    )


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Values as they stand on a command line."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of one seed."""

    folder: Path

    def data(self, baseline: str) -> Path:
        """Problem files of a baseline."""
        return self.folder / f"{baseline}-data"

    def run(self, name: str) -> Path:
        """Run folder of a baseline or an arm."""
        return self.folder / name

    def test(self, name: str) -> Path:
        """Run folder of its evaluation."""
        return self.folder / f"{name}-test"

    def checkpoint(self, name: str, part: str) -> Path:
        """Checkpoint of a baseline (part ``coconut``) or an arm (part ``grpo``)."""
        return self.run(name) / "checkpoints" / part


def places(out: Path, seed: int) -> Places:
    """Folders of a seed below ``out``."""
    return Places(folder=out / f"seed{seed}")


def baseline_options(plan: Plan, name: str, out: Path, seed: int) -> dict[str, str]:
    """Options of ``sft``."""
    return {**plan.common, **plan.baselines[name].options, **_seeded(seed), "run_dir": str(places(out, seed).run(name))}


def arm_options(plan: Plan, name: str, out: Path, seed: int) -> dict[str, str]:
    """Options of ``grpo``, without its checkpoint."""
    arm, where = plan.arms[name], places(out, seed)
    data = where.data(arm.baseline)
    asked = "train" if arm.questions == "curriculum" else "grpo"
    files = {"data.grpo": str(data / f"{asked}.json"), "data.valid": str(data / "valid.json")}
    return {**plan.common, **files, **arm.options, **_seeded(seed), "run_dir": str(where.run(name))}


def test_options(plan: Plan, name: str, out: Path, seed: int) -> dict[str, str]:
    """Options of ``eval``, without its checkpoint and files."""
    return {**plan.common, **_seeded(seed), "run_dir": str(places(out, seed).test(name))}


def _seeded(seed: int) -> dict[str, str]:
    return {"seed": str(seed), "data.word_problems.seed": str(seed)}


def command_lines(plan: Plan, name: str, out: Path, seed: int) -> list[str]:
    """The commands of a user that do what the study does for one baseline or arm."""
    where = places(out, seed)
    if name in plan.baselines:
        options, part, baseline = baseline_options(plan, name, out, seed), "coconut", name
        made = [_data_line(plan, name, out, seed), _line("sft", plan.recipe, options)]
    else:
        baseline = plan.arms[name].baseline
        options, part = arm_options(plan, name, out, seed), "grpo"
        start = {"checkpoint": str(where.checkpoint(baseline, "coconut"))}
        made = [_line("grpo", plan.recipe, {**start, **options})]
    tested = {"checkpoint": str(where.checkpoint(name, part)), "files": f"[{where.data(baseline) / 'test.json'}]"}
    return [*made, _line("eval", plan.recipe, {**tested, **test_options(plan, name, out, seed)})]


def _data_line(plan: Plan, baseline: str, out: Path, seed: int) -> str:
    made = load_recipe(plan.recipe, baseline_options(plan, baseline, out, seed)).data.word_problems
    given = {f"word_problems.{name}": str(value) for name, value in vars(made).items()}
    return _line("data", None, {**given, "out": str(places(out, seed).data(baseline))})


def _line(command: str, recipe: str | None, options: Mapping[str, str]) -> str:
    words = ["dropout-grpo", command, *(["--recipe", recipe] if recipe else [])]
    for name, value in options.items():
        words += [f"--{name}", value]
    return shlex.join(words)
