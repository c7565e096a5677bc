"""Thoughts about some problems, as the language-model head reads them, and how far masks move them."""

from collections import Counter
from collections.abc import Sequence

from dropout_grpo.report import markup
from dropout_grpo.report.names import label
from dropout_grpo.runs.read import Record, Run, mapping, number, objects

_BADGES = {
    "gained": "wrong → right",
    "lost": "right → wrong",
    "right": "right",
    "wrong": "wrong",
    "divided": "masks disagree with the plain answer",
}


def thoughts_section(run: Run) -> str:
    """A card for each problem of thoughts.jsonl, with a table for each model."""
    cards = "".join(_card(record, f"thoughts.jsonl, record {i}") for i, record in enumerate(run.thoughts, start=1))
    if not cards:
        return ""
    lead = (
        "The hidden state of each thought, read through the language-model head: the likeliest tokens of the plain "
        "network with their probabilities, the mean cosine between a masked and the plain state, and the likeliest "
        "token under each mask, counted. A state is trained to be thought on, not to be read."
    )
    return markup.section("What the thoughts say", f"<p>{markup.text(lead)}</p>", f'<ul class="flips">{cards}</ul>')


def _card(record: Record, place: str) -> str:
    kind = str(record.get("kind", ""))
    tables = "".join(_table(side, f"{place}, 'models'[{i}]") for i, side in enumerate(objects(record, "models", place)))
    css = ' class="lost"' if kind in ("lost", "wrong") else ""
    return (
        f'<li{css}><span class="badge">{markup.text(_BADGES.get(kind, kind))}</span>'
        f"<blockquote>{markup.text(record.get('question', ''))}</blockquote>"
        f"<div>Right answer: <strong>{markup.text(record.get('answer', ''))}</strong></div>{tables}</li>"
    )


def _table(side: Record, place: str) -> str:
    """One model: a row for each thought."""
    thoughts = mapping(side, "thoughts", place)
    place = f"{place}, 'thoughts'"
    plain = objects(thoughts, "plain", place)
    masked = thoughts.get("masked")
    rows: list[list[str]] = []
    for i, thought in enumerate(plain):
        under = (
            [objects({"mask": mask}, "mask", place)[i : i + 1] for mask in masked] if isinstance(masked, list) else []
        )
        states = [state for one in under for state in one]
        cosines = [c for state in states if (c := number(state, "cosine", place)) is not None]
        name = f"thought {i + 1}" if i < len(plain) - 1 else "after them"
        likeliest = " · ".join(f"{token}\u00a0{share:.2f}" for token, share in _tokens(thought, place))
        first = Counter(token for state in states for token, _ in _tokens(state, place)[:1])
        votes = " · ".join(f"{token}\u00a0×\u00a0{count}" for token, count in first.most_common(4))
        rows.append([name, likeliest, f"{sum(cosines) / len(cosines):.3f}" if cosines else "–", votes or "–"])
    said = str(side.get("said", "")).rpartition("###")[2].strip()
    title = ": ".join(filter(None, [label(str(side.get("name", ""))), f"plain answer {said}"]))
    return markup.table(title, ["", "likeliest tokens", "cosine", "likeliest under masks"], rows, kind="read")


def _tokens(thought: Record, place: str) -> Sequence[tuple[str, float]]:
    pairs = thought.get("tokens")
    if not isinstance(pairs, list):
        return []
    found = []
    for pair in pairs:
        if isinstance(pair, list) and len(pair) == 2:
            share = number({"probability": pair[1]}, "probability", place)
            if share is not None:
                found.append((str(pair[0]).strip() or repr(pair[0]), share))
    return found
