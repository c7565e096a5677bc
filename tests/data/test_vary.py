"""Variations of worked problems: consistent numbers by hand, and properties that every variation has."""

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest

from dropout_grpo.cli.main import main
from dropout_grpo.data.files import load_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.data.vary import analyse, evaluate, variations, vary

NATALIA = Problem(
    id=0,
    question="Natalia sold clips to 48 friends in April, and half as many in May. How many clips in all?",
    steps=("<<48/2=24>>", "<<48+24=72>>"),
    answer="72",
)
TICKETS = Problem(
    id=2,
    question="Each of 4 classes buys 30 tickets at $2. They have $500. How much do they have left?",
    steps=("<<4*30=120>>", "<<120*2=240>>", "<<500-240=260>>"),
    answer="260",
)


def a_problem(question: str, *steps: str, answer: str | None = None) -> Problem:
    last = steps[-1].rpartition("=")[2].removesuffix(">>")
    return Problem(id=0, question=question, steps=steps, answer=answer or last)


def free(problem: Problem) -> tuple[int, ...] | None:
    chain = analyse(problem)
    return None if chain is None else chain.free


def test_numbers_change_alike_in_question_steps_and_answer() -> None:
    for variation in variations(NATALIA, 20, seed=0):
        numbers = re.findall(r"[0-9]+", variation.question)
        n = int(numbers[0])
        assert variation.question == NATALIA.question.replace("48", str(n))
        assert variation.steps == (f"<<{n}/2={n // 2}>>", f"<<{n}+{n // 2}={n + n // 2}>>")
        assert (n % 2, variation.answer) == (0, str(n + n // 2))  # halves of clips are no natural quantity
        assert 24 <= n <= 96


def test_the_numbers_drawn_are_the_seeds_alone() -> None:
    problems = [NATALIA, TICKETS]
    first = vary(problems, 3, seed=5)
    assert first == vary(problems, 3, seed=5)
    assert [p.id for p in first] == list(range(6))
    assert [p.question for p in first[3:]] == [p.question for p in vary([TICKETS], 3, seed=5)]
    assert [p.question for p in first] != [p.question for p in vary(problems, 3, seed=6)]
    assert len({p.question for p in first} | {p.question for p in problems}) == 8


@pytest.mark.parametrize("problem", [NATALIA, TICKETS, a_problem("He has 12 + 6 of 24.", "<<(12+6)*24=432>>")])
def test_every_variation_evaluates_and_ends_in_its_answer(problem: Problem) -> None:
    count = 0
    for variation in variations(problem, 50, seed=1):
        count += 1
        results = []
        for step, old in zip(variation.steps, problem.steps, strict=True):
            expression, _, result = step[2:-2].partition("=")
            assert evaluate(expression) == Fraction(result)
            results.append(Fraction(result))
            assert Fraction(result) > 0
            assert re.sub(r"[0-9]+", "n", step) == re.sub(r"[0-9]+", "n", old)
        assert Fraction(variation.answer) == results[-1]
        assert re.sub(r"[0-9]+", "n", variation.question) == re.sub(r"[0-9]+", "n", problem.question)
    assert count >= 20


def test_numbers_that_have_words_or_decimals_of_their_own_stay() -> None:
    assert free(a_problem("He walks 12 feet and 20 more.", "<<12+20=32>>")) == (20,)  # 12 may be the inches of a foot
    assert free(a_problem("He buys 7 pens. He works a week and 9 days.", "<<7+9=16>>")) == (9,)
    assert free(a_problem("He pays $1.50 for each of 8 pens.", "<<8*1.50=12>>")) == (8,)
    assert free(a_problem("He has 80 pens and loses 25% of them.", "<<25/100*80=20>>")) == (80,)
    assert free(a_problem("He has 80 pens and loses 25% of them.", "<<80*.25=20>>")) == (80,)
    assert free(a_problem("At 6:30 he has 30 pens, at 6 p.m. 10 more.", "<<30+10=40>>")) == (10,)  # 30 is in 6:30 too
    assert free(a_problem("Of 40 pens 3/5 are red, 5 blue.", "<<40*3/5=24>>", "<<24+5=29>>")) == (40,)


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(a_problem("He has 5 pens and 8 cups.", "<<5+9=14>>"), id="a number of no origin"),
        pytest.param(a_problem("He has 5 pens and 8 cups.", "<<5+8=14>>"), id="a wrong step"),
        pytest.param(a_problem("He has 5 pens and 8 cups.", "<<5+8=13>>", answer="14"), id="another answer"),
        pytest.param(a_problem("He has 5 pens and 8 cups.", "5+8=13"), id="no mark"),
        pytest.param(a_problem("5 pens, 8 cups.", "<<5+8=13>>", "<<8-5=3>>"), id="a result that is not used"),
        pytest.param(a_problem("5, 8, 4, 9, 6.", "<<5+8=13>>", "<<4+9=13>>", "<<13+13-6=20>>"), id="two results alike"),
        pytest.param(a_problem("5, 8 and 13.", "<<5+8=13>>", "<<13-8=5>>"), id="a result that the question has too"),
        pytest.param(a_problem("6 and 4, half.", "<<6-4=2>>", "<<6/2=3>>"), id="a result that a word has too"),
        pytest.param(a_problem("He has 6 pens.", "<<6/0=1>>"), id="division by zero"),
        pytest.param(a_problem("He has 5 pens.", "<<5**2=25>>"), id="another operator"),
        pytest.param(Problem(id=0, question="He has 5.", steps=(), answer="5"), id="no steps"),
    ],
)
def test_what_is_not_understood_is_not_varied(problem: Problem) -> None:
    assert list(variations(problem, 3, seed=0)) == []


def test_a_result_keeps_its_kind_and_numbers_stay_apart() -> None:
    change = a_problem("He pays $17 with a $20 bill and gives 1 away.", "<<20-17=3>>", "<<3-1=2>>")
    drawn = [tuple(map(int, re.findall(r"[0-9]+", p.question))) for p in variations(change, 30, seed=0)]
    assert all(bill - price - 1 > 0 for price, bill, _ in drawn)
    assert all(bill % 5 == 0 for _, bill, _ in drawn)  # as round as before
    split = a_problem("4 men share 20 pens and 8 cups.", "<<20/4=5>>", "<<5+8=13>>")
    for p in variations(split, 30, seed=0):
        men, pens, cups = map(int, re.findall(r"[0-9]+", p.question))
        assert pens % men == 0
        assert len({men, pens, cups}) == 3


@pytest.mark.parametrize("text", ["__import__('os')", "1,2", "2**9", "1//2", "a", "", "(" * 150 + "1", "1 if 1 else 2"])
def test_nothing_but_arithmetic_evaluates(text: str) -> None:
    assert evaluate(text) is None


def test_the_command_writes_a_file_for_the_curriculum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "gsm8k.jsonl"
    answer = "Half of 48 is <<48/2=24>>24.\n48+24 = <<48+24=72>>72\n#### 72"
    source.write_text(json.dumps({"question": NATALIA.question, "answer": answer}) + "\n", encoding="utf-8")
    words = ["data", "--vary", str(source), "--copies", "3", "--seed", "5", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert load_problems(tmp_path / "out" / "vary.json") == vary([NATALIA], 3, seed=5)
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    source.write_text(json.dumps({"question": "How?", "steps": ["5+8=13"], "answer": "13"}) + "\n", encoding="utf-8")
    assert main([*words[:-1], str(tmp_path / "other")]) == 2
    assert "none of the problems can be varied" in capsys.readouterr().err


def test_a_percentage_in_words_is_not_varied_where_a_step_has_it_as_a_fraction() -> None:
    """Fault: "30 percent" beside 0.2, and a wrong answer."""
    text = "Tom has 20 apples. He gives 20 percent of them to Ann, and 2 to Bob. How many has he?"
    assert free(a_problem(text, "<<20*.2=4>>", "<<20-4=16>>", "<<16-2=14>>")) == (2,)
    assert free(a_problem(text, "<<20*20/100=4>>", "<<20-4=16>>", "<<16-2=14>>")) == (2, 20)


@pytest.mark.parametrize(
    ("relation", "number"),
    [
        ("There are 3,600 seconds in an hour", 3600),
        ("One mile is 5280 feet", 5280),
        ("It takes 4 quarts to fill it, and 4 quarts make one gallon", 4),
        ("an hour has 60 minutes", 60),
        ("1 gallon = 16 cups", 16),
    ],
)
def test_the_constants_of_units_stay(relation: str, number: int) -> None:
    problem = a_problem(f"{relation}. Ann has 7 of the larger unit. How many?", f"<<7*{number}={7 * number}>>")
    assert free(problem) == (7,)
    assert all(relation in variation.question for variation in variations(problem, 5, seed=0))
    rate = a_problem("Ann works 9 hours in each shift and 14 shifts. How many?", "<<9*14=126>>")
    assert free(rate) == (9, 14), "a shift is no unit"


def test_other_column_names_are_read_and_their_old_numbers_are_not_written(tmp_path: Path) -> None:
    """``--data.columns``, which the message about a missing column names."""
    question, steps = "Tom has 48 clips and buys half as many. How many has he?", ["<<48/2=24>>", "<<48+24=72>>"]
    source = tmp_path / "own.json"
    source.write_text(
        json.dumps([{"problem": question, "steps": steps, "result": "72", "kind": "a"}]), encoding="utf-8"
    )
    names = ["--data.columns.question", "problem", "--data.columns.answer", "result"]
    assert main(["data", "--vary", str(source), *names, "--copies", "1", "--out", str(tmp_path / "out")]) == 0
    (written,) = json.loads((tmp_path / "out" / "vary.json").read_text(encoding="utf-8"))
    expected = vary([Problem(question=question, steps=tuple(steps), answer="72", id=0)], 1, seed=0)[0]
    assert written == {
        "question": expected.question, "steps": list(expected.steps), "answer": expected.answer, "kind": "a"
    }  # fmt: skip
