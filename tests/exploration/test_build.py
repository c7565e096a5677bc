"""From a config to an exploration: kinds by name, classes of one's own by import path, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch

from dropout_grpo.cli.main import main
from dropout_grpo.config.exploration import KINDS, ExplorationConfig
from dropout_grpo.data.files import save_problems
from dropout_grpo.errors import UserError
from dropout_grpo.exploration import NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.exploration.build import build_exploration, options_of
from helpers.tiny_latent import read_metrics, tiny_latent, tiny_problems

HALVES = """
from dropout_grpo.exploration import HeldNoise

class Halves:
    def __init__(self, factor, sites=("mlp",), phases=("latent",)):
        self.factor, self.sites, self.phases = factor, sites, frozenset(phases)

    def noise(self, seeds, sites):
        draw = lambda seeds, streams: (seeds[:, None] ^ streams).remainder(2) * self.factor
        return HeldNoise(seeds, sites, draw, sites=self.sites, phases=self.phases)

class Quiet:
    pass

class Loud(Halves):
    def __init__(self):
        super().__init__(1.0, phases=("latents",))

class Broken:
    def __init__(self, sigma):
        raise ZeroDivisionError("sigma is 0")

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.py"
    path.write_text(HALVES, encoding="utf-8")
    return str(path)


def test_kinds_by_name() -> None:
    for kind, expected in (("shared_dropout", SharedDropout), ("per_step_dropout", PerStepDropout)):
        exploration = build_exploration(ExplorationConfig(kind=kind, p=0.25, sites=("mlp",), phases=("answer",)))
        assert type(exploration) is expected
        assert (exploration.p, exploration.sites, exploration.phases) == (0.25, ("mlp",), {"answer"})
    assert isinstance(build_exploration(ExplorationConfig(kind="none", p=0.25)), NoExploration)


def test_options_come_before_the_common_ones() -> None:
    exploration = build_exploration(ExplorationConfig(p=0.1, options={"p": 0.5, "sites": ["heads"]}))
    assert isinstance(exploration, SharedDropout)
    assert (exploration.p, exploration.sites) == (0.5, ("heads",))


def test_a_class_of_ones_own_by_its_path(own: str) -> None:
    config = ExplorationConfig(kind=f"{own}:Halves", sites=("heads", "attention_weights"), options={"factor": 2.0})
    exploration = build_exploration(config)
    model = tiny_latent()
    noise = model.noise(exploration, torch.tensor([1, 2]))
    assert noise is not None
    factors = noise.factors("latent", 0)
    assert set(factors) == {"layers.0.heads", "layers.1.heads"}
    assert set(factors["layers.0.heads"].unique().tolist()) == {0.0, 2.0}


def test_a_class_in_a_package_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the installed command looks too, which does not have the working folder among its paths."""
    (tmp_path / "my_noises").mkdir()
    (tmp_path / "my_noises" / "halves.py").write_text(HALVES, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = ExplorationConfig(kind="my_noises.halves:Halves", options={"factor": 2.0})
    assert options_of(build_exploration(config))["kind"] == "my_noises.halves:Halves"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("halves", {}, r"exploration\.kind halves: it must be one of shared_dropout, .*, or your own class"),
        ("shared_dropuot", {}, r"\(did you mean 'shared_dropout'\?\)"),
        ("{own}:Halfs", {}, r"kind '.*own\.py:Halfs': .*own\.py has no class 'Halfs'; it has: .*Halves"),
        ("nowhere.py:Halves", {}, r"no such file: nowhere\.py"),
        ("no_such_package.x:Halves", {}, r"importing no_such_package\.x failed: ModuleNotFoundError"),
        ("{own}:Halves", {"facter": 2}, r"has no option 'facter' \(did you mean 'factor'\?\); it takes factor, sites"),
        ("{own}:Halves", {}, r"with options {}: TypeError: .*'factor'"),
        ("{own}:Broken", {"sigma": 0}, r"with options {'sigma': 0}: ZeroDivisionError: sigma is 0"),
        ("{own}:Quiet", {}, r"Quiet must have phases and noise\(seeds, sites\)"),
        ("{own}:Loud", {}, r"its phase 'latents' is unknown; known are prompt, latent, answer"),
        ("dropout_grpo.exploration.seeds:mix", {}, r"it is not a class"),
        ("shared_dropout", {"sigma": 0.1}, r"shared_dropout has no option 'sigma'; it takes p, sites, phases"),
    ],
)
def test_what_is_refused_names_value_and_remedy(kind: str, options: dict[str, object], message: str, own: str) -> None:
    with pytest.raises(UserError, match=message):
        build_exploration(ExplorationConfig(kind=kind.replace("{own}", own), options=options))


def test_factors_of_an_unknown_site_are_refused() -> None:
    model = tiny_latent()
    no_such = pytest.raises(UserError, match=r"factors for 'layers\.9\.mlp', and there is no such site")
    with no_such, model.sites.multiplied({"layers.9.mlp": torch.ones(1, 1, 16)}):
        pass


def test_the_command_line_takes_a_class_of_ones_own(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dropout_grpo.report.page.inline_svg", lambda figure, **options: "")  # figures take long
    tiny_latent().save_pretrained(tmp_path / "checkpoint")
    save_problems(tmp_path / "problems.json", tiny_problems(6))
    words = f"grpo --checkpoint {tmp_path / 'checkpoint'} --run_dir {tmp_path / 'run'} --exploration.kind {own}:Halves "
    words += f"--data.grpo {tmp_path / 'problems.json'} --data.valid {tmp_path / 'problems.json'} --grpo.max_steps 1 "
    words += "--grpo.prompts_per_step 2 --grpo.num_generations 2"
    assert main([*words.split(), "--exploration.options", '{"factor": 2.0}']) == 0
    assert len(read_metrics(tmp_path / "run")) >= 1
    assert main([*words.split(), "--exploration.options", '{"faktor": 2.0}']) == 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_the_options_of_an_exploration_make_it_again(kind: str) -> None:
    exploration = build_exploration(
        ExplorationConfig(kind=kind, p=0.3, sites=("mlp", "heads"), phases=("answer", "latent"))
    )
    actual = options_of(exploration)
    again = build_exploration(ExplorationConfig(**json.loads(json.dumps(actual))))
    assert type(again) is type(exploration)
    assert options_of(again) == actual
    first, second = ({k: v for k, v in vars(each).items() if k[0] != "_"} for each in (exploration, again))
    assert first == second
    assert options_of(build_exploration(ExplorationConfig(kind="none"))) == {"kind": "none"}
