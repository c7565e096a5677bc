"""Scores the task ``gsm8k_latent`` with the package's own comparison of answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from dropout_grpo.data.answers import answers_match, extract_answer
from dropout_grpo.data.formats import COCONUT_COLUMNS, from_gsm8k


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The harness's hook: ``exact_match`` of one completion.

    Args:
        doc: a record of GSM8K.
        results: the completion, alone.
    """
    gold = from_gsm8k(doc, "gsm8k_latent", COCONUT_COLUMNS)["answer"]
    return {"exact_match": float(answers_match(extract_answer(results[0]), gold))}
