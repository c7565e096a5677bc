"""A line of samples.jsonl: a problem, all answers to it, and which of them are right."""

from typing import Any

from dropout_grpo.evaluation.answering import Answered


def sample(file: str, answered: Answered) -> dict[str, Any]:
    """The line of one problem: ``file``, ``id``, the problem and the answers; lists have an entry for each sample."""
    problem = answered.problem
    return {
        "file": file,
        "id": problem.id,
        "question": problem.question,
        "answer": problem.answer,
        "steps": len(problem.steps),
        "plain": answered.plain,
        "plain_correct": answered.plain_correct,
        "plain_length": answered.plain_length,
        "samples": list(answered.samples),
        "samples_correct": answered.samples_correct(),
        "samples_length": list(answered.sample_lengths),
        "average": answered.average,
        "average_correct": answered.average_correct,
    }
