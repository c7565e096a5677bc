"""What the demo says at its end: every command it prints can be run."""

import shlex
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.commands.demo import to_ask, what_next
from dropout_grpo.data.files import save_problems
from dropout_grpo.evaluation.answering import ModelAnswers
from helpers.tiny_latent import tiny_latent, tiny_problems


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/dropout-grpo", "demo"])
    run = tmp_path / "demo"
    tiny_latent().save_pretrained(run / "checkpoints" / "dropout_grpo")
    (run / "data").mkdir()
    save_problems(run / "data" / "test.json", tiny_problems(2))
    text = what_next(run, str(run / "report.html"), tiny_problems(1)[0], "shown for a reason")
    assert text.startswith(f"report: {run}/report.html\n")
    assert f"file://{run}/report.html" in text
    assert "\n                        right answer: 3 (shown for a reason)\n" in text
    lines = [line.partition(":  ")[2].strip() for line in text.splitlines() if "/bin/dropout-grpo" in line]
    commands = [shlex.split(line) for line in lines]
    assert commands
    assert [words[1] for words in commands] == ["ask", "eval", "inspect"]
    for words in commands:
        short = {"ask": ["--max_new_tokens", "4"], "eval": ["--evaluation.num_samples", "2"]}.get(words[1], [])
        assert main([*words[1:], *short]) == 0


def answered(i: int, plain: bool, masks: int) -> ModelAnswers:
    """Problem i, whose right answer is i + 3, with a plain answer and the number of its 4 masks that are right."""
    (*_, problem) = tiny_problems(i + 1)
    said = {True: f"### {i + 3}", False: "### 0"}
    return ModelAnswers(
        problem=problem,
        plain=said[plain],
        plain_length=3,
        plain_clipped=False,
        samples=tuple(said[m < masks] for m in range(4)),
    )


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        # (plain, masks of 4 that are right) of each problem
        ([(True, 4), (False, 0), (False, 0)], [(True, 4), (True, 3), (True, 4)], (2, "plain answer and vote")),
        ([(False, 1), (False, 4)], [(False, 1), (True, 4)], (1, "plain answer")),
        ([(True, 1), (True, 4)], [(True, 4), (False, 0)], (0, "vote")),
        ([(True, 4), (False, 0)], [(True, 4), (False, 0)], (0, None)),
    ],
)
def test_the_question_is_one_that_training_turned_right(
    before: list[tuple[bool, int]], after: list[tuple[bool, int]], found: tuple[int, str | None]
) -> None:
    sides = [[answered(i, *side) for i, side in enumerate(given)] for given in (before, after)]
    problem, shows = to_ask(*sides)
    turned = "no test problem" if found[1] is None else f"its {found[1]}"
    assert (problem.id, shows) == (found[0], f"GRPO turned {turned} from wrong to right")
