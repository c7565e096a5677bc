"""The settings of the study: its baselines and arms, and the command of each.

A settings file (``study.yaml``) names sets of options under ``masks`` and ``options``; an arm lists the sets that it
uses. An arm that occurs in several tables runs once. A table may also list noises under ``samples``: its baselines
answer many times under each noise, with greedy and with sampled answers, before any GRPO.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.errors import UserError

Questions = Literal["new", "curriculum"]
Answers = Literal["greedy", "sampled"]
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
class SamplesPlan:
    """Many answers of a baseline to each validation problem under one noise, for each seed."""

    noise: str
    label: str
    baseline: str
    answers: Answers
    options: Options
    seconds: float  # CPU seconds for one seed


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Rows of a table: names of arms, and the arms that all rows are compared with in addition to their baseline.

    An optional table is made only if it is named.
    """

    against: tuple[str, ...]
    rows: tuple[str, ...]
    samples: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole study."""

    recipe: str
    seeds: tuple[int, ...]
    common: Options
    baselines: Mapping[str, Baseline]
    arms: Mapping[str, ArmPlan]
    samples: Mapping[str, SamplesPlan] = field(default_factory=dict)
    k: int = 16  # pass@k of the samples
    tables: Mapping[str, TablePlan] = field(default_factory=dict)

    def only(self, tables: Sequence[str], seeds: Sequence[int], arms: Sequence[str] = ()) -> "Plan":
        """The part of the plan that some tables and seeds need.

        Args:
            tables: names; all that are not optional if empty.
            seeds: all of the plan's if empty.
            arms: the rows that the tables keep; all if empty.

        Raises:
            UserError: there is no such table, or no such arm in the tables.
        """
        for name in tables:
            if name not in self.tables:
                raise UserError(f"there is no table {name!r}: name some of {', '.join(self.tables)}.")
        kept = {name: self.tables[name] for name in tables or self.default_tables}
        if arms:
            kept = _with_rows(kept, arms)
        used = {name: self.arms[name] for table in kept.values() for name in table.rows}
        samples = {name: self.samples[name] for table in kept.values() for name in table.samples}
        starts = dict.fromkeys([arm.baseline for arm in used.values()] + [s.baseline for s in samples.values()])
        return Plan(
            recipe=self.recipe,
            seeds=tuple(seeds) or self.seeds,
            common=self.common,
            baselines={name: self.baselines[name] for name in starts},
            arms=used,
            samples=samples,
            k=self.k,
            tables=kept,
        )

    @property
    def default_tables(self) -> tuple[str, ...]:
        """Names of the tables that are not optional."""
        return tuple(name for name, table in self.tables.items() if not table.optional)

    @property
    def runs(self) -> dict[str, Baseline | ArmPlan | SamplesPlan]:
        """Everything that runs once for each seed, by name."""
        return {**self.baselines, **self.arms, **self.samples}

    @property
    def core_seconds(self) -> float:
        """CPU seconds of everything."""
        return len(self.seeds) * sum(run.seconds for run in self.runs.values())


def _with_rows(tables: Mapping[str, TablePlan], arms: Sequence[str]) -> dict[str, TablePlan]:
    """The tables with those of their rows that are named, and compared with the named ones."""
    known = [name for table in tables.values() for name in table.rows]
    for name in arms:
        if name not in known:
            raise UserError(f"there is no arm {name!r} in {', '.join(tables)}: name some of {', '.join(known)}.")
    return {
        name: replace(
            table,
            rows=tuple(row for row in table.rows if row in arms),
            against=tuple(row for row in table.against if row in arms),
        )
        for name, table in tables.items()
    }


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
    samples: dict[str, SamplesPlan] = {}
    tables = {}
    sampling = found.get("samples", {})
    for table, given in found["tables"].items():
        asked = (*given["arms"].values(), *given.get("samples", {}).values())
        for name in (given["baseline"], *(run["baseline"] for run in asked if "baseline" in run)):
            if name not in baselines:
                raise UserError(f"{file}: table {table} has baseline {name!r}, which is not a baseline.")
        for name, arm in given["arms"].items():
            if arm:
                arms[name] = _arm(file, name, arm, named, given["baseline"])
            elif name not in arms:
                raise UserError(f"{file}: table {table} repeats arm {name}, which no table before it describes.")
        drawn: dict[str, SamplesPlan] = {}
        for name, noise in given.get("samples", {}).items():
            drawn |= _samples(file, name, noise, named, given["baseline"], sampling["num_samples"])
        samples |= drawn
        tables[table] = TablePlan(
            against=tuple(given["against"]),
            rows=tuple(given["arms"]),
            samples=tuple(drawn),
            optional=given.get("optional", False),
        )
        for name in given["against"]:
            if name not in given["arms"]:
                raise UserError(f"{file}: table {table} compares with {name!r}, which is not one of its arms.")
    return Plan(
        recipe=found["recipe"],
        seeds=tuple(found["seeds"]),
        common=_texts(found["common"]),
        baselines=baselines,
        arms=arms,
        samples=samples,
        k=sampling.get("k", Plan.k),
        tables=tables,
    )


def _arm(file: Path, name: str, given: Mapping[str, Any], named: Mapping[str, Options], baseline: str) -> ArmPlan:
    options = _used(file, f"arm {name}", given, named)
    p, group = given.get("p"), given.get("group")
    return ArmPlan(
        name=name,
        label=given.get("label") or f"{group}, p = {p}",
        baseline=given.get("baseline", baseline),
        options=options,
        questions=given.get("questions", "new"),
        group=group,
        p=p,
        seconds=given["seconds"],
    )


def _samples(
    file: Path, name: str, given: Mapping[str, Any], named: Mapping[str, Options], baseline: str, num_samples: int
) -> dict[str, SamplesPlan]:
    """A run for each kind of answers, by the name of its run folder."""
    options = {**_used(file, f"noise {name}", given, named), "evaluation.num_samples": str(num_samples)}
    return {
        f"{name}_{answers}_samples": SamplesPlan(
            noise=name,
            label=given["label"],
            baseline=given.get("baseline", baseline),
            answers=answers,
            options={**options, "evaluation.temperature": "0.0" if answers == "greedy" else "1.0"},
            seconds=given["seconds"],
        )
        for answers in given["answers"]
    }


def _used(file: Path, who: str, given: Mapping[str, Any], named: Mapping[str, Options]) -> dict[str, str]:
    """The options of all sets that an arm or noise uses."""
    options: dict[str, str] = {}
    for used in given["use"]:
        if used not in named:
            raise UserError(f"{file}: {who} uses {used!r}, which is neither under masks nor under options.")
        options |= named[used]
    if "p" in given:
        options["exploration.p"] = str(given["p"])
    return options


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Values as text, as on a command line."""
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}


@dataclass(frozen=True, kw_only=True)
class Places:
    """Folders of one seed."""

    folder: Path

    def data(self, baseline: str) -> Path:
        """Problem files of a baseline."""
        return self.folder / f"{baseline}-data"

    def run(self, name: str) -> Path:
        """Run folder of a baseline, an arm or samples."""
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


def samples_options(plan: Plan, name: str, out: Path, seed: int) -> dict[str, str]:
    """Options of ``eval`` for samples, without its checkpoint and files."""
    return {**plan.common, **plan.samples[name].options, **_seeded(seed), "run_dir": str(places(out, seed).run(name))}


def _seeded(seed: int) -> dict[str, str]:
    return {"seed": str(seed), "data.word_problems.seed": str(seed)}


def command_lines(plan: Plan, name: str, out: Path, seed: int) -> list[str]:
    """The commands of a user that do what the study does for one baseline, arm or set of samples."""
    where = places(out, seed)
    if name in plan.samples:
        start = plan.samples[name].baseline
        asked = {
            "checkpoint": str(where.checkpoint(start, "coconut")),
            "files": f"[{where.data(start) / 'valid.json'}]",
        }
        return [_line("eval", plan.recipe, {**asked, **samples_options(plan, name, out, seed)})]
    if name in plan.baselines:
        options, part, baseline = baseline_options(plan, name, out, seed), "coconut", name
        made = [_data_line(plan, name, out, seed), _line("sft", plan.recipe, options)]
    else:
        baseline = plan.arms[name].baseline
        options, part = arm_options(plan, name, out, seed), "grpo"
        coconut = {"checkpoint": str(where.checkpoint(baseline, "coconut"))}
        made = [_line("grpo", plan.recipe, {**coconut, **options})]
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
