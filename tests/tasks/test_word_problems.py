"""The embedded word problems, checked by a solver that reads their text, independent of the generator."""

import re
from collections import Counter
from functools import cache
from hashlib import blake2b
from math import sqrt

import pytest

from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.tasks import base, word_problems
from dropout_grpo.tasks.base import split_of
from dropout_grpo.tasks.word_problems import WordProblemsConfig, make_splits, vocabulary
from helpers.word_solver import read_question, read_sentence, solve

SMALL = WordProblemsConfig(n_train=1500, n_grpo=1500, n_valid=300, n_test=300)


@cache
def splits(config: WordProblemsConfig = SMALL) -> dict[str, list[Problem]]:
    return make_splits(config)


def all_problems(config: WordProblemsConfig = SMALL) -> list[Problem]:
    return [problem for problems in splits(config).values() for problem in problems]


def only_train(**settings: int) -> WordProblemsConfig:
    return WordProblemsConfig(**{"n_train": 300, "n_grpo": 0, "n_valid": 0, "n_test": 0, **settings})


@pytest.mark.parametrize(
    "config",
    [SMALL, only_train(max_steps=9, distractors=3, seed=5), only_train(min_steps=1, max_number=4)],
    ids=["default", "more than a week", "tiny numbers"],
)
def test_answers_and_steps_are_what_the_text_says(config: WordProblemsConfig) -> None:
    for split, problems in make_splits(config).items():
        for problem in problems:
            answer, steps = solve(problem.question)
            assert str(answer) == problem.answer, problem.question
            assert problem.steps == (() if split == "grpo" else tuple(steps)), problem.question


def test_steps_are_in_range_and_none_is_trivial() -> None:
    for problem in all_problems():
        for index, step in enumerate(problem.steps):
            before, symbol, number, result = re.fullmatch(r"<<(\d+)([-+*])(\d+)=(\d+)>>", step).groups()
            assert 1 <= int(before) <= 31
            assert 2 <= int(number) <= (4 if symbol == "*" else 31)
            assert 0 <= int(result) <= 31
            assert int(result) > 0 or index == len(problem.steps) - 1, "nothing happens to no things"


def test_guessing_is_poor() -> None:
    """Neither the most common answer nor any simple choice among the numbers of the text gets far."""
    problems = all_problems()
    answers = [int(problem.answer) for problem in problems]
    assert Counter(answers).most_common(1)[0][1] / len(answers) < 0.08
    numbers = [[int(word) for word in problem.question.split() if word.isdigit()] for problem in problems]
    for choose in (min, max, lambda ns: ns[0], lambda ns: ns[-1], lambda ns: sum(ns) % 32):
        right = sum(choose(ns) == answer for ns, answer in zip(numbers, answers, strict=True))
        assert right / len(answers) < 0.08


def test_the_distractor_is_of_another_owner_and_other_things_anywhere_after_the_first_sentence() -> None:
    places: Counter[tuple[int, int]] = Counter()
    pairs: Counter[tuple[bool, str, str]] = Counter()
    for problem in splits()["train"]:
        *told, final = problem.question.removesuffix(" ?").split(" . ")
        assert len(told) == len(problem.steps) + 2
        readings = [read_sentence(sentence) for sentence in told]
        story = readings[0][0]
        assert story["t"] == read_question(final)["t"]
        assert read_question(final).get("p") in (None, story["p"])
        about = [(who["p"] == story["p"], who["t"] == story["t"]) for who, _, _ in readings]
        (place,) = [place for place, same in enumerate(about) if same != (True, True)]
        who, effect, _ = readings[place]
        assert (about[place], effect) == ((False, False), "=")
        places[len(problem.steps), place] += 1
        pairs[True, story["p"], who["p"]] += 1
        pairs[False, story["t"], who["t"]] += 1
    # 1500 draws: n steps leave n + 1 places, each as likely
    for n in (2, 3, 4):
        share = 1 / 3 / (n + 1)
        for place in range(1, n + 2):
            assert abs(places.pop((n, place)) - 1500 * share) < 4 * sqrt(1500 * share * (1 - share))
    assert not places
    # 8 * 7 ordered pairs of people and of things, 27 expected of each, standard deviation 5
    assert len(pairs) == 2 * 8 * 7
    assert all(abs(count - 1500 / 56) < 5 * 5.2 for count in pairs.values()), pairs


def used_words(config: WordProblemsConfig) -> set[str]:
    used = set()
    for problem in all_problems(config):
        used |= set(problem.question.split()) | {problem.answer}
        used |= set(re.findall(r"\d+|<<|>>|.", "".join(problem.steps)))
    return used


def test_the_vocabulary_is_closed_and_nothing_in_it_is_idle() -> None:
    words = vocabulary(SMALL)
    assert len(words) == len(set(words)) == 87
    assert words[:32] == [str(number) for number in range(32)]
    assert words[32:38] == ["<<", ">>", "+", "-", "*", "="]
    assert words[38:] == sorted(words[38:])
    assert set(words) - used_words(SMALL) == {"friday", "saturday", "sunday"}, "4 steps end on thursday"
    assert used_words(SMALL) < set(words)
    week = only_train(n_train=1000, max_steps=7)
    assert used_words(week) == set(vocabulary(week)) == set(words)


def test_splits_are_disjoint_distinct_and_of_the_asked_size() -> None:
    sizes = {split: len(problems) for split, problems in splits().items()}
    assert sizes == {"train": 1500, "grpo": 1500, "valid": 300, "test": 300}
    assert len({problem.question for problem in all_problems()}) == 3600
    for problems in splits().values():
        assert [problem.id for problem in problems] == list(range(len(problems)))


def test_a_question_belongs_to_one_split_whatever_the_seed() -> None:
    for seed in (0, 1, 2):
        config = WordProblemsConfig(seed=seed, n_train=50, n_grpo=50, n_valid=50, n_test=50, max_steps=3)
        for split, problems in splits(config).items():
            assert {split_of(problem.question) for problem in problems} == {split}


FIRST = (
    "eve owns 12 balls . on monday eve makes 18 balls . on tuesday eve sells 29 balls . finn has 5 shells . "
    "on wednesday eve triples the balls . how many balls are left ?"
)


def test_the_same_everywhere_and_always() -> None:
    """Recorded once: a change of these words is a change of every number ever reported on this task.

    Every test run has a new PYTHONHASHSEED, so this also fails where the order of a set slipped in.
    """
    assert splits()["train"][0].question == FIRST
    text = "\n".join("|".join([p.question, *p.steps, p.answer]) for p in all_problems())
    assert blake2b(text.encode(), digest_size=8).hexdigest() == "13e492be813a2c4b"


def test_too_many_problems_for_the_space(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("START", "ADD", "SUBTRACT", "QUESTIONS"):
        monkeypatch.setattr(word_problems, name, getattr(word_problems, name)[:1])
    monkeypatch.setattr(word_problems, "THINGS", word_problems.THINGS[:2])
    monkeypatch.setattr(base, "_MAX_MISSES", 1000)
    tiny = {"min_steps": 1, "max_steps": 1, "distractors": 0, "max_number": 4, "n_grpo": 0, "n_valid": 0}
    # Start 2: +2, -2, *2; start 3: -2, -3; start 4: -2, -3, -4. These eight stories of 8 people and 2 things make
    # 128 questions, about an eighth of them for the test split.
    with pytest.raises(UserError, match=r"n_test=500, but only \d+ different .*; lower n_test, or choose settings"):
        make_splits(WordProblemsConfig(n_train=0, n_test=500, **tiny))
    actual = make_splits(WordProblemsConfig(n_train=20, n_test=0, **tiny))["train"]
    assert len({problem.question for problem in actual}) == 20


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"n_train": -1}, "n_train=-1 must be"),
        ({"distractors": 17}, "distractors=17 must be"),
        ({"min_steps": 5}, "min_steps=5 must be at most max_steps=4"),
        ({"max_number": 3}, "max_number=3 must be"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, int], part: str) -> None:
    with pytest.raises(UserError, match=part):
        WordProblemsConfig(**wrong)


HAND_MADE = (
    "tom has 7 apples . on monday tom buys 6 apples . ann owns 9 pens . on tuesday tom loses 4 apples . "
    "how many apples does tom have now ?"
)


@pytest.mark.parametrize(
    ("old", "new", "answer", "steps"),
    [
        ("", "", 9, ["<<7+6=13>>", "<<13-4=9>>"]),
        ("does tom have now", "are left", 9, ["<<7+6=13>>", "<<13-4=9>>"]),
        ("buys 6", "drops 6", -3, ["<<7-6=1>>", "<<1-4=-3>>"]),
        ("tom loses 4", "tom quadruples the", 52, ["<<7+6=13>>", "<<13*4=52>>"]),
        ("apples does tom", "pens does ann", 9, []),
        ("ann owns 9 pens", "tom owns 9 pens", 9, ["<<7+6=13>>", "<<13-4=9>>"]),
        ("ann owns 9 pens", "ann owns 9 apples", 9, ["<<7+6=13>>", "<<13-4=9>>"]),
    ],
)
def test_the_solver_itself(old: str, new: str, answer: int, steps: list[str]) -> None:
    assert solve(HAND_MADE.replace(old, new)) == (answer, steps)
