"""Extracts the answer from a completion, and decides whether two answers are equal."""

import re
from fractions import Fraction

MARKER = "###"
"""The marker before an answer in Coconut's files. GSM8K's own ``####`` contains it."""

CODI_MARKER = "The answer is:"
"""The words before an answer in CODI's data."""

_LONGEST_NUMBER = 200
"""Characters. Longer texts are compared as text, which bounds the work."""

_MINUS = "-\u2212\u2013\uff0d"  # hyphen (literal in a character class, since it is first), minus, en dash, full width
_CURRENCY = r"(?: \\?+ [$€£¥] )"  # LaTeX writes \$
_NUMERALS = "²³¹¼-¾⅐-⅞⁰-⁹₀-₉"  # letters to ``\w``
_NUMBER = re.compile(
    rf"""
    (?P<sign1>[{_MINUS}+])?+ \ ?+ {_CURRENCY}?+ \ ?+ (?P<sign2>[{_MINUS}+])?+ \ ?+
    (?: (?P<whole> [0-9]++ ) \  (?= [0-9]++ / [0-9] ) )?+           # 3 of 3 1/2
    (?P<value>
        [0-9]++ \ ?+ / \ ?+ [0-9]++                                # 1/2
      | (?: [0-9]{{1,3}}+ (?: ,[0-9]{{3}} )++ | [0-9]++ )          # 1,000 or 1000
        (?: \.[0-9]*+ )?+ (?: [eE] [{_MINUS}+]?+ [0-9]{{1,3}}+ )?+  # .50, e3
      | \.[0-9]++                                                  # .5
    )
    (?: \ ?+ (?: \\?+ % | {_CURRENCY} ) )?+
    (?! \ (?:hundred|thousand|million|billion|trillion|dozen)s?\b )  # 3 million is not 3
    (?! \ (?: and\ (?:an?|one)\ (?:half|third|quarter) | or )\b )    # nor is 3 and a half, nor 3 or 4
    (?! \ (?: halves | (?:ten|hundred|thousand)ths? )\b )            # nor 3 halves
    (?! \ (?:[ap]\.?m\b) )                                           # 5 am is not 5 pm
    (?: ,?+ \  [^\W\d_{_NUMERALS}] [^\d=+*<>\\^{_NUMERALS}]*+ | [ .]*+ )  # 18 dollars; 72, in total; 18.
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""For text with single spaces. Letters directly after a number (``3x``) make it text.

All repetitions are possessive, so there is no backtracking and the work is linear in the length of the text.
"""

_HALF_OF_DAY = re.compile(r"(?<=[0-9]) ?([ap])\.?m\b\.?")

_BOXED = re.compile(r"\$?+\\boxed ?+\{(?P<inside>[^{}]*+)\}\$?+ ?+\.?+")

_CHOICE = re.compile(r"\b(?P<first>\w+) or (?P<second>\w+) ?\?\Z")
_WORD = re.compile(r"\w+")


def extract_answer(completion: str) -> str | None:
    """The text after the last ``###``, stripped; without one, the text after CODI's ``The answer is:``.

    None if there is no marker or no text after it: such a completion has no answer and does not vote.
    """
    _, marker, answer = completion.rpartition(MARKER if MARKER in completion else CODI_MARKER)
    return (answer.strip() or None) if marker else None


def canonical_answer(text: str) -> str:
    """One spelling for all spellings of the same answer, so that ``==`` and a vote count agree.

    A number becomes an exact integer or reduced fraction: ``$1,000.00``, ``\\boxed{1000}`` and ``1e3`` are ``1000``,
    ``0.5`` is ``1/2``, ``3 1/2`` is ``7/2``, ``5%`` is ``5`` (GSM8K's gold answers are plain numbers), ``18 dollars``
    and ``18, in total`` are ``18``. Any other answer, such as a sentence of ProsQA, is text: case-folded, with single
    spaces and without final dots. A time of day is text too: ``5 p.m.`` and ``5PM`` are ``5 pm``. The work is linear in
    the length of `text`.
    """
    text = _without_box(" ".join(text.split()))
    number = _number(text)
    return _HALF_OF_DAY.sub(r" \1m", text.casefold().rstrip(" .")) if number is None else str(number)


def answers_match(predicted: str | None, gold: str, tolerance: float = 0.0) -> bool:
    """Whether an answer is the gold answer.

    Args:
        predicted: what `extract_answer` returned; None matches nothing.
        gold: the right answer.
        tolerance: two numbers match if they differ by at most this: 0.005 for gold answers that are rounded to two
            decimals, so that ``13/3`` matches ``4.33``.
    """
    if predicted is None:
        return False
    if canonical_answer(predicted) == canonical_answer(gold):
        return True
    if tolerance == 0:
        return False
    one, other = (_number(_without_box(" ".join(text.split()))) for text in (predicted, gold))
    return one is not None and other is not None and abs(one - other) <= Fraction(str(float(tolerance)))


def candidates(question: str) -> tuple[str, str] | None:
    """The two words that a question offers for choice, ``... Is Tom a lempus or scrompus?``, case-folded."""
    match = _CHOICE.search(question.strip())
    return None if match is None else (match["first"].casefold(), match["second"].casefold())


def named_option(answer: str, options: tuple[str, str]) -> str | None:
    """The candidate that an answer names, as in ``a lempus``. None if it names both or neither."""
    words = set(_WORD.findall(answer.casefold()))
    named = [option for option in options if option in words]
    return named[0] if len(named) == 1 else None


def _without_box(text: str) -> str:
    """The inside of LaTeX's ``\\boxed{...}``."""
    while len(text) <= _LONGEST_NUMBER and (match := _BOXED.fullmatch(text)):
        text = match["inside"].strip()
    return text


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
    if match["whole"]:
        if value >= 1:  # 3 5/2
            return None
        value += int(match["whole"])
    return -value if (match["sign1"] or match["sign2"] or "+") in _MINUS else value
