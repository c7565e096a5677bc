"""An oracle for the embedded word problems: solves them from their text, independently of the generator."""

import re
from collections import Counter

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SENTENCES = {
    # sentence: what it does to the things {t} of the person {p}
    r"(?P<p>\w+) (has|owns) (?P<n>\d+) (?P<t>\w+)": "=",
    r"on (?P<day>\w+) (?P<p>\w+) (buys|finds|makes|wins|borrows) (?P<n>\d+) (?P<t>\w+)": "+",
    r"on (?P<day>\w+) (?P<p>\w+) (loses|breaks|sells|drops|returns) (?P<n>\d+) (?P<t>\w+)": "-",
    r"on (?P<day>\w+) (?P<p>\w+) (?P<n>doubles|triples|quadruples) the (?P<t>\w+)": "*",
}
TIMES = {"doubles": 2, "triples": 3, "quadruples": 4}
QUESTIONS = (
    r"how many (?P<t>\w+) does (?P<p>\w+) have now",
    r"how many (?P<t>\w+) are left",
)


def read_question(final: str) -> dict[str, str]:
    """The things ``t`` that are asked for, and the person ``p`` where the question says whose."""
    (match,) = [match for pattern in QUESTIONS if (match := re.fullmatch(pattern, final))]
    return match.groupdict()


def read_sentence(sentence: str) -> tuple[dict[str, str], str, int]:
    """(who, what and perhaps when; effect; number); exactly one reading must fit."""
    ((match, effect),) = [
        (match, effect) for pattern, effect in SENTENCES.items() if (match := re.fullmatch(pattern, sentence))
    ]
    return match.groupdict(), effect, TIMES.get(match["n"]) or int(match["n"])


def solve(question: str) -> tuple[int, list[str]]:
    """Track everybody's things; return the number that is asked for and its changes, as steps.

    Raises:
        ValueError: a sentence has no single reading, or "are left" leaves open whose things are meant.
        KeyError: something happens to things that nobody was said to have.
        AssertionError: the days are out of order, or the asked-for number is told twice.
    """
    *told, final = question.removesuffix(" ?").split(" . ")
    has: dict[tuple[str, str], int] = {}
    steps: dict[tuple[str, str], list[str]] = {}
    starts: Counter[tuple[str, str]] = Counter()
    days = []
    for who, effect, n in map(read_sentence, told):
        owner = (who["p"], who["t"])
        if effect == "=":
            starts[owner] += 1
            has[owner], steps[owner] = n, []
            continue
        before = has[owner]
        has[owner] = {"+": before + n, "-": before - n, "*": before * n}[effect]
        steps[owner].append(f"<<{before}{effect}{n}={has[owner]}>>")
        days.append(who["day"])
    assert days == [DAYS[index % 7] for index in range(len(days))], "the days go by in order"
    wanted = read_question(final)
    (target,) = [(p, t) for p, t in has if t == wanted["t"] and p == wanted.get("p", p)]
    assert starts[target] == 1, "the text says twice how many there are"
    return has[target], steps[target]
