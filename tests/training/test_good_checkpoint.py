"""A resumed run continues from the newest good checkpoint, whatever the state of the others."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.training import checkpoint as checkpoint_module
from dropout_grpo.training.checkpoint import save_checkpoint
from dropout_grpo.training.optimizer import NonFinite, build_optimizer, load_optimizer_tensors
from helpers.grpo_run import CONFIG as GRPO, Stopped, alternating, steps_of
from helpers.tiny_latent import assert_same_weights, tiny_latent, tiny_problems, weights_of

SFT = CurriculumConfig(
    c_thought=2, max_latent_stage=1, cot_epochs=2, epochs_per_stage=1, final_epochs=1, batch_size=2, save_steps=1
)
STEPS = {"sft": 8, "grpo": 6}  # 2 updates an epoch


def trainer(kind: str, run: Path, model: LatentModel, *, resume: bool = False, **options: Any) -> Any:
    folder = RunFolder(run, kind, {}, resume=resume)
    if kind == "sft":
        return CurriculumTrainer(model, SFT, tiny_problems(4, steps=2), folder, seed=0, **options)
    config = replace(
        GRPO,
        max_steps=6,
        save_steps=1,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        num_iterations=2,
        weight_decay=0.01,
        beta=0.1,  # so that a checkpoint has its reference
    )
    return GRPOTrainer(
        model, alternating, config, tiny_problems(5), exploration=SharedDropout(0.2), run=folder, **options
    )


def run_until(kind: str, run: Path, step: int) -> None:
    """A run that dies in the middle of the step after ``step``."""
    made = trainer(kind, run, tiny_latent())
    owner = made if kind == "sft" else made.update
    work, calls = owner.backward, iter(range(1, 100))

    def backward(*args: Any, **options: Any) -> Any:
        if next(calls) > (step if kind == "sft" else 2 * step):  # GRPO makes two updates a step
            raise Stopped
        return work(*args, **options)

    owner.backward = backward
    with pytest.raises(Stopped):
        made.train()


@pytest.fixture(scope="module", params=["sft", "grpo"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any, Path]:
    """Of each trainer: an uninterrupted run, its weights, and a run that died after step 4."""
    kind, folder = request.param, tmp_path_factory.mktemp(request.param)
    model = tiny_latent()
    trainer(kind, folder / "whole", model).train()
    run_until(kind, folder / "died", 4)
    return kind, folder / "whole", weights_of(model), folder / "died"


def test_the_trainer_loads_the_weights_of_the_run(reference: Any, tmp_path: Path) -> None:
    """Fault: the curriculum's trainer took the weights of the model that it was given, whatever they were."""
    kind, whole, weights, died = reference
    run = shutil.copytree(died, tmp_path / "run")
    model = tiny_latent(seed=5 if kind == "sft" else 0)
    trainer(kind, run, model, resume=True).train(resume_from_checkpoint=True)
    assert steps_of(run) == steps_of(whole)
    assert_same_weights(weights_of(model), weights)


def test_two_checkpoints_are_kept(reference: Any) -> None:
    kind, whole, _, died = reference
    for run, newest in ((whole, STEPS[kind]), (died, 4)):
        kept = {path.name for path in (run / "checkpoints").iterdir()}
        assert kept == {f"{kind}-step-{newest - 1}", f"{kind}-step-{newest}"}


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change(file: Path, edit: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(edit(load_file(file)), file, metadata={"format": "pt"})


def renumber(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{int(name.split('.')[0]) + 1}.{name.split('.')[1]}": tensor for name, tensor in tensors.items()}


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no state": lambda c: (c / "trainer_state.json").unlink(),
    "null state": lambda c: (c / "trainer_state.json").write_text("null"),
    "empty state": lambda c: (c / "trainer_state.json").write_text("{}"),
    "broken state": lambda c: (c / "trainer_state.json").write_text('{"step": '),
    "deep manifest": lambda c: (c / "manifest.json").write_text("[" * 100_000),
    "no manifest": lambda c: (c / "manifest.json").unlink(),
    "broken manifest": lambda c: (c / "manifest.json").write_bytes(b"\xff\xfe{"),
    "manifest is a list": lambda c: (c / "manifest.json").write_text("[]"),
    "cut weights": lambda c: cut(c / "model.safetensors"),
    "empty weights": lambda c: (c / "model.safetensors").write_bytes(b""),
    "no weights": lambda c: (c / "model.safetensors").unlink(),
    "extra tensor": lambda c: change(c / "model.safetensors", lambda t: {**t, "more": torch.zeros(1)}),
    "other dtype": lambda c: change(c / "model.safetensors", lambda t: {k: v.half() for k, v in t.items()}),
    "one bit": lambda c: (c / "model.safetensors").write_bytes(
        (c / "model.safetensors").read_bytes()[:-1] + bytes([(c / "model.safetensors").read_bytes()[-1] ^ 1])
    ),
    "cut optimiser": lambda c: cut(c / "optimizer.safetensors"),
    "empty optimiser": lambda c: (c / "optimizer.safetensors").write_bytes(b""),
    "no optimiser": lambda c: (c / "optimizer.safetensors").unlink(),
    "optimiser without tensors": lambda c: change(c / "optimizer.safetensors", lambda t: {}),
    "renumbered": lambda c: change(c / "optimizer.safetensors", renumber),
    "other shapes": lambda c: change(c / "optimizer.safetensors", lambda t: {k: v[None] for k, v in t.items()}),
    "integers": lambda c: change(c / "optimizer.safetensors", lambda t: {k: v.int() for k, v in t.items()}),
    "half moved": lambda c: [file.unlink() for file in list(c.iterdir())[::2] if file.is_file()],
    "empty folder": lambda c: [shutil.rmtree(c), c.mkdir()],
    "a file": lambda c: [shutil.rmtree(c), c.write_text("")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    reference: Any, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, whole, weights, died = reference
    if kind == "grpo" and damage not in ("cut weights", "no optimiser"):
        return  # the same code
    run = shutil.copytree(died, tmp_path / "run")
    newest = run / "checkpoints" / f"{kind}-step-4"
    DAMAGES[damage](newest)
    model = tiny_latent()
    trainer(kind, run, model, resume=True).train(resume_from_checkpoint=True)
    said = capsys.readouterr().err
    assert f"{kind}-step-4" in said
    assert "the checkpoint is damaged and is not used" in said
    assert f"continuing from {run}/checkpoints/{kind}-step-3" in said
    assert steps_of(run) == steps_of(whole)
    assert_same_weights(weights_of(model), weights)
    assert newest.with_name(f"{kind}-step-4.damaged").exists()


def test_without_a_good_checkpoint_nothing_is_touched(reference: Any, tmp_path: Path) -> None:
    kind, _, _, died = reference
    run = shutil.copytree(died, tmp_path / "run")
    for step in (3, 4):
        (run / "checkpoints" / f"{kind}-step-{step}" / "trainer_state.json").write_text("null")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    model = tiny_latent(seed=3)
    with pytest.raises(UserError, match=rf"no checkpoint of {kind} in .*step-4/trainer_state.json has changed.*step-3"):
        trainer(kind, run, model, resume=True).train(resume_from_checkpoint=True)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    assert_same_weights(weights_of(model), weights_of(tiny_latent(seed=3)))


def test_a_checkpoint_of_another_model_is_refused(reference: Any, tmp_path: Path) -> None:
    kind, _, _, died = reference
    run = shutil.copytree(died, tmp_path / "run")
    with pytest.raises(
        UserError, match=r"step-4(: the content of model, by its SHA-256, was| does not fit the model that is trained)"
    ):
        trainer(kind, run, tiny_latent(n_layer=1), resume=True).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "text",
    [
        b'{"part": "sft", "step": 1, "why": "\\ud800"}\n',
        b'{"part": "sft", "step": 1}\n\xff\xfe\n',
        b'{"part": "sft"\n{}\n',
        b"null\n",
    ],
)
def test_damaged_metrics_are_named(reference: Any, text: bytes, tmp_path: Path) -> None:
    kind, _, _, died = reference
    run = shutil.copytree(died, tmp_path / "run")
    (run / "metrics.jsonl").write_bytes(text)
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        trainer(kind, run, tiny_latent(), resume=True).train(resume_from_checkpoint=True)
    assert (run / "metrics.jsonl").read_bytes() == text


@pytest.mark.parametrize("stop", ["model", "files", "move"])
def test_killed_while_it_saves(reference: Any, stop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, whole, weights, died = reference
    run = shutil.copytree(died, tmp_path / "run")

    def killed(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    target = {"model": "save_latent_model", "files": "_manifest", "move": None}[stop]
    with monkeypatch.context() as patch:
        if target is None:
            patch.setattr(Path, "rename", killed)
        else:
            good, first = getattr(checkpoint_module, target), run / "checkpoints" / f"{kind}-step-5.part"
            patch.setattr(checkpoint_module, target, lambda *a, **o: killed() if first in a else good(*a, **o))
        with pytest.raises(KeyboardInterrupt):
            trainer(kind, run, tiny_latent(), resume=True).train(resume_from_checkpoint=True)
    assert [line["step"] for line in steps_of(run)] == [1, 2, 3, 4, 5]
    model = tiny_latent()
    trainer(kind, run, model, resume=True).train(resume_from_checkpoint=True)
    assert steps_of(run) == steps_of(whole)
    assert_same_weights(weights_of(model), weights)
    assert not list((run / "checkpoints").glob("*.part"))


def test_all_checkpoints_are_kept_if_asked_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "sft", {})
    config = replace(SFT, save_total_limit=None)
    CurriculumTrainer(tiny_latent(), config, tiny_problems(4, steps=2), folder, seed=0).train()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 8
    with pytest.raises(UserError, match="save_total_limit"):
        replace(SFT, save_total_limit=0)
    with pytest.raises(UserError, match="save_total_limit"):
        replace(GRPO, save_total_limit=0)


def test_a_size_that_memory_forced_is_that_of_the_resumed_run(reference: Any, tmp_path: Path) -> None:
    kind, _, _, died = reference
    run = shutil.copytree(died, tmp_path / "run")
    saved = run / "checkpoints" / f"{kind}-step-4"
    state = json.loads((saved / "trainer_state.json").read_text())
    state["batch_sizes"]["micro_batch_size"] = 1
    (saved / "trainer_state.json").write_text(json.dumps(state))
    (saved / "manifest.json").write_text(json.dumps(checkpoint_module._manifest(saved)))
    trainer(kind, run, tiny_latent(), resume=True).train(resume_from_checkpoint=True)
    states = [json.loads((c / "trainer_state.json").read_text()) for c in (run / "checkpoints").iterdir()]
    assert [state["batch_sizes"]["micro_batch_size"] for state in states] == [1, 1]


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_model_that_is_not_finite_is_not_called_good(kind: str, tmp_path: Path) -> None:
    model = tiny_latent()
    with torch.no_grad():
        model.model.get_input_embeddings().weight[5] = torch.nan
    with pytest.raises(NonFinite, match=r"last good checkpoint is none: .*wte\.weight of the model it started from"):
        trainer(kind, tmp_path, model).train()


def test_the_state_of_another_optimiser_is_refused() -> None:
    model = tiny_latent()
    optimizer = build_optimizer(model.parameters(), learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.999))
    for tensors in (
        {"999.exp_avg": torch.zeros(1)},
        {"exp_avg": torch.zeros(1)},
        {"0.exp_avg": torch.zeros(1)},
        {"0.step": torch.zeros((), dtype=torch.int64)},
    ):
        with pytest.raises(UserError, match=r"does not belong to the state|not floating point of shape"):
            load_optimizer_tensors(optimizer, tensors.items())


def test_what_the_system_refuses_to_write_is_named_and_the_old_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path / "kept", tiny_latent())
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(*args: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    def full_in_rust(*args: Any, **options: Any) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    for error in (full, full_in_rust):
        monkeypatch.setattr(checkpoint_module, "save_latent_model", error)
        with pytest.raises(UserError, match=r"cannot write .*kept: No space left on device\. Remedy: free some space"):
            save_checkpoint(tmp_path / "kept", tiny_latent(seed=1))
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
