"""The embedded word problems, checked by a solver that reads their text, independent of the generator."""

import random
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
from helpers.word_solver import DAYS, TIMES, read_question, read_sentence, solve

SMALL = WordProblemsConfig(n_train=1500, n_grpo=1500, n_valid=300, n_test=300)


@cache
def splits(config: WordProblemsConfig = SMALL) -> dict[str, list[Problem]]:
    return make_splits(config)


def all_problems(config: WordProblemsConfig = SMALL) -> list[Problem]:
    return [problem for problems in splits(config).values() for problem in problems]


# ---------------------------------------- text, steps and answers agree


def only_train(**settings: int) -> WordProblemsConfig:
    return WordProblemsConfig(**{"n_train": 300, "n_grpo": 0, "n_valid": 0, "n_test": 0, **settings})


def check(config: WordProblemsConfig) -> None:
    """Solve every problem of the splits and compare."""
    for split, problems in make_splits(config).items():
        for problem in problems:
            answer, steps = solve(problem.question)
            assert str(answer) == problem.answer, problem.question
            assert problem.steps == (() if split == "grpo" else tuple(steps)), problem.question


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        only_train(max_steps=9, distractors=3, seed=5),
        only_train(min_steps=1, max_number=4),
        only_train(max_number=99, distractors=0),
    ],
    ids=["default", "more than a week", "tiny numbers", "large numbers"],
)
def test_answers_and_steps_are_what_the_text_says(config: WordProblemsConfig) -> None:
    check(config)


@pytest.mark.parametrize(
    ("name", "lie", "error"),
    [
        ("ADD", ("{p} loses {n} {t} .",), AssertionError),
        ("SUBTRACT", ("{p} finds {n} {t} .",), AssertionError),
        ("MULTIPLY", {2: ("{p} triples the {t} .",)}, AssertionError),
        ("MULTIPLY", {2: ("{p} doubles {t} .",)}, ValueError),
        ("START", ("{p} has {n} pens .",), KeyError),
        ("DAYS", DAYS[::-1], AssertionError),
        ("QUESTIONS", ("how many pens are left ?",), ValueError),
    ],
)
def test_a_generator_whose_sentences_lie_is_caught(
    monkeypatch: pytest.MonkeyPatch, name: str, lie: object, error: type[Exception]
) -> None:
    monkeypatch.setattr(word_problems, name, lie)
    with pytest.raises(error):
        check(only_train())


@pytest.mark.parametrize(
    ("same", "error"),
    [(word_problems.THINGS, ValueError), ((*word_problems.NAMES, *word_problems.THINGS), AssertionError)],
)
def test_a_distractor_about_the_asked_for_things_is_caught(
    monkeypatch: pytest.MonkeyPatch, same: tuple[str, ...], error: type[Exception]
) -> None:
    """Another owner's things leave open what is left; the same owner's overwrite the number."""

    def pick_same(rng: random.Random, items: tuple[str, ...], excluded: str) -> str:
        return excluded if items[0] in same else next(item for item in items if item != excluded)

    monkeypatch.setattr(word_problems, "_pick_other", pick_same)
    with pytest.raises(error):
        check(only_train())


# ---------------------------------------- what they are like


def test_steps_are_in_range_and_none_is_trivial() -> None:
    for problem in all_problems():
        for index, step in enumerate(problem.steps):
            before, symbol, number, result = re.fullmatch(r"<<(\d+)([-+*])(\d+)=(\d+)>>", step).groups()
            assert 1 <= int(before) <= 31
            assert 2 <= int(number) <= (4 if symbol == "*" else 31)
            assert 0 <= int(result) <= 31
            assert int(result) > 0 or index == len(problem.steps) - 1, "nothing happens to no things"


def test_numbers_of_steps_are_uniform() -> None:
    counts = Counter(len(problem.steps) for problem in splits()["train"])
    assert set(counts) == {2, 3, 4}
    # 1500 draws, expected 500 each, standard deviation 18
    assert all(abs(count - 500) < 4 * 18 for count in counts.values())


def test_every_operation_is_common() -> None:
    symbols = Counter(re.search(r"\d([-+*])\d", step)[1] for p in splits()["train"] for step in p.steps)
    shares = {symbol: count / symbols.total() for symbol, count in symbols.items()}
    assert min(shares["+"], shares["-"]) > 0.3
    assert shares["*"] > 0.1


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


def test_questions_are_of_fixed_length_and_vary() -> None:
    """The start has 5 words, an event 7, a distractor 5, the question 8 with its person or 6 without."""
    problems = splits()["train"]
    final = Counter(len(p.question.split()) - 5 - 7 * len(p.steps) - 5 for p in problems)
    assert set(final) == {6, 8}
    assert abs(final[6] - 750) < 4 * 20  # 1500 draws, standard deviation 19.4
    used = Counter(word for problem in problems for word in problem.question.split())
    rarest = min(used[word] for word in (*word_problems.NAMES, *word_problems.THINGS))
    assert rarest > 400
    assert len(word_problems.NAMES) == len(word_problems.THINGS) == 8
    assert len(word_problems.ADD) == len(word_problems.SUBTRACT) == 5
    verbs = [used[template.split()[1]] for template in (*word_problems.ADD, *word_problems.SUBTRACT)]
    assert min(verbs) > 250
    assert min(used[verb] for verb in TIMES) > 50


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


# ---------------------------------------- the splits


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


def test_every_split_gets_its_share_of_all_questions() -> None:
    """The hash is fair: 4000 made-up texts fall to the splits 2 : 4 : 1 : 1."""
    counts = Counter(split_of(f"text {number}") for number in range(4000))
    expected = {"train": 1000, "grpo": 2000, "valid": 500, "test": 500}
    assert all(abs(counts[split] - count) < 4 * 32 for split, count in expected.items())


def test_counts_extend_a_split_and_leave_the_others_alone() -> None:
    more = splits(WordProblemsConfig(n_train=1500, n_grpo=40, n_valid=300, n_test=500))
    assert more["train"] == splits()["train"]
    assert more["grpo"] == splits()["grpo"][:40]
    assert more["test"][:300] == splits()["test"]


def test_seeds_give_other_problems() -> None:
    other = splits(WordProblemsConfig(seed=1, n_train=300, n_grpo=0, n_valid=0, n_test=0))["train"]
    assert not {problem.question for problem in other} & {problem.question for problem in splits()["train"]}


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
        ({"n_grpo": -1}, "n_grpo=-1 must be"),
        ({"distractors": -1}, "distractors=-1 must be"),
        ({"distractors": 17}, "distractors=17 must be"),
        ({"min_steps": 0}, "min_steps=0 must be"),
        ({"min_steps": 5}, "min_steps=5 must be at most max_steps=4"),
        ({"max_steps": 17}, "max_steps=17 must be"),
        ({"max_number": 3}, "max_number=3 must be"),
        ({"max_number": 10_000}, "max_number=10000 must be"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, int], part: str) -> None:
    with pytest.raises(UserError, match=part):
        WordProblemsConfig(**wrong)
