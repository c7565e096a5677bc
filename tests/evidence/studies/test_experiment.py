"""The planned experiment: its settings are accepted, and the page's hours follow from recorded seconds."""

import json
from itertools import product
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest

from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.errors import UserError
from evidence.places import DOCS, RESULTS_FOLDER
from evidence.studies import experiment
from evidence.studies.plan import SETTINGS, Plan, read_plan, recipe_options

NOISES = ("none", "latent_020", "latent_005", "prompt_010")
TEMPERATURES = ("t000", "t025", "t050", "t075", "t100", "t125")
TESTED = ("none_t100", "prompt_005_t000", "prompt_010_t000", "fresh_020_t100", "latent_020_t100")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan(SETTINGS.with_name("experiment.yaml"))


def test_the_grid_is_every_temperature_with_every_noise(plan: Plan) -> None:
    grid = [f"{noise}_{t}" for noise, t in product(NOISES, TEMPERATURES)][1:]  # none at temperature 0 changes nothing
    assert list(plan.tables["choice"].rows) == grid
    assert list(plan.tables["demo"].rows) == [f"demo_{name}" for name in grid]
    assert (len(plan.seeds), len(set(plan.seeds) & {1, 2, 3, 4, 5, 101, 102, 103, 104})) == (24, 0)


def test_every_arm_is_what_its_name_says(plan: Plan) -> None:
    for name, arm in plan.of_kind("arm").items():
        recipe = load_recipe(plan.recipe, recipe_options(plan, arm, Path("runs"), 201))
        grpo, used = recipe.grpo, recipe.exploration
        *_, noise, t = name.removeprefix("demo_").replace("_020", "").replace("_0", "/0").split("_")
        assert grpo.answers == ("greedy" if t == "t000" else "sampled"), name
        assert grpo.temperature == (1.0 if t == "t000" else int(t[1:]) / 100), name
        kind, _, p = noise.partition("/")
        kinds = {"none": "none", "latent": "shared_dropout", "prompt": "shared_dropout", "fresh": "per_step_dropout"}
        assert used.kind == kinds[kind], name
        if kind != "none":
            assert used.p == (int(p) / 100 if p else 0.2), name
            assert used.phases == (("prompt", "latent") if kind == "prompt" else ("latent",)), name
        shape = (grpo.max_steps, grpo.prompts_per_step, grpo.num_generations, grpo.learning_rate)
        assert shape == ((200, 128, 4, 3e-4) if name.startswith("demo_") else (150, 32, 8, 2e-4)), name


def test_the_demos_arms_have_the_demos_recipe(plan: Plan) -> None:
    arm = load_recipe(plan.recipe, recipe_options(plan, plan.runs["demo_none_t100"], Path("runs"), 201))
    demo = load_recipe(plan.recipe, {})
    for name in (
        "max_steps",
        "prompts_per_step",
        "num_generations",
        "learning_rate",
        "warmup_steps",
        "lr_scheduler_type",
    ):
        assert getattr(arm.grpo, name) == getattr(demo.grpo, name), name
    assert arm.data.word_problems.n_grpo == demo.data.word_problems.n_grpo
    assert load_recipe(plan.recipe, dict(plan.runs["demo"].options)).curriculum == demo.curriculum


def test_seconds_are_the_recorded_ones(plan: Plan) -> None:
    """The demo's are those of the records that the plan was written with, at the commit before it."""
    arms = {
        **json.loads((RESULTS_FOLDER / "rivals.json").read_text("utf-8"))["arms"],
        **json.loads((RESULTS_FOLDER / "study.json").read_text("utf-8"))["arms"],
    }
    for name, recorded in (
        ("none_t100", "temperature"),
        ("latent_020_t100", "sampled"),
        ("latent_020_t000", "greedy"),
        ("prompt_010_t000", "greedy_prompt"),
        ("prompt_010_t100", "held_prompt"),
        ("fresh_020_t100", "per_step"),
    ):
        assert plan.runs[name].seconds == round(arms[recorded]["seconds"]), name
    assert plan.runs["demo_latent_020_t100"].seconds == round(fmean((136, 160, 121)))


def test_the_pages_hours_are_the_plans(plan: Plan) -> None:
    """The largest sum: masks in the prompt are chosen, at a temperature above 0."""
    page = (DOCS / "experiment.md").read_text("utf-8")
    chosen = ("none_t125", "prompt_010_t125")
    parts = [
        plan.only(["choice"], [101, 102, 103, 104]),
        plan.only(["choice", "greedy", "holding"], [], [*chosen, *TESTED]),
        plan.only(["demo"], [], [f"demo_{name}" for name in chosen]),
    ]
    hours = [part.core_seconds / 3600 for part in parts]
    rows = [
        line.split(" | ")[-2:] for line in page.splitlines() if line.startswith(("| choice", "| contrast", "| demo"))
    ]
    assert [row[0] for row in rows] == [f"{h:.1f}" for h in hours]
    assert [row[1].removesuffix(" |") for row in rows] == [f"{h / 2:.1f}" for h in hours]
    assert f"{sum(hours) / 2:.1f} hours at most" in page
    assert len(parts[1].of_kind("arm")) == 7


def test_rows_can_be_named(plan: Plan) -> None:
    part = plan.only(["choice", "greedy"], [1], ["latent_020_t050", "prompt_005_t000"])
    assert list(part.of_kind("arm")) == ["latent_020_t050", "prompt_005_t000"]
    assert [(table.rows, table.against) for table in part.tables.values()] == [
        (("latent_020_t050",), ()),
        (("prompt_005_t000",), ()),
    ]
    assert list(part.of_kind("baseline")) == ["study"]
    with pytest.raises(UserError, match="there is no arm 'none_t000': name some of none_t025"):
        plan.only(["choice"], [], ["none_t000"])


def _solved(count: int, of: int = 4) -> str:
    return experiment.packed([i < count for i in range(of)])


def _record(seed: int, **counts: int) -> dict[str, Any]:
    """A record in which each run has solved so many of four problems, and has as many tenths of mixed groups."""
    runs = {
        name: {"label": name, "solved": _solved(n), "mixed": n / 10, "clipped": n / 4, "seconds": 1}
        for name, n in counts.items()
    }
    return {"seed": seed, "runs": runs, "run_commits": ["abc"]}


def test_bits_come_back() -> None:
    solved = [False, True, True, False, True]
    assert experiment.packed(solved) == "2d"  # 1 01101
    assert experiment.unpacked("2d") == solved


def test_the_choice_takes_the_most_solved_then_the_lowest_temperature_p_and_phases(plan: Plan) -> None:
    rows = plan.tables["choice"].rows

    def choose(**better: int) -> tuple[str, str]:
        return experiment.chosen(plan, [_record(seed, **(dict.fromkeys(rows, 1) | better)) for seed in (101, 102)])

    assert choose() == ("none_t025", "latent_005_t000")
    assert choose(none_t100=2, none_t075=2, latent_020_t050=2, prompt_010_t050=2) == ("none_t075", "prompt_010_t050")
    assert choose(latent_020_t125=3) == ("none_t025", "latent_020_t125")
    assert choose(latent_020_t125=2, prompt_010_t125=2, latent_005_t125=2)[1] == "latent_005_t125"


def test_the_tests_need_these_runs(plan: Plan) -> None:
    part = experiment.tested(plan, "none_t075", "latent_005_t050")
    assert list(part.of_kind("baseline")) == ["study", "demo"]
    assert set(part.of_kind("arm")) == {
        *("none_t075", "latent_005_t050", "demo_none_t075", "demo_latent_005_t050"),
        *("prompt_005_t000", "prompt_010_t000", "fresh_020_t100", "latent_020_t100"),
    }


def test_every_run_of_a_seed_without_a_record_runs(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[set[str]] = []
    monkeypatch.setattr(experiment, "run_round", lambda lines, **_: rounds.append(set(lines)))
    monkeypatch.setattr(experiment, "record_seed", lambda plan, out, seed: {"runs": list(plan.runs)})
    (tmp_path / "choice-102.json").write_text("{}", encoding="utf-8")
    experiment.run_seeds(plan.only(["choice"], [101, 102, 103, 104]), tmp_path, tmp_path, "choice", 2)
    names = ["study", *plan.tables["choice"].rows]
    tests = [{line for line in lines if line.endswith("_t100-test")} for lines in rounds]
    together = {f"seed{seed}/{noise}_t100-test" for seed in (101, 103) for noise in NOISES}
    assert [part for part in tests if part] == [together, _of_seed(together, 101, 104)]
    for seed in (101, 103, 104):
        assert json.loads((tmp_path / f"choice-{seed}.json").read_text("utf-8"))["runs"] == names
        assert {f"seed{seed}/{name}" for name in names} <= set().union(*rounds)


def _of_seed(lines: set[str], old: int, new: int) -> set[str]:
    return {line.replace(f"seed{old}/", f"seed{new}/") for line in lines if line.startswith(f"seed{old}/")}


def test_the_line_through_the_differences(plan: Plan) -> None:
    """Differences of 0.25, 0.25 and 1.0 at 0.1, 0.1 and 0.4 more mixed groups: a line through 0 with slope 2.5."""
    choices = [_record(101, **dict.fromkeys(plan.tables["choice"].rows, 1))]
    without, with_masks = experiment.chosen(plan, choices)
    records = [_record(seed, **{without: 0, with_masks: n}) for seed, n in ((201, 1), (202, 1), (203, 4))]
    lines = experiment.covariate(plan, choices, records).splitlines()
    assert lines[2].startswith("| mixed groups, with masks minus without, points | +20.00 |")
    assert lines[3].split(" | ")[1] in ("+0.00", "-0.00")
    assert lines[4].split(" | ")[1] == "+1.00"


def test_parts_of_the_problems(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [SimpleNamespace(steps=("a",) * n) for n in (2, 2, 3, 3)]
    monkeypatch.setattr(experiment, "_test_problems", lambda plan, seed: problems)
    choices = [_record(101, **dict.fromkeys(plan.tables["choice"].rows, 1))]
    without, with_masks = experiment.chosen(plan, choices)
    records = [_record(seed, **{"study": 1, without: 1, with_masks: 3}) for seed in (201, 202)]
    rows = [line.split(" | ")[:5] for line in experiment.subgroups(plan, choices, records).splitlines()[2:]]
    assert rows == [
        ["| 2 steps", "4", "50.0", "100.0", "+50.00"],
        ["| 3 steps", "4", "0.0", "50.0", "+50.00"],
        ["| baseline right", "2", "100.0", "100.0", "+0.00"],
        ["| baseline wrong", "6", "0.0", "66.7", "+66.67"],
    ]


def test_the_notes_count_the_arms_clipped_updates(plan: Plan) -> None:
    """3/4 and 1/4 of two arms' updates; the baseline is no arm of GRPO."""
    records = [_record(seed, study=4, none_t100=3, latent_005_t100=1) for seed in (201, 202)]
    notes = experiment.notes(plan, [], records)
    assert notes.startswith("Seeds of the choice: ; of the tests: 201, 202. 0.0 core hours of training; commits abc.")
    assert notes.endswith("In the arms of the tests gradients were clipped in 50.0 % of the updates.")


def test_nothing_is_tested_before_all_seeds_have_run(plan: Plan, tmp_path: Path) -> None:
    records = tmp_path / "experiment"
    records.mkdir()
    assert experiment.block(tmp_path, "contrast") == "*Not run yet.*"
    for seed in experiment.CHOICE_SEEDS:
        record = _record(seed, **dict.fromkeys(plan.tables["choice"].rows, 1))
        (records / f"choice-{seed}.json").write_text(json.dumps(record), encoding="utf-8")
    (records / "seed-201.json").write_text(json.dumps(_record(201)), encoding="utf-8")
    assert experiment.block(tmp_path, "contrast").startswith("*1 of 24 seeds have run.")
    assert "chosen" in experiment.block(tmp_path, "choice")
