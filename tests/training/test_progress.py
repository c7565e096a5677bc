"""Progress on a pipe: occasional lines with the remaining time, on standard error."""

import io

import pytest
from rich.console import Console

from dropout_grpo.training import progress
from dropout_grpo.training.progress import Bar


class Clock:
    """A clock that advances only when the test sets it."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, width=200, highlight=False))
    return out


def test_a_line_every_ten_seconds_and_one_at_the_end(clock: Clock, written: io.StringIO) -> None:
    with Bar("grpo", total=10) as bar:
        for step in range(1, 11):
            clock.now += 4.0
            bar.advance(reward=step / 8, loss=-0.123456)
    # Steps end at 4, 8, 12, ... 40 s: the first line after 10 s comes at 12, the next at 24, 36, and the last step's.
    assert written.getvalue().splitlines() == [
        "grpo 3/10  reward 0.375 loss -0.1235  28 s left",
        "grpo 6/10  reward 0.75 loss -0.1235  16 s left",
        "grpo 9/10  reward 1.125 loss -0.1235  4 s left",
        "grpo 10/10  reward 1.25 loss -0.1235  0 s left",
    ]


def test_a_resumed_run_reckons_from_the_steps_it_made_itself(clock: Clock, written: io.StringIO) -> None:
    with Bar("sft", total=100, done=90) as bar:
        clock.now += 20.0
        bar.advance(loss=1.0)
    assert written.getvalue().splitlines() == ["sft 91/100  loss 1  180 s left"]  # 9 more at 20 s each


def test_on_a_terminal_a_bar_with_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, width=200, force_terminal=True))
    with Bar("grpo [x]", total=2, done=1) as bar:
        bar.advance(reward=0.5)
    shown = out.getvalue()
    assert "2/2" in shown
    assert "reward 0.5" in shown


def test_what_looks_like_an_emoji_or_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    progress.console.print("rewards.py:ok: [bold]no[/bold]", markup=False)
    assert capsys.readouterr().err == "rewards.py:ok: [bold]no[/bold]\n"
