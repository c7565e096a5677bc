"""The planned experiment: its settings are accepted, and the page's hours follow from recorded seconds."""

import json
from itertools import product
from pathlib import Path
from statistics import fmean

import pytest

from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.errors import UserError
from evidence.places import DOCS, RESULTS_FOLDER
from evidence.studies.plan import SETTINGS, Plan, read_plan, recipe_options
from evidence.studies.record import read_outcomes, write_outcomes

NOISES = ("none", "latent_020", "latent_005", "prompt_010")
TEMPERATURES = ("t000", "t025", "t050", "t075", "t100", "t125")
SAMPLE = {"file": "test.json", "question": "q", "answer": "1", "plain": "1"}
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
    assert "**It has not been run.**" in page
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


def test_outcomes_of_problems_come_back(plan: Plan, tmp_path: Path) -> None:
    part = plan.only(["holding"], [1, 2])
    solved = [False, True, True, False, True]
    for name in ("study", *part.of_kind("arm")):
        for seed in part.seeds:
            file = tmp_path / f"seed{seed}" / f"{name}-test" / "samples.jsonl"
            file.parent.mkdir(parents=True)
            lines = solved if seed == 1 else [not each for each in solved]
            rows = [{**SAMPLE, "id": i, "plain_correct": each} for i, each in enumerate(lines)]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_outcomes(part, tmp_path, tmp_path / "record" / "outcomes.json.gz")
    result = read_outcomes(tmp_path / "record" / "outcomes.json.gz")
    assert set(result) == {"study", "fresh_020_t100", "latent_020_t100"}
    assert result["latent_020_t100"] == {"1": solved, "2": [not each for each in solved]}
