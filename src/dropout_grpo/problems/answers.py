"""Reading the answer out of a completion, and deciding when two answers are the same."""

import re
from fractions import Fraction

MARKER = "###"
"""What stands before the answer in Coconut's files; GSM8K's own ``####`` contains it."""

_LONGEST_NUMBER = 200
"""Characters. Longer texts compare as text, which bounds the work that garbage can cause."""

_MINUS = "-\u2212\u2013\uff0d"  # hyphen, which a class takes literally where it is first; minus, en dash, full width
_CURRENCY = r"[$€£¥]"
_NUMBER = re.compile(
    rf"""
    (?P<sign1>[{_MINUS}+])?+ \ ?+ {_CURRENCY}?+ \ ?+ (?P<sign2>[{_MINUS}+])?+ \ ?+
    (?P<value>
        [0-9]++ \ ?+ / \ ?+ [0-9]++                                # 1/2
      | (?: [0-9]{{1,3}}+ (?: ,[0-9]{{3}} )++ | [0-9]++ )          # 1,000 or 1000
        (?: \.[0-9]*+ )?+ (?: [eE] [{_MINUS}+]?+ [0-9]{{1,3}}+ )?+  # .50, e3
      | \.[0-9]++                                                  # .5
    )
    (?: \ ?+ (?: % | {_CURRENCY} ) )?+
    (?! \ (?:hundred|thousand|million|billion|trillion|dozen)\b )  # 3 million is not 3
    (?: \  [^\W\d_] [^\d=+*<>\\^]*+ | [ .]*+ )                     # 18 dollars, 18.
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""For text with single spaces; letters right after a number (``3x``) make it text, not a number.

All repetitions are possessive: nothing is tried twice, so the work is linear in the length of the text.
"""

_CHOICE = re.compile(r"\b(?P<first>\w+) or (?P<second>\w+) ?\?\Z")
_WORD = re.compile(r"\w+")


def extract_answer(completion: str) -> str | None:
    """The text after the last ``###``, without surrounding white space.

    None where there is no marker or nothing after it: such a completion has no answer and casts no vote.
    """
    _, marker, answer = completion.rpartition(MARKER)
    return (answer.strip() or None) if marker else None


def canonical_answer(text: str) -> str:
    """One spelling for all spellings of the same answer, so that ``==`` and a vote count agree.

    Numbers become an exact integer or reduced fraction: ``$1,000.00`` and ``1e3`` are ``1000``, ``0.5`` is
    ``1/2``, ``5%`` is ``5`` (GSM8K's gold answers are plain numbers), ``18 dollars`` is ``18``. All else is
    text, ProsQA's sentences for one: case-folded, white space collapsed, final dots dropped. Work is linear in the
    length of `text`.
    """
    text = " ".join(text.split())
    number = _number(text)
    return text.casefold().rstrip(" .") if number is None else str(number)


def answers_match(predicted: str | None, gold: str) -> bool:
    """Whether `predicted`, as `extract_answer` returned it, is the gold answer; no answer never is."""
    return predicted is not None and canonical_answer(predicted) == canonical_answer(gold)


def candidates(question: str) -> tuple[str, str] | None:
    """The two words between which a question leaves the choice, ``... Is Tom a lempus or scrompus?``, case-folded."""
    match = _CHOICE.search(question.strip())
    return None if match is None else (match["first"].casefold(), match["second"].casefold())


def chosen(answer: str, options: tuple[str, str]) -> str | None:
    """The one of two candidates that an answer names, ``a lempus``; None where it names both or neither."""
    words = set(_WORD.findall(answer.casefold()))
    named = [option for option in options if option in words]
    return named[0] if len(named) == 1 else None


def _number(text: str) -> Fraction | None:
    if len(text) > _LONGEST_NUMBER:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None or (match["sign1"] and match["sign2"]):
        return None
    try:
        value = Fraction(re.sub(f"[{_MINUS}]", "-", re.sub("[ ,]", "", match["value"])))
    except ZeroDivisionError:  # 1/0
        return None
    return -value if (match["sign1"] or match["sign2"] or "+") in _MINUS else value
