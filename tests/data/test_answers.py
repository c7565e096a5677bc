"""Answers: extraction from completions, and equality."""

import random
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from types import FrameType
from typing import Any

import pytest

from dropout_grpo.data import answers
from dropout_grpo.data.answers import answers_match, candidates, canonical_answer, extract_answer, named_option


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("### 13", "13"),
        ("<<7+6=13>>\n### 13\n", "13"),
        ("### 5\n### 6", "6"),  # the last marker counts
        ("#### 72", "72"),  # GSM8K's own marker
        ("###72", "72"),
        ("### Tom is a lempus.", "Tom is a lempus."),
        ("13", None),
        ("## 13", None),
        ("", None),
        ("###", None),
        ("13 ### \n", None),
    ],
)
def test_extract_answer(completion: str, answer: str | None) -> None:
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("13", "13"),
        ("013", "13"),
        ("5 am", "5 am"),
        ("5 p.m.", "5 pm"),
        ("5PM", "5 pm"),
        ("7:30 A.M", "7:30 am"),
        ("5 pmol", "5"),  # a unit
        ("1,000", "1000"),
        ("12,345,678.50", "24691357/2"),
        ("$5.00", "5"),
        ("$ 5", "5"),
        ("5 €", "5"),
        ("-3", "-3"),
        ("\u22123", "-3"),  # Unicode minus
        ("\u2212$1,000.50", "-2001/2"),
        ("\u20133", "-3"),  # en dash
        ("\uff0d3", "-3"),  # full width
        ("5\u00a0000", "5 000"),  # a space of any kind is a space
        ("1e\u22123", "1/1000"),
        ("-1/2", "-1/2"),
        ("- 3", "-3"),
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("+3", "3"),
        ("-0", "0"),
        ("1/2", "1/2"),
        ("2 / 4", "1/2"),
        ("0.5", "1/2"),
        (".5", "1/2"),
        ("5%", "5"),
        ("5 % .", "5"),
        ("1e3", "1000"),
        ("2.5E-1", "1/4"),
        ("1E+03", "1000"),
        ("1e3 metres", "1000"),
        ("1/2 of the cake", "1/2"),
        ("5% of them", "5"),
        ("5 percent", "5"),
        ("18 dollars", "18"),
        ("18 millionaires", "18"),
        ("3 oranges and a pear", "3"),
        ("18 dollars and some cents.", "18"),
        ("18.", "18"),
        ("18 .", "18"),
        ("$1,250.00 per year", "1250"),
        ("72, in total", "72"),
        ("1,000, in total.", "1000"),
        ("3 1/2", "7/2"),
        ("-3 1/2 cups", "-7/2"),
        ("$3 1/2", "7/2"),
        (r"\boxed{18}", "18"),
        (r"$\boxed{ 1,000 }$.", "1000"),
        (r"\boxed{\$5}", "5"),
        (r"\boxed{Tom is a Lempus}", "tom is a lempus"),
        (r"\$18", "18"),
        (r"5\%", "5"),
        ("Tom is  a\nLempus.", "tom is a lempus"),
        ("Tom is a lempus .", "tom is a lempus"),
        ("Tom is a lempus. . ..", "tom is a lempus"),
    ],
)
def test_canonical_answer(text: str, canonical: str) -> None:
    assert canonical_answer(text) == canonical
    assert canonical_answer(canonical) == canonical, "a canonical answer is its own canonical answer"


@pytest.mark.parametrize(
    "text",
    [
        *("3x", "3x + 1", "18 = 18", "18 19", "18 or 19", "3:30", "10,80", "1,0000", "1/0", "--3", "-$-3"),
        *("1e9999", "1e999999999", "0x12", "1_000", "nan", "inf", "-", "$", "%", "[18]", "__import__('os')"),
        *("2+2", "2**9", "(18)", "max(3,4)", "18 - 3", "18 x 3", "1/2/3", "1e", "1.2.3", "1 000", "\u0663", "½"),
        *("72, or 73", "72,in total", "3 5/2", "3 1/2/3", "1 2 1/2", "3 1/0", r"\18", r"\boxed{1} \boxed{2}"),
        *("3 million", "2 dozen eggs", "$5 hundred", "1/2 million", "5 thousands", "2 dozens"),
        *("3 halves", "5 hundredths", "2 tenths of it", "3 and one half"),
        *("3 ½", "3 cups ½", "7 ²", "3 and a half", "3 and a half cups", "18 or twenty"),
    ],
)
def test_what_is_not_a_number_stays_text(text: str) -> None:
    """Had any of these been read as a number, its canonical spelling would differ from the text."""
    assert canonical_answer(text) == text


def test_answers_match() -> None:
    assert answers_match("1,000.0", "1000")
    assert answers_match("tom is a LEMPUS", "Tom is a lempus.")
    assert answers_match("2/4", "0.5")
    assert not answers_match("Tom is a rempus.", "Tom is a lempus.")
    assert not answers_match("13.0001", "13")
    assert not answers_match("131", "13")
    assert not answers_match("-13", "13")
    assert not answers_match(None, "13")
    assert not answers_match(None, "None")


def test_rounded_answers_match_within_a_tolerance() -> None:
    """4.33 is the gold answer of GSM-Plus where 13/3 is right; the bound itself matches, exactly."""
    assert answers_match("13/3", "4.33", 0.005)
    assert not answers_match("13/3", "4.33")
    assert answers_match("4.335", "4.33", 0.005)
    assert answers_match(r"\boxed{4.325}", "4.33", 0.005)
    assert not answers_match("4.3350001", "4.33", 0.005)
    assert answers_match("Lempus", "lempus", 0.005)
    assert not answers_match("lempus", "4.33", 100)
    assert not answers_match(None, "4.33", 100)


GARBAGE = {
    "many digits": "9" * 1_000_000,
    "many groups": "1" + ",000" * 100_000,
    "huge exponent": "1e" + "9" * 10_000,
    "long fraction": "1" * 10_000 + "/" + "3" * 10_000,
    "spaces": "-" + " " * 1_000_000 + "x",
    "words": "1 a" + " ." * 500_000 + "5",
    "short, for the regex": "1 a" + "." * 190 + "5",
    "signs": "-" * 1_000_000,
    "boxes": r"\boxed{" * 25 + "}" * 25,
    "many boxes": r"\boxed{" * 100_000 + "}" * 100_000,
}


def lines_run(work: Callable[[], Any]) -> int:
    """How many lines of Python, the library's included, run."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_wrong_and_cheap(garbage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: no line of Python depends on the length, and what could be more than linear in it, the
    search for a number and exact arithmetic, sees 200 characters at most. Splitting and case-folding are linear."""
    real, seen = answers._NUMBER, []

    class Pattern:
        def fullmatch(self, text: str) -> Any:
            seen.append(len(text))
            return real.fullmatch(text)

    def fraction(text: str) -> Fraction:
        seen.append(len(text))
        return Fraction(text)

    lines_run(lambda: answers_match("12", "13"))  # whatever the library compiles once
    plain = lines_run(lambda: answers_match(extract_answer("### 12"), "13"))
    monkeypatch.setattr(answers, "_NUMBER", Pattern())
    monkeypatch.setattr(answers, "Fraction", fraction)
    assert lines_run(lambda: answers_match(extract_answer("### " + garbage), "13")) <= plain + 10
    assert not answers_match(extract_answer("### " + garbage), "13")
    assert len(seen) >= 2, "the gold answer was looked at"
    assert max(seen) <= 200


SPELLINGS = (
    *("{n}", "{n:,}", "${n}", "{n}.", "{n} .", "{n}.0", "{n:,}.00", "{n} dollars", "{n:,} eggs a day.", "{n}%"),
    *(" {n}\n", "{n}e0", "€{n:,}", "{n}/1"),
)


def test_all_spellings_of_an_integer_are_that_integer() -> None:
    rng = random.Random(0)
    for _ in range(100):
        n = rng.randrange(10 ** rng.randrange(1, 13))
        for spelling in SPELLINGS:
            text = spelling.format(n=n)
            assert canonical_answer(text) == str(n), text
            for minus in "-\u2212\u2013":
                assert canonical_answer(minus + text.strip()) == str(-n), text
            assert not answers_match(text, str(n + 1)), text


def test_decimals_and_fractions_are_exact() -> None:
    """Against Python's own decimals."""
    rng = random.Random(1)
    for _ in range(300):
        digits, places, power = rng.randrange(10**9), rng.randrange(1, 9), rng.randrange(-9, 10)
        value = Decimal(digits).scaleb(-places)
        top, bottom = value.as_integer_ratio()
        assert answers_match(f"{value:f}", f"{top}/{bottom}")
        assert answers_match(f"{value:f}e{power}", f"{value.scaleb(power):f}")
        factor = rng.randrange(2, 99)
        assert canonical_answer(f"{top * factor}/{bottom * factor}") == canonical_answer(f"{top}/{bottom}")
        assert not answers_match(f"{value:f}", f"{value + Decimal('1e-9'):f}")


def test_the_choice_between_two_candidates() -> None:
    question = "Every lempus is a gerpus. Tom is a lempus. Is Tom a Lempus or scrompus?"
    options = candidates(question)
    assert options == ("lempus", "scrompus")
    assert named_option("Tom is a lempus.", options) == "lempus"
    assert named_option("SCROMPUS", options) == "scrompus"
    assert named_option("Tom is a lempus or scrompus.", options) is None
    assert named_option("Tom is a gerpus.", options) is None
    assert named_option("lempuses", options) is None
    assert candidates("is tom a lempus or scrompus ?") == options, "as a word-level tokenizer writes it"
    assert candidates("True or false: Tom is a lempus.") is None
    assert candidates("Is Tom a lempus or scrompus? Say which.") is None
