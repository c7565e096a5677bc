"""The study: its settings, a tiny run of everything through one command, its statistics and its tables."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.config.recipe import Recipe
from dropout_grpo.config.recipe_file import load_recipe
from dropout_grpo.errors import UserError
from dropout_grpo.latent.model import LatentModel
from evidence.studies import study
from evidence.studies.plan import Plan, places, read_plan, recipe_options
from evidence.studies.plots import draw
from evidence.studies.record import record_samples, training
from evidence.studies.tables import block

TINY = Path(__file__).parents[2] / "helpers" / "tiny_study.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny study and its record."""
    folder = tmp_path_factory.mktemp("study")
    run(folder)
    return folder


def run(folder: Path, *options: str) -> None:
    """The command, with paths relative to a folder, so that a copy of the folder can be resumed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study.main(["--settings", str(TINY), "--out", "runs", "--record", "study.json", "--workers", "1", *options])


@pytest.fixture(scope="module")
def record(made: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((made / "study.json").read_text(encoding="utf-8"))
    return result


@pytest.mark.slow
def test_every_arm_is_a_run_folder(made: Path, record: dict[str, Any]) -> None:
    assert set(record["arms"]) == {"temperature", "greedy", "held_05", "old"}
    assert (record["seeds"], record["problems"], record["split"]) == ([1], 6, "test")
    where = places(made / "runs", 1)
    for name in (*record["arms"], "demo"):
        config = json.loads((where.run(name) / "config.json").read_text(encoding="utf-8"))
        assert config["command"] == ("sft" if name == "demo" else "grpo")
        assert config["config"]["seed"] == config["config"]["data"]["word_problems"]["seed"] == 1
        assert (where.test(name) / "samples.jsonl").is_file()


def test_the_record_follows_from_the_run_folders(made: Path, record: dict[str, Any]) -> None:
    lines = (places(made / "runs", 1).test("held_05") / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert record["arms"]["held_05"]["by_seed"] == [sum(json.loads(line)["plain_correct"] for line in lines) / 6]
    (row,) = (row for row in record["tables"]["rates"]["rows"] if row["arm"] == "held_05")
    assert row["to"]["temperature"]["difference"] == pytest.approx(
        record["arms"]["held_05"]["pass@1"] - record["arms"]["temperature"]["pass@1"]
    )
    assert record["arms"]["old"]["steps"] == 2
    runs = {
        json.loads((places(made / "runs", 1).run(name) / "config.json").read_text("utf-8"))["commit"]
        for name in ("demo", "old")
    }
    assert record["run_commits"] == [str(commit) for commit in runs]
    assert "train.json" in record["arms"]["old"]["commands"][0]


def test_what_has_finished_does_not_run_again_and_what_was_interrupted_does(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "study"
    shutil.copytree(made, copy)
    where = places(copy / "runs", 1)
    lost = {folder / "results.json" for folder in (where.run("held_05"), where.test("held_05"))}
    weights = LatentModel.from_pretrained(where.run("held_05") / "checkpoints" / "grpo").model.state_dict()
    shutil.rmtree(where.run("held_05") / "checkpoints" / "grpo")
    for file in lost:
        file.unlink()
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("results.json")}
    run(copy, "--only", "rates")
    after = {file: file.stat().st_mtime_ns for file in copy.rglob("results.json")}
    assert {file for file in after if after[file] != before.get(file)} == lost
    again = LatentModel.from_pretrained(where.run("held_05") / "checkpoints" / "grpo").model.state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert list(json.loads((copy / "study.json").read_text("utf-8"))["tables"]) == ["rates"]


def test_tables_and_figures(made: Path, record: dict[str, Any]) -> None:
    draw(made)
    assert {file.stem for file in made.glob("*.svg")} == {"study-variants", "study-rates", "study-long"}
    lines = block(made, "study.arms.rates").splitlines()
    assert lines[3].startswith("| latent, p = 0.5 |")
    assert lines[0].count("|") == lines[3].count("|")
    assert "| latent, p = 0.5 | temperature alone |" in block(made, "study.compared.rates")
    assert block(made, "study.arms.group_size") == "*Not run yet.*"
    assert "| masks, greedy |" in block(made, "study.signs.refinements")
    assert "dropout-grpo grpo --recipe word-problems --checkpoint" in block(made, "study.study_example.rates")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return read_plan()


@pytest.fixture(scope="module")
def recipes(plan: Plan) -> dict[str, Recipe]:
    """The recipe of every arm: its options are accepted."""
    return {
        name: load_recipe(plan.recipe, recipe_options(plan, arm, Path("runs"), 1))
        for name, arm in plan.of_kind("arm").items()
    }


def test_the_settings_are_what_the_labels_say(plan: Plan, recipes: dict[str, Recipe]) -> None:
    assert (recipes["naive"].exploration.kind, recipes["naive"].grpo.replay) == ("per_step_dropout", False)
    no_filter = recipes["no_filter"].grpo
    assert (no_filter.filter_groups, no_filter.kl_estimator) == (None, "k3_huber")
    assert (recipes["prompt_01"].exploration.p, recipes["prompt_01"].exploration.phases) == (0.1, ("prompt", "latent"))
    for name, kind, phases in (
        ("svp_v", "svp:SVP", ("prompt", "latent")),
        ("svp_v_latent", "svp:SVP", ("latent",)),
        ("gaussian_v", "gaussian_v:GaussianV", ("prompt", "latent")),
        ("gaussian_v_latent", "gaussian_v:GaussianV", ("latent",)),
    ):
        used = recipes[name].exploration
        assert (used.kind, used.phases) == (f"evidence.rivals.{kind}", phases)
        assert used.options == {"alpha": 0.6, "refresh": 50}
    assert recipes["gaussian"].exploration.options["sigma"] ** 2 == pytest.approx(0.2 / 0.8), "variance of a mask"
    assert recipes["svp_v_alone"].exploration.kind == "evidence.rivals.svp:SVPOnlyValues"
    assert plan.runs["pause_temperature"].baseline == "pause"
    assert 0 not in plan.seeds
    assert len(plan.seeds) == 5


def test_the_study_without_rivals_takes_at_most_two_and_a_half_hours_on_two_cores(plan: Plan) -> None:
    default = plan.only([], [])
    assert list(default.tables) == [name for name in plan.tables if name != "rivals"]
    assert default.core_seconds / 2 <= 2.5 * 3600
    assert f"{default.core_seconds:.0f} CPU seconds" in study.arithmetic(default, 2)
    assert not default.of_kind("samples")
    assert "pause" not in default.runs


def test_the_plans_arithmetic_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Seconds of tiny_study.yaml: demo 2, then 1 for each run; the tables share the arm temperature."""
    study.main(["--settings", str(TINY), "--plan", "--workers", "1", "--seeds", "1", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "| variants | 3 | 8 | 0.00 | 0.00 |" in lines, "(2 + 1 + 1) x 2 seeds"
    assert "2 seeds, 12 CPU seconds, 0.00 hours on 1 cores" in lines, "demo and four arms"
    # Two baselines of 2 s, three arms and four sets of samples: 11 s a seed; 8 s of them are not above.
    assert lines[-1] == ("not included, --only rivals: 22 CPU seconds, 0.01 hours; 0.00 hours after the tables above")
    study.main(["--settings", str(TINY), "--plan", "--workers", "1", "--only", "rivals"])
    assert capsys.readouterr().out.splitlines()[-1] == "1 seeds, 11 CPU seconds, 0.00 hours on 1 cores"


def test_a_part_needs_only_its_own_arms(plan: Plan) -> None:
    part = plan.only(["long"], [3])
    assert (list(part.of_kind("baseline")), list(part.of_kind("arm")), part.seeds) == (
        ["demo"],
        list(plan.tables["long"].rows),
        (3,),
    )
    with pytest.raises(UserError, match="no table 'rate'"):
        plan.only(["rate"], [])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("use: [held, greedy]", "use: [held, gredy]", "greedy: there is no set of options 'gredy'"),
        ("against: [temperature]", "against: [temprature]", "there is no arm to compare with 'temprature'"),
        ("    baseline: demo", "    baseline: dmeo", "there is no baseline 'dmeo'"),
        ("use: [none], baseline: pause", "use: [none], baseline: pose", "table rivals: there is no baseline 'pose'"),
        ("svp_v: {use: [svp_v], label", "svp_v: {use: [spv], label", "svp_v: there is no set of options 'spv'"),
    ],
)
def test_settings_that_name_nothing_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "study.yaml").write_text(TINY.read_text("utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_plan(tmp_path / "study.yaml")


def test_samples_by_hand(tmp_path: Path) -> None:
    """pass@2 of the first noise is 0.2 and 0.4 for two seeds, of the second 0.5 and 0.5: 0.2 ahead, +- 0.1 t."""
    plan = read_plan(TINY).only(["rivals"], [1, 2])
    first, second, *_ = plan.of_kind("samples")
    for name in plan.of_kind("samples"):
        for seed, share in ((1, 0.2), (2, 0.4)):
            value = 0.5 if name == second else share
            curve = [{"k": 1, "value": value / 2}, {"k": 2, "value": value}, {"k": 3, "value": 0.9}]
            file = places(tmp_path, seed).run(name) / "measures.json"
            file.parent.mkdir(parents=True)
            measured = {"n": 4, "num_samples": 3, "pass@k": curve, "seconds": float(seed)}
            file.write_text(json.dumps({"evaluations": [measured]}), encoding="utf-8")
    result = record_samples(plan, tmp_path)
    assert result[first]["pass@k"] == pytest.approx(0.3)
    assert result[first]["to_first"] == {"difference": 0.0, "ci95": [0.0, 0.0]}
    assert (result[second]["by_seed"], result[second]["sample_pass@1"]) == ([0.5, 0.5], 0.25)
    assert result[second]["to_first"]["difference"] == pytest.approx(0.2)
    assert result[second]["to_first"]["ci95"] == pytest.approx([0.2 - 12.7062 * 0.1, 0.2 + 12.7062 * 0.1], abs=1e-5)
    assert result[second]["seconds"] == 1.5


def test_training_by_hand() -> None:
    runs = [
        [
            {"frac_reward_zero_std": 0.5, "kl": 0.1, "entropy": 0.3, "grad_norm": 1.0, "eval/pass@1": 0.6},
            {"frac_reward_zero_std": 0.9, "kl": 0.4, "entropy": 0.2, "grad_norm": None, "eval/pass@1": 0.5},
        ],
        [{"frac_reward_zero_std": 0.7, "kl": 0.2, "entropy": 0.1, "eval/pass@1": 0.4}] * 2,
    ]
    result = training(runs)
    assert (result["mixed_first"], result["steps"]) == (pytest.approx(0.3), 2)
    assert result["mixed_curve"] == pytest.approx([0.4, 0.2])
    assert result["signs"] == pytest.approx({"kl": 0.3, "grad_norm": 0.5, "entropy": 0.15})
    assert result["fall"] == pytest.approx(0.05)
