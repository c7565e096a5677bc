"""Run folders: never overwritten silently, resumed only with the same options, and readable at any time."""

import errno
import json
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from dropout_grpo.errors import UserError
from dropout_grpo.runs import provenance as provenance_module
from dropout_grpo.runs.files import write_json, write_text
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.provenance import provenance
from dropout_grpo.runs.record import Record


@dataclass(frozen=True)
class Inner:
    p: float = 0.1
    sites: tuple[str, ...] = ("residual",)


@dataclass(frozen=True)
class Config:
    run_dir: Path = Path("somewhere")
    resume: bool = False
    seed: int = 3
    exploration: Inner = field(default_factory=Inner)


def resolved(run: Path) -> dict[str, object]:
    return json.loads((run / "config.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_a_new_run_keeps_its_config_and_where_it_comes_from(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a" / "b", "grpo", Config())
    record = resolved(tmp_path / "a" / "b")
    assert record["command"] == "grpo"
    assert record["config"] == {
        "run_dir": "somewhere",
        "resume": False,
        "seed": 3,
        "exploration": {"p": 0.1, "sites": ["residual"]},
    }
    assert {"versions", "commit", "hardware"} <= record.keys()


def test_an_existing_run_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "grpo", Config()).log({"part": "grpo", "step": 1})
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(
        UserError,
        match=r"exists already: continue it with the same command and --resume true "
        r"\(in Python: resume_from_checkpoint=True\), or choose another folder",
    ):
        RunFolder(tmp_path / "run", "grpo", Config(seed=4))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_of_the_command_line_is_not_continued_in_python_nor_the_reverse(tmp_path: Path, resume: bool) -> None:
    """Fault: an advice to resume, which then failed, where a trainer's default folder held the run of a command."""
    RunFolder(tmp_path / "command", "grpo", Config()).log({"part": "grpo", "step": 1})
    with pytest.raises(UserError, match=r"of the command line, .* with run=\.\.\. or output_dir=\.\.\."):
        RunFolder(tmp_path / "command", "grpo", {"max_steps": 3}, resume=resume)
    RunFolder(tmp_path / "python", "grpo", {"max_steps": 3}).log({"part": "grpo", "step": 1})
    with pytest.raises(UserError, match=r"of a trainer in Python, .* another --run_dir"):
        RunFolder(tmp_path / "python", "grpo", Config(), resume=resume)


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("hello")
    with pytest.raises(UserError, match="is a file: choose another path"):
        RunFolder(tmp_path / "run", "grpo", Config())
    with pytest.raises(UserError, match=r"run/below cannot be created: Not a directory; choose another path"):
        RunFolder(tmp_path / "run" / "below", "grpo", Config())


def test_a_run_that_was_refused_before_it_did_anything_is_not_in_the_way(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "grpo", Config())
    (run.path / "data").mkdir()
    RunFolder(tmp_path / "run", "sft", Config(seed=4))
    assert resolved(run.path)["command"] == "sft"
    assert resolved(run.path)["config"]["seed"] == 4  # type: ignore[index]
    run.log({"part": "sft", "step": 1})
    with pytest.raises(UserError, match="exists already"):
        RunFolder(tmp_path / "run", "sft", Config(seed=4))
    (tmp_path / "mine" / "data").mkdir(parents=True)  # no run of ours: a folder called data may hold anything
    with pytest.raises(UserError, match="it is not a run folder, choose another"):
        RunFolder(tmp_path / "mine", "grpo", Config())


@pytest.mark.parametrize("text", ["", '{"command": "grpo"', "[]", '{"command": "grpo"}'])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    RunFolder(tmp_path / "run", "grpo", Config())
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        RunFolder(tmp_path / "run", "grpo", Config(), resume=True)


def test_resuming_with_the_same_options_is_allowed(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "grpo", Config())
    before = (tmp_path / "run" / "config.json").read_bytes()
    RunFolder(tmp_path / "run", "grpo", Config(run_dir=Path("elsewhere"), resume=True), resume=True)
    assert (tmp_path / "run" / "config.json").read_bytes() == before  # as it was started
    RunFolder(tmp_path / "new", "grpo", Config(), resume=True)  # nothing to continue: a new run
    assert resolved(tmp_path / "new")["command"] == "grpo"


def test_resuming_another_command_or_no_run_at_all_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "sft", Config())
    with pytest.raises(UserError, match="is a run of `sft`, not of `grpo`"):
        RunFolder(tmp_path / "run", "grpo", Config(), resume=True)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"holds files but no config\.json"):
        RunFolder(tmp_path / "photos", "grpo", Config(), resume=True)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


def test_forget_after_drops_one_parts_later_lines(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "grpo", Config())
    run.forget_after("grpo", 0)  # no metrics yet: nothing to do
    for part, step in (("sft", 1), ("sft", 9), ("grpo", 1), ("grpo", 2), ("grpo", 3), ("sft", 10)):
        run.log({"part": part, "step": step})
    run.forget_after("grpo", 2)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["part"], r["step"]) for r in lines] == [("sft", 1), ("sft", 9), ("grpo", 1), ("grpo", 2), ("sft", 10)]
    run.forget_after("grpo", 0)
    assert "grpo" not in (run.path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("cut", [1, 7, 30])
def test_half_a_line_of_a_killed_run_is_dropped(tmp_path: Path, cut: int) -> None:
    run = RunFolder(tmp_path / "run", "grpo", Config())
    for step in (1, 2, 3):
        run.log({"part": "grpo", "step": step, "reward": 0.5})
    file = run.path / "metrics.jsonl"
    file.write_text(file.read_text()[:-cut])  # the newline, a few characters, most of the line
    run.forget_after("grpo", 9)
    run.log({"part": "grpo", "step": 3, "reward": 0.5})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    write_json(file, {"n": 1})
    seen: list[str] = []

    def look(self: Path, target: Path) -> Path:
        seen.append(target.read_text(encoding="utf-8"))  # the moment before the move
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", look)
        with pytest.raises(OSError, match="killed"):
            write_json(file, {"n": 2})
    assert [json.loads(text) for text in [*seen, file.read_text(encoding="utf-8")]] == [{"n": 1}, {"n": 1}]
    write_text(file, "new\n")
    assert file.read_text(encoding="utf-8") == "new\n"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]  # no draft is left


def test_a_draft_that_does_not_fit_on_the_disk_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(self: Path, text: str, **options: Any) -> int:
        write(self, text[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    write_text(tmp_path / "report.html", "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            write_text(tmp_path / "report.html", "a new page")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.html": "old"}


def test_provenance_says_what_it_ran_on_and_not_where() -> None:
    actual = provenance()
    assert set(actual["versions"]) == {"python", "dropout-grpo", "torch", "transformers", "tokenizers", "safetensors"}
    assert actual["versions"]["torch"] == version("torch")
    assert actual["hardware"]["torch_threads"] == 1
    assert actual["hardware"]["cpu_count"] >= 1
    assert actual["commit"] is None or len(actual["commit"].removesuffix("-dirty")) >= 12
    text = json.dumps(actual)
    assert platform.node() not in text or not platform.node()
    assert str(Path.home()) not in text


def test_a_slow_git_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: at the end of a training, a traceback in place of its results."""

    def slow(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, 10)

    monkeypatch.setattr(provenance_module.subprocess, "run", slow)
    assert provenance()["commit"] is None


def test_data_that_changed_is_named(tmp_path: Path) -> None:
    config = {"data": {"train": "a.json", "valid": None}}
    begun = {"data.train": "1", "data.valid": "2"}
    RunFolder(tmp_path / "run", "sft", config, digests=begun)
    RunFolder(tmp_path / "run", "sft", config, resume=True, digests=begun)
    with pytest.raises(UserError, match=r"data\.train \(a\.json\), by its SHA-256, was 1 and is now 3"):
        RunFolder(tmp_path / "run", "sft", config, resume=True, digests={**begun, "data.train": "3"})
    with pytest.raises(UserError, match=r"data\.valid, by its"):
        RunFolder(tmp_path / "run", "sft", config, resume=True, digests={**begun, "data.valid": "3"})


def test_a_run_of_an_older_version_is_compared_by_what_it_recorded(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run", "sft", {"seed": 3, "exploration": {"options": {}}})
    file = tmp_path / "run" / "config.json"
    old = {name: value for name, value in resolved(tmp_path / "run").items() if name not in ("id", "digests")}
    file.write_text(json.dumps({**old, "data": {"train": "1"}}))
    now = {"seed": 3, "exploration": {"options": {}}, "a_new_option": 5}
    assert RunFolder(tmp_path / "run", "sft", now, resume=True, digests={"data.train": "1", "model": "5"}).id is None
    with pytest.raises(UserError, match=r"data\.train, by its SHA-256, was 1 and is now 3"):
        RunFolder(tmp_path / "run", "sft", now, resume=True, digests={"data.train": "3"})
    with pytest.raises(UserError, match=r"exploration\.options\.sigma was None and is now 0\.3"):
        RunFolder(tmp_path / "run", "sft", {**now, "exploration": {"options": {"sigma": 0.3}}}, resume=True)


def test_names_that_the_user_makes_are_differences(tmp_path: Path) -> None:
    """Fault: variables of the chat template could be added on resuming."""
    RunFolder(tmp_path / "run", "eval", {"data": {"chat_template_kwargs": None}})
    now = {"data": {"chat_template_kwargs": {"enable_thinking": False}}}
    with pytest.raises(UserError, match=r"data\.chat_template_kwargs\.enable_thinking was None and is now False"):
        RunFolder(tmp_path / "run", "eval", now, resume=True)


def test_the_commit_is_that_of_this_package_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: installed inside a user's repository, it was the user's commit."""
    package = tmp_path / "environment" / "runs"
    package.mkdir(parents=True)
    (package / "provenance.py").touch()
    for words in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a", "commit", "-q", "--allow-empty", "-ma"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(provenance_module, "__file__", str(package / "provenance.py"))
    assert provenance()["commit"] is None
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    assert provenance()["commit"].endswith("-dirty")


def test_only_the_length_of_a_run_may_grow_and_not_that_of_a_demo(tmp_path: Path) -> None:
    def resumed(command: str, steps: int) -> dict[str, Any]:
        folder = tmp_path / command
        RunFolder(folder, command, {"grpo": {"max_steps": steps}}, resume=True).record_length()
        return dict(resolved(folder))

    first = resumed("grpo", 4)
    assert resumed("grpo", 6) == {**first, "config": {"grpo": {"max_steps": 6}}}  # the report shows what was trained
    with pytest.raises(UserError, match=r"grpo\.max_steps was 6 and is now 5"):
        resumed("grpo", 5)
    resumed("demo", 4)
    with pytest.raises(UserError, match=r"grpo\.max_steps was 4 and is now 6"):
        resumed("demo", 6)


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_killed_while_it_wrote_its_config_is_no_dead_end(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json.part").write_text('{"comm')
    RunFolder(tmp_path / "run", "sft", Config(), resume=resume)
    assert resolved(tmp_path / "run")["command"] == "sft"
    assert not (tmp_path / "run" / "config.json.part").exists()


def test_what_a_kill_left_behind_is_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "sft", Config())
    for name in ("sft-step-1", "sft-step-1.old", "coconut.old", "sft-step-2.part"):
        run.checkpoint(name).mkdir(parents=True)
        (run.checkpoint(name) / "x").write_text(name)
    (run.path / "results.json.part").write_text("{")
    RunFolder(tmp_path / "run", "sft", Config(), resume=True)
    lines = {path.name: (path / "x").read_text() for path in (run.path / "checkpoints").iterdir()}
    assert lines == {"sft-step-1": "sft-step-1", "coconut": "coconut.old"}
    assert not (run.path / "results.json.part").exists()


def test_a_folder_removed_while_the_run_writes_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "sft", Config())
    shutil.rmtree(run.path)
    with pytest.raises(UserError, match=r"cannot write .*run/metrics\.jsonl: No such file.*moved or removed"):
        run.log({"part": "sft", "step": 1})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", "sft", Config())
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl: No space left on device\. Remedy: free some space; .*resume"):
        run.log({"part": "sft", "step": 1})


def test_a_run_that_recorded_the_old_path_of_a_reward_resumes() -> None:
    old = Record(options={"reward_funcs": ["dropout_grpo.problems.rewards:exact_answer", "my.py:f"]})
    now = Record(options={"reward_funcs": ("dropout_grpo.data.rewards:exact_answer", "my.py:f")})
    assert not old.require_same(now, "run")
    with pytest.raises(UserError, match="reward_funcs was"):
        old.require_same(Record(options={"reward_funcs": ("dropout_grpo.data.rewards:shaped", "my.py:f")}), "run")
