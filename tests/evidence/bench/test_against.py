"""The comparison with an older commit: what is read from a run, and what is made of it."""

import json
import sys
from pathlib import Path

import pytest

from evidence.bench import against
from evidence.bench.against import Ended, ratios, run, summary
from evidence.bench.tables import against as against_table

SFT = [{"part": "sft", "step": i, "loss": 1.0, "seconds": s} for i, s in ((1, 7.0), (2, 10.0), (3, 12.0))]
GRPO = [
    {"part": "grpo", "step": i, "loss": 1.0, "step_time": s, "rollout_time": 1.0}
    for i, s in ((1, 9.0), (2, 4.0), (3, 5.0))
]
WRITES = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "metrics.jsonl").write_text(sys.argv[2])
held = b"1" * 50_000_000
time.sleep(0.2)
"""


@pytest.mark.parametrize(
    ("lines", "updates", "steps"), [(SFT, [3.0, 2.0], []), (GRPO, [3.0, 4.0], [4.0, 5.0])], ids=["sft", "grpo"]
)
def test_the_first_update_is_not_counted(
    lines: list[dict[str, float]],
    updates: list[float],
    steps: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(against, "_COMMAND", [sys.executable, "-c", WRITES])
    ended = run(tmp_path, [str(folder), "".join(json.dumps(line) + "\n" for line in lines)], folder)
    assert (ended.status, ended.updates, ended.steps) == (0, updates, steps)
    assert 5e7 < ended.anonymous <= ended.peak < 1e8
    assert 0 < ended.first_line < ended.seconds


def test_medians_and_ratios() -> None:
    def ended(peak: int, *updates: float) -> Ended:
        return Ended(
            status=0, peak=peak, anonymous=peak // 2, seconds=1.0, first_line=1.0, updates=list(updates), steps=[]
        )

    jobs = {"update": {"old": summary([ended(4, 5.0, 7.0), ended(6, 6.0)]), "new": summary([ended(2, 2.0, 3.0, 4.0)])}}
    assert (jobs["update"]["old"]["update"], jobs["update"]["old"]["peak"]) == (6.0, 6)
    assert ratios(jobs) == {"update": {"update": 2.0, "peak": 3.0, "anonymous": 3.0}}
    rows = against_table({"commit_before": "abc", "commit": "def", "jobs": jobs}).splitlines()
    assert rows[2] == "| update | 6.0 | 3.0 | 2.00 |"
