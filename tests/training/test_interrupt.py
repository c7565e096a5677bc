"""A first signal waits for the end of the update, which is saved; a second one stops at once."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from test_good_checkpoint import STEPS, trainer

from dropout_grpo.training import interrupt
from dropout_grpo.training.interrupt import Interrupted, finishing_updates, handled_signals
from helpers.grpo_run import steps_of
from helpers.tiny_latent import assert_same_weights, tiny_latent, weights_of


@pytest.mark.parametrize(("kind", "number", "status"), [("sft", signal.SIGTERM, 143), ("grpo", signal.SIGINT, 130)])
def test_the_update_is_finished_and_saved(kind: str, number: int, status: int, tmp_path: Path) -> None:
    whole, model = tiny_latent(), tiny_latent()
    trainer(kind, tmp_path / "whole", whole).train()
    made = trainer(kind, tmp_path / "run", model)
    owner = made if kind == "sft" else made.update
    work, calls = owner.backward, iter(range(1, 100))

    def backward(*args: Any, **options: Any) -> Any:
        if next(calls) == (3 if kind == "sft" else 5):  # the first of step 3; GRPO makes two updates a step
            os.kill(os.getpid(), number)
        return work(*args, **options)

    owner.backward = backward
    with pytest.raises(Interrupted) as stopped, handled_signals():
        made.train()
    assert stopped.value.status == status
    assert f"after step 3 of {kind}; saved" in str(stopped.value)
    assert [line["step"] for line in steps_of(tmp_path / "run")] == [1, 2, 3]
    assert (tmp_path / "run" / "checkpoints" / f"{kind}-step-3").is_dir()
    again = tiny_latent()
    trainer(kind, tmp_path / "run", again, resume=True).train(resume_from_checkpoint=True)
    assert len(steps_of(tmp_path / "run")) == STEPS[kind]
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "whole")
    assert_same_weights(weights_of(again), weights_of(whole))


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_a_signal_while_the_last_step_is_saved_stops_what_follows(kind: str, tmp_path: Path) -> None:
    """Fault: the command went on with what follows the training."""
    made, sent = trainer(kind, tmp_path, tiny_latent()), []
    save = made.save

    def saved(step: int) -> None:
        save(step)
        if step == STEPS[kind] and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    made.save = saved
    with pytest.raises(Interrupted, match=f"after step {STEPS[kind]} of {kind}; saved"), handled_signals():
        made.train()
    again = trainer(kind, tmp_path, tiny_latent(), resume=True)
    assert again.train(resume_from_checkpoint=True).global_step == STEPS[kind]
    assert_same_weights(weights_of(again.model), weights_of(made.model))


def signalled(*numbers: int) -> None:
    """An update that is sent signals; the first is recorded."""
    with finishing_updates() as asked:
        assert asked() is None
        for number in numbers:
            os.kill(os.getpid(), number)
            assert asked() == numbers[0]


def test_a_second_signal_stops_at_once() -> None:
    with handled_signals():
        signalled(signal.SIGTERM)
        with pytest.raises(Interrupted) as stopped:
            signalled(signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    assert stopped.value.status == 130


def test_a_signal_that_torchrun_passes_on_is_not_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with handled_signals():
        signalled(signal.SIGINT, signal.SIGTERM)
        monkeypatch.setattr(interrupt, "_ECHO_SECONDS", 0.0)
        with pytest.raises(Interrupted):
            signalled(signal.SIGINT, signal.SIGTERM)


def test_elsewhere_the_first_signal_stops_and_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with handled_signals(), pytest.raises(Interrupted, match="stopped by SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
