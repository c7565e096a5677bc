"""A study of arms: its baselines, arms and samples, the tables that they are rows of, and the commands of each.

A settings file (``study.yaml``) names sets of options under ``masks`` and ``options``; an arm lists the sets that it
uses. An arm that occurs in several tables runs once. A table may also list noises under ``samples``: its baselines
answer many times under each noise, with greedy and with sampled answers, before any GRPO.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.errors import UserError
from evidence.studies.rounds import Round

Kind = Literal["baseline", "arm", "samples"]
Options = Mapping[str, str]
"""Options of a command by name, as text."""

SETTINGS = Path(__file__).with_name("study.yaml")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What runs once for each seed.

    A ``baseline`` is a Coconut that arms start from. An ``arm`` is a GRPO run. ``samples`` are many answers of a
    baseline to each validation problem under one noise.
    """

    kind: Kind
    name: str
    label: str
    baseline: str  # its own name for a baseline
    options: Options
    seconds: float  # CPU seconds for one seed, tests included
    settings: Mapping[str, Any]  # the run's entry in the settings file


@dataclass(frozen=True, kw_only=True)
class Table:
    """Names of the runs in a table, and of the arms that all rows are compared with in addition to their baseline.

    An optional table is made only if it is named.
    """

    against: tuple[str, ...]
    rows: tuple[str, ...]
    samples: tuple[str, ...]
    optional: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The whole study."""

    recipe: str
    seeds: tuple[int, ...]
    common: Options
    runs: Mapping[str, Run]
    tables: Mapping[str, Table]
    k: int  # pass@k of the samples

    def of_kind(self, kind: Kind) -> dict[str, Run]:
        """The runs of one kind, by name."""
        return {name: run for name, run in self.runs.items() if run.kind == kind}

    def only(self, tables: Sequence[str], seeds: Sequence[int], arms: Sequence[str] = ()) -> "Plan":
        """The part of the plan that some tables and seeds need.

        Args:
            tables: names; all that are not optional if empty.
            seeds: all of the plan's if empty.
            arms: the rows that the tables keep; all if empty.

        Raises:
            UserError: there is no such table, or no such arm in the tables.
        """
        _require(tables, self.tables, "table")
        named = {name: self.tables[name] for name in tables or self.default_tables}
        if arms:
            _require(arms, [row for table in named.values() for row in table.rows], "arm")
            named = {
                name: replace(
                    table,
                    rows=tuple(row for row in table.rows if row in arms),
                    against=tuple(row for row in table.against if row in arms),
                )
                for name, table in named.items()
            }
        rows = dict.fromkeys(row for table in named.values() for row in table.rows)
        samples = dict.fromkeys(name for table in named.values() for name in table.samples)
        baselines = dict.fromkeys(self.runs[name].baseline for name in (*rows, *samples))
        runs = {name: self.runs[name] for name in (*baselines, *rows, *samples)}
        return replace(self, seeds=tuple(seeds) or self.seeds, runs=runs, tables=named)

    @property
    def default_tables(self) -> tuple[str, ...]:
        """Names of the tables that are not optional."""
        return tuple(name for name, table in self.tables.items() if not table.optional)

    @property
    def core_seconds(self) -> float:
        """CPU seconds of everything."""
        return len(self.seeds) * sum(run.seconds for run in self.runs.values())


def _require(names: Sequence[str], known: Sequence[str] | Mapping[str, Any], what: str, where: str = "") -> None:
    for name in names:
        if name not in known:
            raise UserError(f"{where}there is no {what} {name!r}: name some of {', '.join(dict.fromkeys(known))}.")


def read_plan(file: Path = SETTINGS) -> Plan:
    """The plan in a settings file.

    Raises:
        UserError: an arm uses options or a baseline that the file does not name.
    """
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    sets = {name: _texts(options) for name, options in {**settings["masks"], **settings["options"]}.items()}
    sampling = settings.get("samples", {})
    runs = {
        name: Run(
            kind="baseline",
            name=name,
            label=f"baseline {name}",
            baseline=name,
            options=_texts(entry.get("options", {})),
            seconds=entry["seconds"],
            settings=entry,
        )
        for name, entry in settings["baselines"].items()
    }
    tables = {}
    for table, content in settings["tables"].items():
        where = f"{file}: table {table}: "
        own = {name: entry for name, entry in content["arms"].items() if entry}
        added = {name: _run(where, "arm", name, entry, sets, content["baseline"]) for name, entry in own.items()}
        drawn = {
            f"{noise}_{answers}_samples": _drawn(
                _run(where, "samples", noise, {**entry, "noise": noise, "answers": answers}, sets, content["baseline"]),
                sampling["num_samples"],
            )
            for noise, entry in content.get("samples", {}).items()
            for answers in entry["answers"]
        }
        for run in (*added.values(), *drawn.values()):
            _require([run.baseline], settings["baselines"], "baseline", where)
        runs |= added | drawn
        _require(list(content["arms"]), runs, "arm", where)
        _require(content["against"], content["arms"], "arm to compare with", where)
        tables[table] = Table(
            against=tuple(content["against"]),
            rows=tuple(content["arms"]),
            samples=tuple(drawn),
            optional=content.get("optional", False),
        )
    return Plan(
        recipe=settings["recipe"],
        seeds=tuple(settings["seeds"]),
        common=_texts(settings["common"]),
        runs=runs,
        tables=tables,
        k=sampling.get("k", 1),
    )


def _run(
    where: str, kind: Kind, name: str, entry: Mapping[str, Any], sets: Mapping[str, Options], baseline: str
) -> Run:
    """An arm, or samples, with the options of all sets that it uses."""
    _require(entry["use"], sets, "set of options", f"{where}{name}: ")
    options = {option: value for used in entry["use"] for option, value in sets[used].items()}
    if "p" in entry:
        options["exploration.p"] = str(entry["p"])
    return Run(
        kind=kind,
        name=name,
        label=entry.get("label") or f"{entry.get('group')}, p = {entry.get('p')}",
        baseline=entry.get("baseline", baseline),
        options=options,
        seconds=entry["seconds"],
        settings=entry,
    )


def _drawn(run: Run, num_samples: int) -> Run:
    answers = run.settings["answers"]
    sampling = {
        "evaluation.num_samples": str(num_samples),
        "evaluation.temperature": "0.0" if answers == "greedy" else "1.0",
    }
    return replace(run, name=f"{run.name}_{answers}_samples", options={**run.options, **sampling})


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

    def checkpoint(self, run: Run) -> Path:
        """Checkpoint of a baseline or an arm."""
        return self.run(run.name) / "checkpoints" / ("coconut" if run.kind == "baseline" else "grpo")


def places(out: Path, seed: int) -> Places:
    """Folders of a seed below ``out``."""
    return Places(folder=out / f"seed{seed}")


def recipe_options(plan: Plan, run: Run, out: Path, seed: int) -> dict[str, str]:
    """Options of a run's training, or of drawing its samples."""
    where, files = places(out, seed), {}
    if run.kind == "arm":
        data = where.data(run.baseline)
        split = "train" if run.settings.get("questions") == "curriculum" else "grpo"
        files = {"data.grpo": str(data / f"{split}.json"), "data.valid": str(data / "valid.json")}
    return {**plan.common, **files, **run.options, **_seeded(seed), "run_dir": str(where.run(run.name))}


def _seeded(seed: int) -> dict[str, str]:
    return {"seed": str(seed), "data.word_problems.seed": str(seed)}


def commands(plan: Plan, run: Run, out: Path, seed: int, split: str = "test") -> dict[str, list[str]]:
    """The command lines of one run for one seed, as words, by their folders' names, in the order that they run in."""
    where, options = places(out, seed), recipe_options(plan, run, out, seed)
    data, start = where.data(run.baseline), {"checkpoint": str(where.checkpoint(plan.runs[run.baseline]))}
    if run.kind == "samples":
        files = {"files": f"[{data / 'valid.json'}]"}
        return {run.name: _line("eval", plan.recipe, {**start, **files, **options})}
    if run.kind == "baseline":
        problems = vars(load_recipe(plan.recipe, options).data.word_problems)
        written = {**{f"word_problems.{name}": str(value) for name, value in problems.items()}, "out": str(data)}
        training = {data.name: _line("data", None, written), run.name: _line("sft", plan.recipe, options)}
    else:
        training = {run.name: _line("grpo", plan.recipe, {**start, **options})}
    test = where.test(run.name)
    measure = {"checkpoint": str(where.checkpoint(run)), "files": f"[{data / f'{split}.json'}]"}
    measure |= {**plan.common, **_seeded(seed), "run_dir": str(test)}
    return {**training, test.name: _line("eval", plan.recipe, measure)}


def command_lines(plan: Plan, run: Run, out: Path, seed: int) -> list[str]:
    """The same as text."""
    return [shlex.join(words) for words in commands(plan, run, out, seed).values()]


def _line(command: str, recipe: str | None, options: Options) -> list[str]:
    words = ["dropout-grpo", command, *(["--recipe", recipe] if recipe else [])]
    return words + [word for name, value in options.items() for word in (f"--{name}", value)]


def plan_rounds(plan: Plan, out: Path, split: str = "test") -> Iterator[Round]:
    """Problem files; baselines; arms, samples and tests of baselines; tests of arms. Expensive runs come first."""
    rounds: list[dict[str, list[str]]] = [{}, {}, {}, {}]
    for run in sorted(plan.runs.values(), key=lambda run: -run.seconds):
        first = 0 if run.kind == "baseline" else 2
        for seed in plan.seeds:
            for place, (name, words) in enumerate(commands(plan, run, out, seed, split).items(), start=first):
                rounds[place][f"seed{seed}/{name}"] = words
    yield from rounds
