"""Resuming from Python: what a run was made from is compared, a named checkpoint is loaded, and a run can grow."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.import_path import load_object
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.runs.read import read_metrics
from dropout_grpo.runs.record import weights_digest
from helpers.grpo_run import CONFIG, alternating, constant, steps_of
from helpers.tiny_latent import assert_same_weights, tiny_latent, tiny_problems, weights_of

GRPO = replace(CONFIG, max_steps=4, save_steps=1, save_total_limit=None, lr_scheduler_type="constant")
SFT = CurriculumConfig(c_thought=1, max_latent_stage=1, cot_epochs=2, epochs_per_stage=1, final_epochs=1, batch_size=2)


def grpo(run: Path | RunFolder, **changed: Any) -> GRPOTrainer:
    given: dict[str, Any] = {"exploration": SharedDropout(0.2), "seed": 2, **changed}
    problems, config = given.pop("problems", tiny_problems(5)), given.pop("config", GRPO)
    model, rewards = given.pop("model", None) or tiny_latent(), given.pop("rewards", alternating)
    return GRPOTrainer(model, rewards, config, problems, run=run, **given)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, with a checkpoint of each."""
    run = tmp_path_factory.mktemp("begun") / "run"
    grpo(run).train()
    return run


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


CHANGES: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "seed": (lambda: {"seed": 3}, r"seed was 2 and is now 3"),
    "p": (lambda: {"exploration": SharedDropout(0.3)}, r"exploration\.p was 0\.2 and is now 0\.3"),
    "phases": (
        lambda: {"exploration": SharedDropout(0.2, phases=("latent", "answer"))},
        r"exploration\.phases was \['latent'\] and is now \['answer', 'latent'\]",
    ),
    "option": (lambda: {"config": replace(GRPO, learning_rate=0.5)}, r"learning_rate was 0\.01 and is now 0\.5"),
    "reward": (lambda: {"rewards": constant}, r"reward_funcs was \['alternating'\] and is now \['constant'\]"),
    "data": (lambda: {"problems": tiny_problems(6)}, r"train_dataset, by its SHA-256, was \w+ and is now \w+"),
    "model": (lambda: {"model": tiny_latent(seed=1)}, r"model, by its SHA-256, was \w+ and is now \w+"),
    "thoughts": (lambda: {"model": tiny_latent(latent_steps=3)}, r"latent_steps was 2 and is now 3"),
    "precision": (lambda: {"bf16": True}, r"bf16 was False and is now True"),
    "dtype": (lambda: {"model": tiny_latent(dtype=torch.float64)}, r"dtype was 'float32' and is now 'float64'"),
    "shorter": (lambda: {"config": replace(GRPO, max_steps=3)}, r"max_steps was 4 and is now 3"),
}


@pytest.mark.parametrize(
    ("change", "opened"), [*((change, True) for change in CHANGES), ("seed", False), ("data", False)]
)
def test_what_a_run_was_made_from_is_compared(run: Path, change: str, opened: bool) -> None:
    """Also where the caller has opened the run folder, with options of its own."""
    make, message = CHANGES[change]
    if opened:
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "config": {}, "digests": {}}))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match=rf"cannot resume .*{message}.*new run in another folder"):
        grpo(RunFolder(run, "grpo", {}, resume=True) if opened else run, **make()).train(resume_from_checkpoint=True)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_an_edited_reward_file_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"

    def reward() -> Any:
        return load_object(f"{file}:half", noun="function", what="reward", example="")

    file.write_text("def half(prompts, completions, **columns):\n    return [0.5] * len(completions)\n")
    grpo(tmp_path / "run", rewards=reward()).train()
    file.write_text(file.read_text().replace("0.5", "0.6"))
    with pytest.raises(UserError, match=r"the content of reward_funcs\[0\], by its SHA-256, was"):
        grpo(tmp_path / "run", rewards=reward()).train(resume_from_checkpoint=True)


def test_the_curriculum_is_compared_as_well(tmp_path: Path) -> None:
    def sft(resume: bool, **changed: Any) -> CurriculumTrainer:
        run = RunFolder(tmp_path / "run", "sft", {}, resume=resume)
        given = {"seed": 0, "problems": tiny_problems(4, steps=2), "config": SFT, **changed}
        return CurriculumTrainer(
            tiny_latent(latent_steps=1), given["config"], given["problems"], run, seed=given["seed"]
        )

    first = sft(resume=False)
    first.train()
    with pytest.raises(UserError, match=r"already has 8 steps of sft: continue"):
        first.train()
    for changed, message in (
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"problems": tiny_problems(5, steps=2)}, "the content of train_dataset, by"),
        ({"config": replace(SFT, learning_rate=0.5)}, "learning_rate was"),
    ):
        with pytest.raises(UserError, match=message):
            sft(resume=True, **changed).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    grpo(tmp_path / "other", config=replace(GRPO, max_steps=5)).train()
    theirs, config = tmp_path / "other" / "checkpoints" / "grpo-step-5", replace(GRPO, max_steps=5)
    with pytest.raises(UserError, match=r"grpo-step-5: the run that it belongs to was \w+ and is now \w+"):
        grpo(run, config=config).train(resume_from_checkpoint=str(theirs))
    shutil.copytree(theirs, run / "checkpoints" / "grpo-step-5")
    with pytest.raises(UserError, match=r"grpo-step-5: the run that it belongs to was \w+ and is now \w+"):
        grpo(run, config=config).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_an_older_version_can_be_resumed(run: Path) -> None:
    for saved in (run / "checkpoints").iterdir():
        state = json.loads((saved / "trainer_state.json").read_text())
        del state["record"]
        (saved / "trainer_state.json").write_text(json.dumps(state))
        manifest = json.loads((saved / "manifest.json").read_text())
        from dropout_grpo.training.checkpoint import _manifest

        manifest["trainer_state.json"] = _manifest(saved)["trainer_state.json"]
        (saved / "manifest.json").write_text(json.dumps(manifest))
    grpo(run).train(resume_from_checkpoint=True)
    assert [line["step"] for line in steps_of(run)] == [1, 2, 3, 4]


def test_the_named_checkpoint_is_loaded(run: Path) -> None:
    whole, model = steps_of(run), tiny_latent()
    made = grpo(run, model=model)
    made.train(resume_from_checkpoint=str(run / "checkpoints" / "grpo-step-2"))
    assert steps_of(run) == whole
    assert made.model is model
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == [
        *("grpo-step-1", "grpo-step-2", "grpo-step-3", "grpo-step-3.unused", "grpo-step-4", "grpo-step-4.unused")
    ]
    for path in ("no/such/folder", "grpo-step-2", str(run)):
        with pytest.raises(UserError, match=r"no such folder|is missing"):
            grpo(run).train(resume_from_checkpoint=path)
    (run / "checkpoints" / "grpo-step-2" / "trainer_state.json").write_text("{}")
    with pytest.raises(UserError, match="has changed since it was written"):
        grpo(run).train(resume_from_checkpoint=run / "checkpoints" / "grpo-step-2")


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("constant", "max_steps was 2 and is now 4: the learning rate, 0.01, stays as it was."),
        ("linear", "the linear schedule now ends at step 4, so that step 3 has the learning rate 0.005;"),
    ],
)
def test_a_run_grows(tmp_path: Path, schedule: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(GRPO, save_steps=100, lr_scheduler_type=schedule)
    made = grpo(tmp_path / "long", config=config)
    made.train()
    grpo(tmp_path / "short", config=replace(config, max_steps=2)).train()
    grown = grpo(tmp_path / "short", config=config)
    capsys.readouterr()
    grown.train(resume_from_checkpoint=True)
    assert said in " ".join(capsys.readouterr().err.split())
    trained = steps_of(tmp_path / "short")
    assert [line["step"] for line in trained] == [1, 2, 3, 4]
    if schedule == "constant":
        assert trained == steps_of(tmp_path / "long")
        assert_same_weights(weights_of(grown.model), weights_of(made.model))
    else:
        assert [line["learning_rate"] for line in trained] == pytest.approx([0.01, 0.005, 0.005, 0.0025])
    with pytest.raises(UserError, match=r"already has 4 steps of grpo: continue them with train\(resume_from"):
        grown.train()
    grown.train(resume_from_checkpoint=True)  # a finished run is not trained again
    assert steps_of(tmp_path / "short") == trained


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: [*rows[:1], *rows[2:]], "have step 2 0 times, not once"),
        (lambda rows: [*rows, rows[2]], "have step 3 2 times, not once"),
        (lambda rows: rows[::-1], "are not in order"),
    ],
)
def test_metrics_that_lack_or_double_a_step_are_noticed(run: Path, edit: Any, message: str) -> None:
    rows = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("".join(row + "\n" for row in edit(rows)))
    with pytest.raises(UserError, match=rf"metrics\.jsonl: the lines of grpo {message}: the file has changed"):
        grpo(run).train(resume_from_checkpoint=True)


def test_the_digest_of_weights_sees_every_value_name_and_dtype() -> None:
    model = tiny_latent()
    digest = weights_digest(model)
    assert weights_digest(tiny_latent()) == digest
    assert weights_digest(tiny_latent(dtype=torch.float64)) != digest
    with torch.no_grad():
        last = list(model.parameters())[-1]
        last.view(-1)[-1] = torch.nextafter(last.view(-1)[-1], torch.tensor(9.0))  # one bit
    assert weights_digest(model) != digest


def test_the_digest_of_weights_is_that_of_the_tensors_in_order() -> None:
    """Of their digests in the order of the model, though the largest tensor is hashed first."""
    tensors = [torch.ones(1), torch.arange(6.0).view(2, 3)]
    headers = [b"0 torch.float32 [1]", b"1 torch.float32 [2, 3]"]
    parts = [hashlib.sha256(h + t.numpy().tobytes()).hexdigest() for h, t in zip(headers, tensors, strict=True)]
    expected = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    assert weights_digest(torch.nn.ParameterList(tensors)) == expected


class Stops(TrainerCallback):
    """Raises once, at an event after so many steps."""

    def __init__(self, event: str, steps: int) -> None:
        self.raised, self.steps = False, steps
        setattr(self, event, self.stop)

    def stop(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == self.steps and not self.raised:
            self.raised = True
            raise KeyboardInterrupt


@pytest.mark.parametrize(("event", "steps"), [("on_pre_optimizer_step", 1), ("on_step_end", 2)])
@pytest.mark.parametrize("planned", [True, False], ids=["planned", "as on CUDA"])
def test_an_interrupted_trainer_goes_on_like_a_new_one(
    event: str, steps: int, planned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: gradients of the interrupted update were added to the next one, where no plan's trial cleared them."""
    if not planned:
        monkeypatch.setattr(GRPOTrainer, "_fit_in_memory", lambda self: None)
    whole, stopped = grpo(tmp_path / "whole"), grpo(tmp_path / "stopped", callbacks=[Stops(event, steps)])
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    stopped.train(resume_from_checkpoint=True)
    assert steps_of(tmp_path / "stopped") == steps_of(tmp_path / "whole")
    assert_same_weights(weights_of(stopped.model), weights_of(whole.model))


def test_a_trainer_that_has_changed_its_model_does_not_start_again(tmp_path: Path) -> None:
    """Fault: without a checkpoint a resume began at step 1, with the weights that the first steps had left."""
    options: dict[str, Any] = {"config": replace(GRPO, save_steps=0, save_total_limit=2)}
    changed = grpo(tmp_path / "changed", callbacks=[Stops("on_step_end", 1)], **options)
    with pytest.raises(KeyboardInterrupt):
        changed.train()
    with pytest.raises(UserError, match=r"no checkpoint of grpo to continue from.*make a new trainer with the model"):
        changed.train(resume_from_checkpoint=True)
    whole, fresh = grpo(tmp_path / "whole", **options), grpo(tmp_path / "changed", **options)
    whole.train()
    fresh.train(resume_from_checkpoint=True)
    assert_same_weights(weights_of(fresh.model), weights_of(whole.model))

    failures = [True]

    def fails_once(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        if failures:
            failures.pop()
            raise ValueError
        return alternating(prompts, completions, **columns)

    unchanged = grpo(tmp_path / "unchanged", rewards=fails_once, **options)
    with pytest.raises(UserError, match="fails_once"):
        unchanged.train()
    unchanged.train(resume_from_checkpoint=True)
    assert_same_weights(weights_of(unchanged.model), weights_of(whole.model))


def test_an_interrupted_training_that_left_no_line_does_not_start_again(tmp_path: Path) -> None:
    """Faults: the changed weights were trained as if new; the schedule began where the first attempt had ended."""
    config = replace(GRPO, logging_steps=4, save_steps=0, save_total_limit=2, lr_scheduler_type="linear")
    changed = grpo(tmp_path / "changed", config=config, callbacks=[Stops("on_step_end", 1)])
    with pytest.raises(KeyboardInterrupt):
        changed.train()
    with pytest.raises(UserError, match=r"an earlier training of grpo was interrupted and has changed the model"):
        changed.train()

    first = [constant, constant, None]  # two steps without a gradient, but with steps of the schedule, then a failure

    def fails_in_step_3(prompts: Any, completions: Any, **columns: Any) -> list[float | None]:
        reward = first.pop(0) if first else alternating
        if reward is None:
            raise ValueError
        return reward(prompts, completions, **columns)

    unchanged = grpo(tmp_path / "unchanged", rewards=fails_in_step_3, config=config)
    whole = grpo(tmp_path / "whole", config=config)
    with pytest.raises(UserError, match="fails_in_step_3"):
        unchanged.train()
    assert unchanged.updates == 2
    unchanged.train()
    whole.train()
    assert_same_weights(weights_of(unchanged.model), weights_of(whole.model))


def test_a_run_whose_callback_switches_logging_off_can_be_resumed(tmp_path: Path) -> None:
    """Fault: the lines that a resume counts were missing, and the message spoke of a changed file."""

    class Quiet(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_log = False

    grpo(tmp_path, config=replace(GRPO, max_steps=3), callbacks=[Quiet()]).train()
    made = grpo(tmp_path, callbacks=[Quiet()])
    assert made.train(resume_from_checkpoint=True).global_step == 4
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert [set(line) & {"reward"} for line in made.state.log_history] == [{"reward"}] * 3 + [set()]


def test_what_would_train_without_a_word_is_refused(tmp_path: Path) -> None:
    """Fault: weights of float16 lost their updates; no_grad and inference_mode ended in torch's errors."""
    halved, made, negative = grpo(tmp_path / "a", model=tiny_latent().half()), grpo(tmp_path / "b"), tiny_latent()
    with pytest.raises(UserError, match=r"float16 \(transformer\.wte\.weight\).*Load the model in float32"):
        halved.train()
    with torch.no_grad(), pytest.raises(UserError, match=r"inside torch\.no_grad\(\)"):
        made.train()
    with torch.inference_mode():
        with pytest.raises(UserError, match=r"inside torch\.inference_mode\(\)"):
            made.train()
        loaded = tiny_latent()
    with pytest.raises(UserError, match=r"a model that was loaded there"):
        grpo(tmp_path / "c", model=loaded).train()
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match=r"inside torch\.autocast\(\).*set bf16"):
        made.train()
    negative.latent_steps = -1
    with pytest.raises(UserError, match="latent_steps=-1"):
        grpo(tmp_path / "d", model=negative).train()
    with pytest.raises(UserError, match="steps=-2: the number of thoughts must be 0 or more"):
        negative.think(negative.read(*negative.encode(["Ann has 3 ?"])), -2)
    sft = CurriculumTrainer(
        tiny_latent(latent_steps=1), SFT, tiny_problems(4, steps=2), RunFolder(tmp_path / "e", "sft", {}), seed=0
    )
    with torch.no_grad(), pytest.raises(UserError, match=r"inside torch\.no_grad\(\)"):
        sft.train()
    assert not (tmp_path / "b").exists()
