"""``dropout-grpo eval``: what it leaves in the run folder and prints, what it refuses, how it goes on after a stop."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from dropout_grpo.cli.main import main
from dropout_grpo.commands.shared import measure as command
from dropout_grpo.commands.shared.models import exploration_for
from dropout_grpo.config.exploration import ExplorationConfig
from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.evaluation import answering
from dropout_grpo.evaluation.answering import EvaluationConfig, answer_problems
from dropout_grpo.evaluation.measures import measure_answers, summarize
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.exploration.build import options_of
from dropout_grpo.exploration.gaussian import Gaussian
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts
from helpers.eval_run import MASKS, OPTIONS, SEED, evaluate, problems, save_checkpoint, save_files
from helpers.tiny_latent import tiny_latent

SPEED = ("seconds", "problems_per_second")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def read(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text(encoding="utf-8"))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


def without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in SPEED}


def test_the_files_of_a_run_hold_what_was_measured(checkpoint: Path, tmp_path: Path) -> None:
    files, run = save_files(tmp_path), tmp_path / "run"
    assert evaluate(checkpoint, files, run) == 0
    assert {path.name for path in run.iterdir()} == {
        "config.json", "measures.json", "results.json", "samples.jsonl", "thoughts.jsonl", "report.html", "lock",
    }  # fmt: skip
    config = read(run, "config.json")
    assert (config["command"], config["config"]["checkpoint"]) == ("eval", str(checkpoint))
    assert config["config"]["files"] == [str(file) for file in files]
    assert config["config"]["evaluation"]["num_samples"] == 3

    model = LatentModel.from_pretrained(checkpoint)
    measured, summed = read(run, "measures.json")["evaluations"], read(run, "results.json")["evaluations"]
    said = lines(run)
    for i, file in enumerate(files):
        answered = answer_problems(
            model,
            load_problems(file, require_steps=False),
            EvaluationConfig(num_samples=3, max_new_tokens=5, batch_size=6),
            exploration=SharedDropout(0.4, phases=("latent", "answer")),
        )
        assert without_times(measured[i]) == {"file": str(file), **measure_answers(answered)}
        assert without_times(summed[i]) == {"file": str(file), **summarize(answered)}
        assert len(answered) / measured[i]["problems_per_second"] == pytest.approx(measured[i]["seconds"], abs=0.001)
        assert [entry["k"] for entry in measured[i]["pass@k"]] == [1, 2, 3]
        mine = [line for line in said if line["file"] == str(file)]
        assert [line["id"] for line in mine] == list(range(len(answered)))
        for line, a in zip(mine, answered, strict=True):
            assert (line["question"], line["answer"]) == (a.problem.question, a.problem.answer)
            assert (line["plain"], line["samples"], line["average"]) == (a.plain, list(a.samples), a.average)
            assert (line["plain_correct"], line["samples_correct"]) == (a.plain_correct, a.samples_correct())
            assert (line["plain_length"], line["samples_length"]) == (a.plain_length, list(a.sample_lengths))
    assert len(said) == 8
    assert [line["plain_correct"] for line in said] == [True, False, True, False, True, False, False, True]
    for name in ("samples_correct", "samples_length"):
        assert len({value for line in said for value in line[name]}) > 1, f"{name}: all alike"


def test_json_is_one_object_and_all_else_goes_to_standard_error(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (file, _), run = save_files(tmp_path), tmp_path / "run"
    assert evaluate(checkpoint, [file], run, *OPTIONS, "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == read(run, "results.json")
    assert out.count("\n") == 1
    assert f"{file}: pass@1 60.0 % [23.1, 88.2], " in err  # Wilson's at 3 of 5
    assert "n 5, " in err
    assert evaluate(checkpoint, [file], tmp_path / "other") == 0
    out, err = capfd.readouterr()
    assert f"{file}: pass@1 60.0 % [23.1, 88.2], " in out
    assert "pass@1" not in err


def test_batches_are_halved_until_they_fit_in_memory(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fault: only a training had a plan, so what measures it was killed by the kernel."""
    (file, _), think, asked = save_files(tmp_path), answering.think_in_groups, list[int]()

    def watched(model: LatentModel, prompts: Prompts, seeds: Tensor, *args: Any, **options: Any) -> Any:
        asked.append(seeds.numel())
        return think(model, prompts, seeds, *args, **options)

    monkeypatch.setattr(answering, "think_in_groups", watched)
    monkeypatch.setattr("dropout_grpo.evaluation.validation.available_memory", lambda: 0)
    assert evaluate(checkpoint, [file], tmp_path / "run") == 0
    assert "memory: evaluation.batch_size 3 (was 6, to fit)" in capfd.readouterr().err  # one problem with 3 masks
    assert asked == [3] * 5


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "--files is empty"),
        (["a.json", "b.json", "a.json"], "a.json twice"),
        (["a.json", "c.json"], "c.json"),
        (["long.json"], "has 62 tokens and needs"),
    ],
)
def test_bad_files_leave_no_folder(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], names: list[str], message: str
) -> None:
    save_files(tmp_path)
    (tmp_path / "long.json").write_text(json.dumps([{"question": "? " * 60, "answer": "1"}]))
    assert evaluate(checkpoint, [tmp_path / name for name in names], tmp_path / "run") == 2
    told = capfd.readouterr().err
    assert message in told
    assert "question" not in told or f"{tmp_path / 'long.json'}: question 1" in told  # of several files, which
    assert not (tmp_path / "run").exists()


def stopped(checkpoint: Path, files: list[Path], run: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An evaluation that is killed in its second file; then the titles of what is measured from now on."""
    measure, titles = command.measure, list[str]()

    def killed(*args: Any) -> Any:
        if args[-1] == files[1].name:
            raise KeyboardInterrupt
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(command, "measure", killed)
        assert evaluate(checkpoint, files, run) == 130

    def watched(*args: Any) -> Any:
        titles.append(args[-1])
        return measure(*args)

    monkeypatch.setattr(command, "measure", watched)
    return titles


def test_a_stopped_evaluation_goes_on_with_the_file_it_was_stopped_in(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = save_files(tmp_path)
    evaluate(checkpoint, files, tmp_path / "whole")
    run = tmp_path / "run"
    titles = stopped(checkpoint, files, run, monkeypatch)
    assert not (run / "results.json").exists()
    assert {line["file"] for line in lines(run)} == {str(files[0])}

    first = read(run, "measures.json")["evaluations"]
    assert evaluate(checkpoint, files, run, *OPTIONS, "--resume", "true") == 0
    assert titles == ["b.json"]
    assert read(run, "measures.json")["evaluations"][:1] == first  # seconds and all
    assert lines(run) == lines(tmp_path / "whole")
    for name in ("measures.json", "results.json"):
        ours, theirs = (read(folder, name)["evaluations"] for folder in (run, tmp_path / "whole"))
        assert [without_times(record) for record in ours] == [without_times(record) for record in theirs]

    assert evaluate(checkpoint, files, run, *OPTIONS, "--resume", "true") == 0  # nothing is left to do
    assert titles == ["b.json"]


def test_the_plain_network_alone(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (file, _), run = save_files(tmp_path), tmp_path / "run"
    assert evaluate(checkpoint, [file], run, "--evaluation.num_samples", "0", *MASKS) == 0
    (measures,) = read(run, "measures.json")["evaluations"]
    assert "pass@k" not in measures
    assert lines(run)[0]["samples"] == []
    assert "% of the answers cut off at max_new_tokens" in capfd.readouterr().out
    assert "pass@k and maj@k" not in (run / "report.html").read_text(encoding="utf-8")


def test_rounded_answers_count_within_the_tolerance(checkpoint: Path, tmp_path: Path) -> None:
    """The model says 9 to the first problem; 9.4 is right within 0.5, 9.6 is not."""
    rounded = [replace(problems()[0], answer=answer) for answer in ("9", "9.4", "9.6")]
    save_problems(tmp_path / "a.json", rounded)
    for run, tolerance, expected in (("exact", "0", 1), ("near", "0.5", 2)):
        options = (*OPTIONS, "--evaluation.tolerance", tolerance)
        assert evaluate(checkpoint, [tmp_path / "a.json"], tmp_path / run, *options) == 0
        assert [line["plain_correct"] for line in lines(tmp_path / run)].count(True) == expected
        (results,) = read(tmp_path / run, "results.json")["evaluations"]
        assert results["pass@1"] == expected / 3
        for line in lines(tmp_path / run):
            judged = dict(zip(line["samples"], line["samples_correct"], strict=True))
            assert judged.get(line["plain"], line["plain_correct"]) == line["plain_correct"]


def test_a_file_that_shares_problems_with_the_validation_file_is_warned_of(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = save_files(tmp_path)
    save_problems(tmp_path / "valid.json", problems()[3:6])
    valid = ("--data.valid", str(tmp_path / "valid.json"))
    assert evaluate(checkpoint, [first, second], tmp_path / "run", *OPTIONS, *valid) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"warning: 2 of 5 questions of {first} are also in data.valid" in said
    assert f"warning: 1 of 3 questions of {second} are also in data.valid" in said
    assert evaluate(checkpoint, [first], tmp_path / "gone", *OPTIONS, "--data.valid", "gone.json") == 0
    assert "warning" not in capfd.readouterr().err
    (tmp_path / "valid.json").write_text('[{"problem": "1 + 1 ?", "answer": "2"}]', encoding="utf-8")
    assert evaluate(checkpoint, [first], tmp_path / "other", *OPTIONS, *valid) == 0  # fault: exit 2
    assert "warning: data.valid is not compared with the files: " in " ".join(capfd.readouterr().err.split())


def test_a_checkpoint_is_measured_under_the_masks_that_it_was_trained_with(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: p was 0.1 whatever the checkpoint was trained with."""
    (file, _), plain = save_files(tmp_path), OPTIONS[: -len(MASKS)]
    model = tiny_latent(seed=SEED)
    model.exploration = options_of(SharedDropout(0.4, phases=("latent", "answer")))
    model.save_pretrained(tmp_path / "trained")
    assert LatentModel.from_pretrained(tmp_path / "trained").exploration == model.exploration

    def measured(folder: Path, run: str, *options: str) -> list[Any]:
        assert evaluate(folder, [file], tmp_path / run, *plain, *options) == 0
        return [line["samples"] for line in lines(tmp_path / run)]

    given = measured(checkpoint, "a", *MASKS)
    assert measured(tmp_path / "trained", "b") == given
    assert read(tmp_path / "b", "config.json")["config"]["exploration"]["p"] == 0.4
    assert "p 0.4; sites residual; phases answer, latent (as the checkpoint was trained)" in capsys.readouterr().err
    default = measured(checkpoint, "c")
    assert default != given
    assert "p 0.1; sites residual; phases latent (the default; the checkpoint records none)" in capsys.readouterr().err
    assert measured(tmp_path / "trained", "d", "--exploration.p", "0.1", "--exploration.phases", "[latent]") == default
    assert "(as the checkpoint was trained, but for p, phases)" in capsys.readouterr().err
    assert (
        main(["ask", str(tmp_path / "trained"), problems()[0].question, "--masks", "3", "--max_new_tokens", "5"]) == 0
    )
    assert "masks: shared_dropout, p 0.4;" in capsys.readouterr().err


def test_p_of_a_checkpoint_trained_with_other_noise(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_latent()
    model.exploration = options_of(Gaussian(sigma=0.2))
    exploration_for(model, {"p": 0.5})
    assert "exploration.p=0.5: no effect; it needs kind shared_dropout or per_step_dropout" in capsys.readouterr().err
    exploration_for(model, {})
    assert "no effect" not in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--latent_steps", "0"], ["--exploration.p", "0"]])
def test_ask_has_words_of_its_own_for_masks_that_change_nothing(
    checkpoint: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: it told to set num_samples and a temperature, which are options of `eval`."""
    assert main(["ask", str(checkpoint), problems()[0].question, "--max_new_tokens", "5", *options]) == 2
    said = capsys.readouterr().err
    assert "no mask changes an answer of" in said
    assert "use --masks 0" in said
    assert "num_samples" not in said


def test_a_checkpoint_cannot_name_code_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (file, _), folder = save_files(tmp_path), save_checkpoint(tmp_path / "theirs")
    config = read(folder, "latent_config.json")
    (tmp_path / "noise.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    for recorded, message in (
        ({"kind": "noise.py:Noise"}, "trained with exploration.kind 'noise.py:Noise', which is not of this package"),
        ({"kind": "svp"}, "in a checkout of its repository, give evidence.rivals.svp:SVP"),
        ({"kind": "shared_dropout", "q": 1}, "exploration is damaged"),
        ({"kind": "shared_dropout", "p": 7}, "exploration.p=7"),
        ([], "exploration=[] must be an object"),
    ):
        (folder / "latent_config.json").write_text(json.dumps({**config, "exploration": recorded}))
        assert evaluate(folder, [file], tmp_path / "run", "--bf16", "false") == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("told", ["noise.py:Noise", "lib/noise.py:Noise"])
def test_noise_of_ones_own_is_used_with_the_recorded_options_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], told: str
) -> None:
    """Faults: it was refused with the remedy that had been followed; from another folder its options were lost."""
    monkeypatch.chdir(tmp_path)
    model = tiny_latent()
    model.exploration = {"kind": "noise.py:Noise", "sites": ["mlp"], "phases": ["answer"], "options": {"scale": 2}}
    config = exploration_for(model, {"kind": told})
    assert (config.kind, config.sites, config.phases) == (told, ["mlp"], ["answer"])
    assert config.options == {"scale": 2}
    assert "(as the checkpoint was trained)" in " ".join(capsys.readouterr().err.split())
    other = exploration_for(model, {"kind": "other.py:Noise"})
    assert (other.sites, other.options) == (ExplorationConfig().sites, {})


def test_problems_or_a_model_replaced_under_their_names_are_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: the files measured before a stop were of one model, those after it of another."""
    files, folder = save_files(tmp_path), save_checkpoint(tmp_path / "model")
    assert evaluate(folder, files, tmp_path / "run") == 0
    save_checkpoint(folder, seed=SEED + 1)
    assert evaluate(folder, files, tmp_path / "run", *OPTIONS, "--resume", "true") == 2
    assert re.search(r"the content of checkpoint \(\S+\), by its SHA-256,", " ".join(capsys.readouterr().err.split()))
    save_checkpoint(folder)
    save_problems(files[0], problems()[4::-1])
    assert evaluate(folder, files, tmp_path / "run", *OPTIONS, "--resume", "true") == 2
    assert "a.json has changed since" in capsys.readouterr().err


DAMAGES: dict[str, Any] = {
    "empty": b"",
    "no UTF-8": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "digits": b'{"evaluations": [{"n": ' + b"9" * 5_000 + b"}]}",
    "null": b'{"evaluations": [null]}',
    "a number": b'{"evaluations": 7}',
    "no file": lambda text: text.replace('"file"', '"folder"').encode(),
    "another file": lambda text: text.replace("a.json", "z.json").encode(),
    "n of another type": lambda text: text.replace('"n": 5', '"n": "5"').encode(),
    "many samples": lambda text: text.replace('"num_samples": 3', '"num_samples": 999999999999').encode(),
    "no value": lambda text: text.replace('"value"', '"worth"').encode(),
    "value of another type": lambda text: re.sub(r'"value": [\d.]+', '"value": "much"', text).encode(),
    "no interval": lambda text: re.sub(r'"ci95": \[[^]]*\]', '"ci95": null', text).encode(),
    "no curve": lambda text: re.sub(r'"pass@k": \[', '"pass@k": [], "was": [', text).encode(),
    "half of a character": lambda text: text.replace("a.json", "\\ud800.json").encode(),
}


def test_damaged_measures_end_in_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fault: 12 of 21 kinds of damage were tracebacks."""
    files, run = save_files(tmp_path), tmp_path / "run"
    stopped(checkpoint, files, run, monkeypatch)
    text = (run / "measures.json").read_text()
    capfd.readouterr()
    for kind, damage in DAMAGES.items():
        content = damage if isinstance(damage, bytes) else damage(text)
        assert content != text.encode(), kind
        (run / "measures.json").write_bytes(content)
        assert evaluate(checkpoint, files, run, *OPTIONS, "--resume", "true") == 2, kind
        said = capfd.readouterr().err
        assert "measures.json" in said, kind
        assert "Traceback" not in said, kind
        assert (run / "measures.json").read_bytes() == content, kind
