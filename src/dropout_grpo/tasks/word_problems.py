"""Word problems in the style of GSM8K, generated from a seed.

A person has a number of things. A few events, one per day, add to them, take from them or multiply them, and the
question comes last. Distractors are sentences about another person and other things, whose number must be ignored.
Example; the steps keep a running total:

    tom has 7 stamps . on monday tom buys 6 stamps . ann owns 9 coins . on tuesday tom loses 4 stamps .
    how many stamps does tom have now ?
    steps <<7+6=13>> <<13-4=9>>, answer 9
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from dropout_grpo.config.ranges import check_ranges, ranged, seed_field
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.tasks.base import SPLIT_NAMES, Task, below, deal_split, pick

SYMBOLS = ("<<", ">>", "+", "-", "*", "=")

_MAX_STEPS = 16
_MAX_NUMBER = 9_999


# The sentences: a closed vocabulary, in which punctuation marks are words. Fields: {p} is the person, {t} the things,
# and {n} a number of at least 2, so that things are always plural. Each event starts with its day, in order; monday
# follows sunday. No sentence after the first states how many of the things in question there are.
NAMES = ("ann", "ben", "eve", "finn", "jack", "mia", "olga", "tom")
THINGS = ("apples", "balls", "books", "cards", "coins", "pens", "shells", "stamps")

START = (
    "{p} has {n} {t} .",
    "{p} owns {n} {t} .",
)
ADD = (
    "{p} buys {n} {t} .",
    "{p} finds {n} {t} .",
    "{p} makes {n} {t} .",
    "{p} wins {n} {t} .",
    "{p} borrows {n} {t} .",
)
SUBTRACT = (
    "{p} loses {n} {t} .",
    "{p} breaks {n} {t} .",
    "{p} sells {n} {t} .",
    "{p} drops {n} {t} .",
    "{p} returns {n} {t} .",
)
MULTIPLY = {
    2: ("{p} doubles the {t} .",),
    3: ("{p} triples the {t} .",),
    4: ("{p} quadruples the {t} .",),
}
"""Sentences by factor."""

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
QUESTIONS = (
    "how many {t} does {p} have now ?",
    "how many {t} are left ?",
)


@dataclass(frozen=True, kw_only=True)
class WordProblemsConfig:
    """Settings of the word problems. A larger count appends problems to its split and changes no other split.

    Attributes:
        seed: seed of all problems. The same settings give the same problems on every platform.
        n_train: number of problems for the curriculum, with steps.
        n_grpo: number of problems for GRPO, without steps.
        n_valid: number of problems to choose settings and checkpoints by.
        n_test: number of problems for the final results.
        min_steps: least number of events in a problem. The number of events is uniform.
        max_steps: largest number of events in a problem.
        distractors: number of sentences in each question that do not change its answer; never the first sentence.
        max_number: largest number in questions, steps and answers.
    """

    seed: int = seed_field()
    n_train: int = ranged(2_000, at_least=0)
    n_grpo: int = ranged(20_000, at_least=0)
    n_valid: int = ranged(1_000, at_least=0)
    n_test: int = ranged(2_000, at_least=0)
    min_steps: int = ranged(2, at_least=1, at_most=_MAX_STEPS)
    max_steps: int = ranged(4, at_least=1, at_most=_MAX_STEPS)
    distractors: int = ranged(1, at_least=0, at_most=_MAX_STEPS)
    max_number: int = ranged(31, at_least=4, at_most=_MAX_NUMBER)

    def __post_init__(self) -> None:
        check_ranges(self, "word_problems")
        if self.min_steps > self.max_steps:
            raise UserError(f"word_problems.min_steps={self.min_steps} must be at most max_steps={self.max_steps}.")


def make_splits(config: WordProblemsConfig, wanted: Sequence[str] = SPLIT_NAMES) -> dict[str, list[Problem]]:
    """Make the wanted splits of ``train``, ``grpo`` (without steps), ``valid`` and ``test``. All questions differ.

    Raises:
        UserError: there are fewer questions than a split needs.
    """
    return {
        split: deal_split(
            "word_problems",
            split,
            getattr(config, f"n_{split}"),
            config.seed,
            lambda rng: draw_problem(rng, config),
        )
        for split in wanted
    }


def vocabulary(config: WordProblemsConfig) -> list[str]:
    """Every word of questions, steps and answers: numbers in order, step symbols, then words, sorted."""
    return [*(str(number) for number in range(config.max_number + 1)), *SYMBOLS, *_words()]


def draw_problem(rng: random.Random, config: WordProblemsConfig) -> Problem:
    """Draw a problem with id 0."""
    person, thing = pick(rng, NAMES), pick(rng, THINGS)
    n_steps = config.min_steps + below(rng, config.max_steps - config.min_steps + 1)
    total = 2 + below(rng, config.max_number - 1)
    told = [_tell(rng, START, person, thing, total)]
    steps = []
    for step in range(n_steps):
        symbol, number, result = _draw_event(rng, total, config.max_number, is_last=step == n_steps - 1)
        templates = {"+": ADD, "-": SUBTRACT}.get(symbol) or MULTIPLY[number]
        day = DAYS[step % len(DAYS)]
        told.append(f"on {day} " + _tell(rng, templates, person, thing, number))
        steps.append(f"<<{total}{symbol}{number}={result}>>")
        total = result
    for _ in range(config.distractors):
        told.insert(1 + below(rng, len(told)), _draw_distractor(rng, person, thing, config.max_number))
    question = pick(rng, QUESTIONS).format(p=person, t=thing)
    return Problem(id=0, question=" ".join([*told, question]), steps=tuple(steps), answer=str(total))


def _draw_event(rng: random.Random, total: int, max_number: int, *, is_last: bool) -> tuple[str, int, int]:
    """Draw (symbol, number >= 2, result). Results stay in range; only the last may be 0.

    The operation is uniform over the possible ones, the result of a sum or difference uniform over its range.
    """
    least = 0 if is_last else 1
    choices = []
    if total + 2 <= max_number:
        choices.append("+")
    if total - 2 >= least:
        choices.append("-")
    if total * 2 <= max_number:
        choices.append("*")
    symbol = pick(rng, choices)
    if symbol == "*":
        factor = pick(rng, [factor for factor in MULTIPLY if total * factor <= max_number])
        return symbol, factor, total * factor
    if symbol == "+":
        number = 2 + below(rng, max_number - total - 1)
        return symbol, number, total + number
    number = 2 + below(rng, total - least - 1)
    return symbol, number, total - number


def _draw_distractor(rng: random.Random, person: str, thing: str, max_number: int) -> str:
    """A first sentence about another person and other things, which leaves the answer unchanged."""
    owner = _pick_other(rng, NAMES, person)
    things = _pick_other(rng, THINGS, thing)
    return _tell(rng, START, owner, things, number=2 + below(rng, max_number - 1))


def _tell(rng: random.Random, templates: Sequence[str], person: str, thing: str, number: int) -> str:
    """Fill in one of the templates."""
    return pick(rng, templates).format(p=person, t=thing, n=number)


def _pick_other(rng: random.Random, items: Sequence[str], *excluded: str) -> str:
    while (item := pick(rng, items)) in excluded:
        pass
    return item


def _words() -> list[str]:
    """Every word that a sentence can contain except numbers, sorted."""
    multiply = [template for templates in MULTIPLY.values() for template in templates]
    templates = [*START, *ADD, *SUBTRACT, *multiply, *QUESTIONS, "on"]
    fixed = {word for template in templates for word in template.split() if not word.startswith("{")}
    return sorted(fixed | set(NAMES) | set(THINGS) | set(DAYS))


TASK = Task(name="word_problems", config=WordProblemsConfig, make_splits=make_splits, vocabulary=vocabulary)
