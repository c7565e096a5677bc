"""Single problems: those whose answer flipped, with the votes of their masks, and the thoughts about some of them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from dropout_grpo.data.answers import answers_match
from dropout_grpo.report.blocks import Table
from dropout_grpo.report.names import label
from dropout_grpo.runs.read import JsonObject, Run, mapping, number, objects

_SHOWN = {"gained": 6, "lost": 2}  # the counts are above the cards


def flips(run: Run) -> dict[str, Any] | None:
    """The first few problems that were gained and that were lost; None without any.

    Returns:
        ``counts`` of all by direction, and ``cards``: ``direction``, ``question``, ``answer``, ``sides`` (before and
        after: ``plain``, the plain answer; ``votes``, [mask's answer, how many masks] pairs, falling; ``right``, those
        of these answers that are right).
    """
    records = [(record, f"flips.jsonl, record {i}") for i, record in enumerate(run.flips, start=1)]
    counts, cards = {}, []
    for direction, shown in _SHOWN.items():
        of_direction = [(record, place) for record, place in records if record.get("direction") == direction]
        counts[direction] = len(of_direction)
        for record, place in of_direction[:shown]:
            about = _problem(record)
            sides = {
                when: _votes(mapping(record, when, place), about["answer"], f"{place}, {when!r}")
                for when in ("before", "after")
            }
            cards.append(about | {"direction": direction, "sides": sides})
    return {"counts": counts, "cards": cards} if cards else None


def _problem(record: JsonObject) -> dict[str, Any]:
    return {name: str(record.get(name, "")) for name in ("question", "answer")}


def _votes(side: JsonObject, gold: str, place: str) -> dict[str, Any]:
    votes = mapping(side, "votes", place)
    counts = {vote: number(votes, vote, f"{place}, 'votes'") or 0.0 for vote in votes}
    plain = _answer(side, "plain")
    right = {text for text in (plain, *counts) if answers_match(text, gold)}  # votes are in canonical form
    return {"plain": plain, "votes": sorted(counts.items(), key=lambda item: -item[1]), "right": right}


def _answer(side: JsonObject, key: str) -> str:
    return str(side.get(key, "")).rpartition("###")[2].strip()


def thoughts(run: Run) -> list[dict[str, Any]]:
    """A card for each problem of thoughts.jsonl: ``kind``, ``question``, ``answer``, a table for each model."""
    cards = []
    for i, record in enumerate(run.thoughts, start=1):
        place = f"thoughts.jsonl, record {i}"
        models = objects(record, "models", place)
        tables = [_thoughts_table(side, f"{place}, 'models'[{k}]") for k, side in enumerate(models)]
        cards.append(_problem(record) | {"kind": str(record.get("kind", "")), "tables": tables})
    return cards


def _thoughts_table(side: JsonObject, place: str) -> Table:
    """One model: a row for each thought."""
    thoughts = mapping(side, "thoughts", place)
    place = f"{place}, 'thoughts'"
    plain = objects(thoughts, "plain", place)
    masked = thoughts.get("masked")
    by_mask = [objects({"mask": mask}, "mask", place) for mask in masked] if isinstance(masked, list) else []
    rows: list[list[str]] = []
    for i, thought in enumerate(plain):
        states = [states[i] for states in by_mask if i < len(states)]
        cosines = [c for state in states if (c := number(state, "cosine", place)) is not None]
        name = f"thought {i + 1}" if i < len(plain) - 1 else "after them"
        likeliest = " · ".join(f"{token}\u00a0{share:.2f}" for token, share in _tokens(thought, place))
        first = Counter(token for state in states for token, _ in _tokens(state, place)[:1])
        votes = " · ".join(f"{token}\u00a0×\u00a0{count}" for token, count in first.most_common(4))
        rows.append([name, likeliest, f"{sum(cosines) / len(cosines):.3f}" if cosines else "–", votes or "–"])
    return Table(
        caption=": ".join(filter(None, [label(str(side.get("name", ""))), f"plain answer {_answer(side, 'said')}"])),
        header=["", "likeliest tokens", "cosine", "likeliest under masks"],
        rows=rows,
        style="read",
    )


def _tokens(thought: JsonObject, place: str) -> Sequence[tuple[str, float]]:
    pairs = thought.get("tokens")
    if not isinstance(pairs, list):
        return []
    tokens = []
    for pair in pairs:
        if isinstance(pair, list) and len(pair) == 2:
            share = number({"probability": pair[1]}, "probability", place)
            if share is not None:
                tokens.append((str(pair[0]).strip() or repr(pair[0]), share))
    return tokens
