"""ProntoQA as published: from an example to a record in Coconut's layout."""

from collections.abc import Mapping
from typing import Any

from dropout_grpo.data.columns import Columns
from dropout_grpo.errors import UserError

TEST_EXAMPLE = "test_example"
"""The key of the problem in each example of the published files. The other keys hold examples for a prompt."""


def is_prontoqa(record: Mapping[str, Any]) -> bool:
    """Whether a record is an example of ProntoQA (Saparov and He 2023, arXiv 2210.01240)."""
    return "query" in record and "chain_of_thought" in record


def from_prontoqa(record: Mapping[str, Any], where: str, columns: Columns) -> dict[str, Any]:
    """Coconut's record of an example: the query is appended to the question, and a step is two sentences of the chain.

    In ``Sally is a vumpus. | Every vumpus is a lorpus. | Sally is a lorpus. | ...`` the first step is a fact with the
    rule that applies to it. With an odd number of sentences, the last one is a step by itself. The answer is ``True``
    or ``False``.

    Raises:
        UserError: a field is missing or malformed.
    """
    for name in ("question", "query", "answer"):
        value = record.get(name)
        if not isinstance(value, str) or not value.strip():
            raise UserError(
                f"{where}: field {name!r} must be a string that is not empty, as in ProntoQA's question, query, "
                f"chain_of_thought and answer (fields found: {', '.join(map(repr, record))})"
            )
    chain = record.get("chain_of_thought")
    if not isinstance(chain, list) or not all(isinstance(sentence, str) and sentence.strip() for sentence in chain):
        raise UserError(f"{where}: field 'chain_of_thought' must be a list of sentences")
    return {
        columns.question: f"{record['question']} {record['query']}",
        columns.steps: [" ".join(chain[i : i + 2]) for i in range(0, len(chain), 2)],
        columns.answer: record["answer"],
    }
