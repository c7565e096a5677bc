"""New problems from a worked one: other numbers, changed consistently in question, steps and answer.

The idea is GSM-Symbolic's (Mirzadeh et al. 2024, arXiv 2410.05229), without templates written by hand: the calculator
marks ``<<48/2=24>>`` of GSM8K say how the answer follows from the question's numbers. A number of the question is
replaced wherever it occurs, results are calculated again, and a result that a later step uses is replaced there too.

A problem is varied only if every number in its steps has exactly one origin: the question's digits, an earlier result,
or a word of the question (``twice``, ``a week``, ``%``), and if every result is used. A number of the question that is
also one of its words or results, or a percentage that a step has as a fraction, keeps its value. Draws are rejected
unless every result stays what it was: positive, and whole if it was whole.
"""

import ast
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from dropout_grpo.data.formats import COCONUT_COLUMNS, Columns
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.records import PROMPT, SOLUTION

_MARK = re.compile(r"<<([0-9.+\-*/() ]{1,200})=(-?[0-9]*\.?[0-9]+)>>")
_NUMBER = re.compile(r"(?<![\w.,:/])\$?(?P<value>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?![\w:/%]|[.,][0-9]| ?[ap]\.?m\b)")
_DIGITS = re.compile(r"[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+")
_WORD = re.compile(r"[a-z]+|[%$]")
_DRAWS = 200
_LARGEST = 10**7

_WORDS: dict[int, str] = {
    1: "one a an each first once single every per",
    2: "two twice double doubles doubled half halves both couple pair pairs second halved",
    3: "three triple triples tripled thrice third thirds yard yards",
    4: "four quarter quarters fourth fourths quadruple quarterly",
    5: "five fifth fifths weekday weekdays nickel nickels",
    6: "six sixth sixths",
    7: "seven seventh sevenths week weeks weekly",
    8: "eight eighth eighths",
    9: "nine ninth ninths",
    10: "ten tenth tenths decade decades dime dimes",
    11: "eleven",
    12: "twelve dozen dozens foot feet inch inches year years month months monthly yearly annual annually",
    13: "thirteen",
    14: "fourteen",
    15: "fifteen",
    16: "sixteen pound pounds ounce ounces",
    20: "twenty score",
    24: "day days daily hour hours",
    25: "quarter quarters",
    30: "thirty month months",
    40: "forty",
    50: "fifty half",
    52: "week weeks weekly year years",
    60: "sixty hour hours minute minutes second seconds",
    100: "hundred percent percentage cent cents % $ dollar dollars meter meters century",
    365: "year years day days",
    1000: "thousand kilogram kilograms gram grams kg kilometer kilometers km liter liters milliliters",
}
"""Constants, and the words of a question that bring each in."""

_UNITS = (
    "second minute hour day week fortnight month year decade century inch foot feet yard mile centimeter meter "
    "millimeter kilometer ounce pound ton gram kilogram milligram cup pint quart gallon "
    "teaspoon tablespoon liter milliliter penny pennies cent nickel dime quarter dollar dozen"
)
_UNIT = rf"(?:{'|'.join(unit + 'e?s?' for unit in _UNITS.split())})"
_ONE = r"(?:an?|one|1|each|every)"
_OF_UNITS = re.compile(
    rf"\b(?P<of>[0-9][0-9,]*) {_UNIT} (?:in|make|makes|equals?|is|are|=) {_ONE} {_UNIT}\b"
    rf"|\b{_ONE} {_UNIT} (?:has|have|is|=|equals|contains) (?P<has>[0-9][0-9,]*) {_UNIT}\b",
    re.IGNORECASE,
)
"""A relation of two units, such as ``3,600 seconds in an hour``: its number is not varied."""

Origin = Literal["question", "result", "constant"]


@dataclass(frozen=True, slots=True)
class Term:
    """A number in a step's expression."""

    start: int
    end: int
    value: Fraction
    origin: Origin


@dataclass(frozen=True, slots=True)
class Step:
    """A calculator mark taken apart."""

    expression: str
    result: Fraction
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """A problem whose numbers can be varied: its steps, and the values of its question that may change."""

    problem: Problem
    steps: tuple[Step, ...]
    free: tuple[int, ...]


def vary(problems: Sequence[Problem], copies: int, *, seed: int, columns: Columns = COCONUT_COLUMNS) -> list[Problem]:
    """Up to ``copies`` variations of every problem that can be varied, in the problems' order.

    A problem's variations depend only on the seed and the problem, differ from it and from each other, and are
    numbered from 0 with those of the others. Its other columns are kept, except those whose texts have the old numbers:
    ``columns``, and TRL's names of question and answer, ``prompt`` and ``solution``.

    Args:
        problems: with calculator marks as steps; others are passed over.
        copies: variations of each at most.
        seed: seed of the random numbers.
        columns: names under which question, steps and answer were read.
    """
    old = {PROMPT, SOLUTION, columns.question, columns.steps, columns.answer}
    varied = [variation for problem in problems for variation in variations(problem, copies, seed=seed)]
    return [
        replace(
            problem,
            id=index,
            extra={name: value for name, value in problem.extra.items() if name not in old},
        )
        for index, problem in enumerate(varied)
    ]


def variations(problem: Problem, copies: int, *, seed: int) -> Iterator[Problem]:
    """Up to ``copies`` different variations of one problem; none where it cannot be varied."""
    chain = analyse(problem)
    if chain is None:
        return
    draw = random.Random(f"{seed} {problem.question}")  # a text seeds the same stream on every platform
    seen = {problem.question}
    for _ in range(_DRAWS):
        if len(seen) > copies:
            return
        new = {value: _drawn(value, draw) for value in chain.free}
        variation = _with_numbers(chain, new)
        if variation is not None and variation.question not in seen:
            seen.add(variation.question)
            yield variation


def analyse(problem: Problem) -> Chain | None:
    """Where every number of a problem comes from; None if one is unknown, or if nothing is left to vary."""
    if problem.messages is not None:
        return None
    marks = [_MARK.fullmatch(step) for step in problem.steps]
    plain, fixed = _numbers_of(problem.question)
    allowed = _constants(problem.question) | fixed
    results: list[Fraction] = []
    steps: list[Step] = []
    used: dict[Origin, set[Fraction]] = {"question": set(), "result": set(), "constant": set()}
    for mark in marks:
        step = _step(mark, plain, allowed, results) if mark else None
        if step is None:
            return None
        for term in step.terms:
            used[term.origin].add(term.value)
        steps.append(step)
        results.append(step.result)
    if not steps or _fraction(problem.answer) != results[-1] or set(results[:-1]) - used["result"]:
        return None
    percentages = {100 * value for value in used["constant"] if value.denominator > 1}  # 20 percent: a step has 0.2
    apart = {*results, *percentages}
    free = tuple(sorted(int(value) for value in used["question"] if value > 1 and value not in apart))
    return Chain(problem, tuple(steps), free) if free else None


def evaluate(expression: str) -> Fraction | None:
    """The exact value of an expression of numbers, ``+ - * /`` and parentheses; None for anything else."""
    parsed = _parsed(expression)
    return None if parsed is None else _value(parsed, expression, None)


def _step(mark: re.Match[str], plain: set[int], allowed: set[Fraction], results: Sequence[Fraction]) -> Step | None:
    """A mark with the origin of each of its numbers; None if it does not evaluate or a number has no origin."""
    expression, result = mark[1].strip(), _fraction(mark[2])
    parsed = _parsed(expression)
    if parsed is None or result is None or _value(parsed, expression, None) != result:
        return None
    terms = []
    for node in sorted(_literals(parsed), key=lambda node: node.col_offset):
        end = node.end_col_offset or 0
        value = _fraction(expression[node.col_offset : end])
        if value is None:
            return None
        if value in results:
            if results.count(value) > 1 or value in plain or value in allowed:
                return None
            origin: Origin = "result"
        elif value in allowed:
            origin = "constant"
        elif value in plain:
            origin = "question"
        else:
            return None
        terms.append(Term(node.col_offset, end, value, origin))
    return Step(expression, result, tuple(terms))


def _with_numbers(chain: Chain, new: dict[int, int]) -> Problem | None:
    """The problem with other numbers in its question; None if a result changes its kind."""
    if len(set(new.values())) < len(new):
        return None  # numbers that differ stay different
    numbers, _ = _numbers_of(chain.problem.question)
    if set(new.values()) & (numbers - set(new)):
        return None  # and differ from those that stay
    values: dict[Fraction, Fraction] = {}  # old result -> new result
    steps = []
    for step in chain.steps:
        replaced: dict[int, Fraction] = {}
        text, last = "", 0
        for term in step.terms:
            value = term.value
            if term.origin == "result":
                value = values[value]
            elif term.origin == "question":
                value = Fraction(new.get(int(value), int(value)))
            if value != term.value:
                replaced[term.start] = value
                text, last = text + step.expression[last : term.start] + _text(value), term.end
        parsed = _parsed(step.expression)
        assert parsed is not None, "it was parsed before"
        result = _value(parsed, step.expression, replaced)
        if result is None or not _same_kind(result, step.result):
            return None
        steps.append(f"<<{text}{step.expression[last:]}={_text(result)}>>")
        values[step.result] = result
    question = _NUMBER.sub(lambda match: _renumbered(match, new), chain.problem.question)
    return replace(chain.problem, question=question, steps=tuple(steps), answer=_text(values[chain.steps[-1].result]))


def _renumbered(match: re.Match[str], new: dict[int, int]) -> str:
    """A number of the question with its new value, and a comma if it had one."""
    old = match["value"]
    value = int(old.replace(",", ""))
    if value not in new:
        return match[0]
    return match[0].replace(old, f"{new[value]:,}" if "," in old else str(new[value]))


def _drawn(value: int, draw: random.Random) -> int:
    """A whole number from half to twice the value, at least 2, and as round as it."""
    unit = next((unit for unit in (1000, 100, 50, 10, 5) if value % unit == 0 and value > unit), 1)
    return unit * draw.randint(max(2 if unit == 1 else 1, value // (2 * unit)), max(2 * value // unit, 2))


def _same_kind(new: Fraction, old: Fraction) -> bool:
    """Whether a result is of the old one's kind: same sign, and whole if the old one was, else at most two decimals."""
    if (new > 0) != (old > 0) or (new == 0) != (old == 0) or abs(new) > _LARGEST:
        return False
    return new.denominator == 1 if old.denominator == 1 else (new * 100).denominator == 1


def _numbers_of(question: str) -> tuple[set[int], set[Fraction]]:
    """Values of a question's plain whole numbers, and of all its other digits: decimals, percentages, times."""
    plain = {int(match["value"].replace(",", "")) for match in _NUMBER.finditer(question)}
    rest = _NUMBER.sub(" ", question)
    other = {Fraction(digits.replace(",", "")) for digits in _DIGITS.findall(rest)}
    for match in _OF_UNITS.finditer(question):
        other.add(Fraction((match["of"] or match["has"]).replace(",", "")))
    percent = {Fraction(digits) / 100 for digits in re.findall(r"([0-9]+(?:\.[0-9]+)?) ?(?:%|percent)", question)}
    return plain, other | percent


def _constants(question: str) -> set[Fraction]:
    words = set(_WORD.findall(question.casefold()))
    numbers = {Fraction(value) for value, names in _WORDS.items() if words & set(names.split())}
    halves = {Fraction(1, int(value)) for value in numbers if value in (2, 4, 5, 10)}  # written 0.5, .25, 0.2, 0.1
    return numbers | halves | {Fraction(1)}


def _parsed(expression: str) -> ast.expr | None:
    """The expression's tree. Nothing is executed; a mark's characters allow only numbers and arithmetic."""
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _literals(tree: ast.expr) -> list[ast.Constant]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def _value(node: ast.expr, text: str, replaced: dict[int, Fraction] | None) -> Fraction | None:
    """The value of a tree, with some of its numbers replaced by their place; None if it has none."""
    match node:
        case ast.Constant():
            if replaced and node.col_offset in replaced:
                return replaced[node.col_offset]
            return _fraction(text[node.col_offset : node.end_col_offset])
        case ast.UnaryOp(op=ast.USub()):
            value = _value(node.operand, text, replaced)
            return None if value is None else -value
        case ast.BinOp():
            left, right = _value(node.left, text, replaced), _value(node.right, text, replaced)
            if left is None or right is None:
                return None
            match node.op:
                case ast.Add():
                    return left + right
                case ast.Sub():
                    return left - right
                case ast.Mult():
                    return left * right
                case ast.Div():
                    return left / right if right else None
    return None


def _fraction(text: str) -> Fraction | None:
    """A decimal number, exactly; None for anything else."""
    return Fraction(text) if re.fullmatch(r"-?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", text) else None


def _text(value: Fraction) -> str:
    """A number of finitely many decimals as GSM8K writes it: 24, 0.2."""
    if value.denominator == 1:
        return str(value.numerator)
    decimals = next(n for n in range(1, 30) if (value * 10**n).denominator == 1)
    return f"{float(value):.{decimals}f}"
