"""samples.jsonl of an evaluation: one line a problem, with everything that was said and whether it was right."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import Answered, is_correct
from dropout_grpo.runs.folder import write_text

SAMPLES = "samples.jsonl"

Sample = dict[str, Any]

_TYPES = {"file": str, "id": int, "question": str, "answer": str, "plain": str, "plain_correct": bool}


def sample(file: str, answered: Answered) -> Sample:
    """One line: ``file``, ``id`` and the problem, then the answers; each list has an entry for each sample."""
    problem = answered.problem
    return {
        "file": file,
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "plain": answered.plain,
        "plain_correct": answered.plain_correct,
        "plain_length": answered.plain_length,
        "samples": list(answered.samples),
        "samples_correct": answered.samples_correct(),
        "samples_length": list(answered.sample_lengths),
        "average": answered.average,
        "average_correct": None if answered.average is None else is_correct(answered.average, problem),
    }


def write_samples(run: Path, samples: Sequence[Sample]) -> None:
    """Replace the file of a run folder in one move."""
    write_text(run / SAMPLES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples))


def read_samples(run: Path) -> list[Sample]:
    """The lines of a run folder's file.

    Raises:
        UserError: no such file, or a line that is not one of ours.
    """
    path = run / SAMPLES
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{run} holds no {SAMPLES}: give the folder of a `dropout-grpo eval` run.") from None
    return [_checked(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line]


def _checked(line: str, place: str) -> Sample:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} is not JSON ({error.msg}): the file is damaged; run the evaluation again.") from error
    for name, kind in _TYPES.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise UserError(f"{place}: {name!r} is not as `dropout-grpo eval` writes it; run the evaluation again.")
    return dict(record)
