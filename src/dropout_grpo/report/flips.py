"""Problems whose plain answer flipped between right and wrong, with the votes of their masks."""

from dropout_grpo.report import markup
from dropout_grpo.runs.read import Record, Run, mapping, number

_SHOWN = {"gained": 6, "lost": 2}  # the counts are above the cards
_BADGES = {"gained": "wrong → right", "lost": "right → wrong"}


def flips_section(run: Run) -> str:
    """A card for each of the first few problems that were gained and that were lost."""
    records = [(record, f"flips.jsonl, record {i}") for i, record in enumerate(run.flips, start=1)]
    by_direction = {
        direction: [(record, place) for record, place in records if record.get("direction") == direction]
        for direction in _SHOWN
    }
    cards = "".join(
        _card(record, direction, place)
        for direction, shown in _SHOWN.items()
        for record, place in by_direction[direction][:shown]
    )
    if not cards:
        return ""
    lead = (
        f"{len(by_direction['gained'])} recorded problems went from wrong to right and "
        f"{len(by_direction['lost'])} from right to wrong; here are the first of each. Before and after "
        "training: the plain network's answer in bold, then the votes of its masks."
    )
    return markup.section("Problems that flipped", f"<p>{markup.text(lead)}</p>", f'<ul class="flips">{cards}</ul>')


def _card(record: Record, direction: str, place: str) -> str:
    answer = str(record.get("answer", ""))
    sides = "".join(_votes(when, mapping(record, when, place), answer, place) for when in ("before", "after"))
    return (
        f'<li class="{direction}"><span class="badge">{_BADGES[direction]}</span>'
        f"<blockquote>{markup.text(record.get('question', ''))}</blockquote>"
        f'<div>Right answer: <strong>{markup.text(answer)}</strong></div><dl class="votes">{sides}</dl></li>'
    )


def _votes(when: str, side: Record, answer: str, place: str) -> str:
    """One line of a card: the plain answer, then the answers of the masks with their counts, falling."""
    votes = mapping(side, "votes", f"{place}, {when!r}")
    counts = {vote: number(votes, vote, f"{place}, {when!r}, 'votes'") or 0.0 for vote in votes}
    chips = "".join(
        f'<span class="vote{" right" if vote == answer else ""}">{markup.text(vote)} × {count:.0f}</span>'
        for vote, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    plain = str(side.get("plain", "")).rpartition("###")[2].strip()
    right = " right" if plain == answer else ""
    return f'<dt>{when}</dt><dd><span class="plain{right}">{markup.text(plain)}</span>{chips}</dd>'
