"""ProsQA: every question can be solved from its text, and the graphs are like the published ones."""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from hashlib import blake2b
from itertools import chain, groupby
from math import sqrt
from pathlib import Path
from typing import Any

import datasets
import pytest

from dropout_grpo.data.files import load_problems, save_problems
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.tasks.base import SPLIT_NAMES, split_of
from dropout_grpo.tasks.prosqa import CONCEPTS, PEOPLE, ProsqaConfig, make_splits, vocabulary
from dropout_grpo.tasks.word_tokenizer import word_tokenizer

CONFIG = ProsqaConfig(n_train=400, n_grpo=50, n_valid=30, n_test=30)


@cache
def splits() -> dict[str, list[Problem]]:
    return make_splits(CONFIG)


def read(question: str) -> tuple[dict[str, list[str]], str, set[str]]:
    """(what each word is said to be, person asked about, the two candidates)."""
    *facts, final = re.split(r"(?<=\.) ", question)
    says = defaultdict(list)
    for fact in facts:
        subject, concept = re.fullmatch(r"(?:Every )?(\w+) is a (\w+)\.", fact).groups()
        assert fact.startswith("Every ") == subject.islower()
        says[subject].append(concept)
    person, first, second = re.fullmatch(r"Is (\w+) a (\w+) or (\w+)\?", final).groups()
    return says, person, {first, second}


def reachable(says: dict[Any, list[Any]], start: Any) -> dict[Any, int]:
    """Breadth-first: fewest steps to each concept."""
    steps, frontier = {start: 0}, [start]
    while frontier:
        further = [concept for word in frontier for concept in says.get(word, []) if concept not in steps]
        for concept in further:
            steps[concept] = steps[frontier[0]] + 1
        frontier = list(dict.fromkeys(further))
    return steps


def test_one_candidate_can_be_reached_and_it_is_the_answer_by_a_shortest_chain() -> None:
    for problem in splits()["train"]:
        says, person, candidates = read(problem.question)
        steps = reachable(says, person)
        (right,) = candidates & steps.keys()
        assert problem.answer == f"{person} is a {right}."
        assert right not in says, "a leaf"
        (wrong,) = candidates - {right}
        assert wrong not in says, "a leaf"
        assert any(wrong in reachable(says, other) for other in says if other.istitle())
        assert len(problem.steps) == steps[right] >= 3
        at = person
        for step in problem.steps:
            subject, at_next = re.fullmatch(r"(?:Every )?(\w+) is a (\w+)\.", step).groups()
            assert subject == at
            assert step in problem.question
            at = at_next
        assert at == right


def test_the_extra_columns_are_the_same_graph() -> None:
    for problem in splits()["train"]:
        symbols = problem.extra["idx_to_symbol"]
        assert len(set(symbols)) == len(symbols)
        says, person, candidates = read(problem.question)
        edges = [(symbols[parent], symbols[child]) for parent, child in problem.extra["edges"]]
        assert sorted(edges) == sorted((subject, concept) for subject in says for concept in says[subject])
        assert len(set(edges)) == len(edges)
        assert all(parent < child for parent, child in problem.extra["edges"]), "no cycles"
        assert symbols[problem.extra["root"]] == person
        assert problem.answer.endswith(f" {symbols[problem.extra['target']]}.")
        assert candidates == {symbols[problem.extra["target"]], symbols[problem.extra["neg_target"]]}


def test_graphs_are_like_the_published_ones() -> None:
    """Means over the 300 published validation problems; the tolerance is three standard errors of both together."""
    problems = splits()["train"]

    def near(published: float, deviation: float, value: Callable[[Problem], float]) -> None:
        mean = sum(value(problem) for problem in problems) / len(problems)
        assert mean == pytest.approx(published, abs=3 * deviation * sqrt(1 / 300 + 1 / len(problems)))

    near(22.82, 2.04, lambda p: len(p.extra["idx_to_symbol"]))
    near(36.26, 5.63, lambda p: len(p.extra["edges"]))
    near(3.753, 0.752, lambda p: len(p.steps))
    near(2.513, 0.728, lambda p: sum(symbol.istitle() for symbol in p.extra["idx_to_symbol"]))
    near(7.42, 1.60, lambda p: len(p.extra["idx_to_symbol"]) - len({parent for parent, _ in p.extra["edges"]}))
    near(13.37, 2.72, lambda p: len(reached(p, p.extra["root"])))
    near(9.11 + 1.29, 2.9, lambda p: len(reached(p, 0)))
    near(11.77 + 1.29, 3.0, lambda p: len(reached(p, 1)))
    near(2.077, 0.733, lambda p: reached(p, 1 - p.extra["root"])[p.extra["neg_target"]])
    near(0.508, 0.292, lambda p: place(p, p.steps[0]))
    near(0.507, 0.298, lambda p: place(p, p.steps[-1]))
    assert {len(problem.steps) for problem in problems} == {3, 4, 5, 6}


def reached(problem: Problem, root: int) -> dict[int, int]:
    """Nodes reached from a node of the graph, with the fewest steps."""
    children = defaultdict(list)
    for parent, child in problem.extra["edges"]:
        children[parent].append(child)
    return reachable(children, root)


def place(problem: Problem, fact: str) -> float:
    """Where among the facts one stands, 0 to 1."""
    facts = re.split(r"(?<=\.) ", problem.question)[:-1]
    return facts.index(fact) / (len(facts) - 1)


def test_splits() -> None:
    questions = [problem.question for problems in splits().values() for problem in problems]
    assert len(set(questions)) == 400 + 50 + 30 + 30
    for split, problems in splits().items():
        assert [problem.id for problem in problems] == list(range(len(problems)))
        assert {split_of(problem.question) for problem in problems} == {split}
        assert all(bool(problem.steps) == (split != "grpo") for problem in problems)
    again = make_splits(ProsqaConfig(n_train=0, n_grpo=0, n_valid=0, n_test=40))["test"]
    assert again[:30] == splits()["test"]
    assert make_splits(ProsqaConfig(seed=1, n_train=5, n_grpo=0, n_valid=0, n_test=0))["train"] != splits()["train"][:5]


def test_the_same_everywhere_and_always() -> None:
    """Recorded once; every run has a new PYTHONHASHSEED, so this also fails on the order of a set."""
    text = "\n".join(f"{p.question}|{p.steps}|{p.answer}|{p.extra}" for p in splits()["train"])
    assert blake2b(text.encode(), digest_size=8).hexdigest() == "3102077987c7c4b1"


def test_only_the_wanted_splits_are_made_and_they_are_the_same() -> None:
    assert make_splits(CONFIG, ("valid",)) == {"valid": splits()["valid"]}
    assert tuple(splits()) == SPLIT_NAMES


def test_the_words_are_those_of_the_published_files() -> None:
    """17 people and 38 concepts, and what stands between them; all of them occur."""
    assert (len(set(PEOPLE)), len(set(CONCEPTS))) == (17, 38)
    texts = [text for problem in splits()["train"] for text in (problem.question, *problem.steps, problem.answer)]
    words = {word for text in texts for word in re.findall(r"\w+", text.lower())}
    assert words == {name.lower() for name in PEOPLE + CONCEPTS} | {"a", "every", "is", "or"}


def test_sentences_are_phrases_of_the_vocabulary() -> None:
    """Two tokens per fact, three per question, and all words of the generator's texts are in the vocabulary."""
    assert len(vocabulary()) == len(set(vocabulary())) == 2 * 17 + 4 * 38
    tokenizer = word_tokenizer(vocabulary())
    question = "Every lempus is a zumpus. Tom is a lempus. Is Tom a zumpus or impus?"
    assert tokenizer.tokenize(question) == [
        *("every lempus", "is a zumpus.", "tom", "is a lempus."),
        *("is tom", "a zumpus", "or impus?"),
    ]
    for problem in splits()["train"]:
        ids = tokenizer.encode(problem.question)
        assert len(ids) == 2 * len(problem.extra["edges"]) + 3
        assert tokenizer.decode(ids) == problem.question.lower()
        assert tokenizer.unk_token_id not in tokenizer.encode("\n".join([*problem.steps, "### " + problem.answer]))


def test_coconuts_code_could_read_the_files(tmp_path: Path) -> None:
    """As facebookresearch/coconut's get_dataset does: columns of one type each, and pieces that encode to the whole."""
    save_problems(tmp_path / "valid.json", splits()["valid"])
    assert load_problems(tmp_path / "valid.json") == splits()["valid"]
    data = json.loads((tmp_path / "valid.json").read_text(encoding="utf-8"))
    graph = {"idx_to_symbol", "edges", "root", "target", "neg_target"}
    assert data[0].keys() == {"question", "steps", "answer"} | graph
    table = datasets.Dataset.from_dict({key: [record[key] for record in data] for key in data[0]})
    assert table[0] == data[0]
    tokenizer = word_tokenizer(vocabulary())
    for record in data:
        question, steps, answer = record["question"] + "\n", record["steps"], "### " + record["answer"]
        pieces = [tokenizer.encode(part) for part in (question, *(step + "\n" for step in steps), answer)]
        assert tokenizer.encode(question + "\n".join(steps) + "\n" + answer) == list(chain.from_iterable(pieces))


def test_levels_tell_every_fact_about_all_that_the_step_before_led_to() -> None:
    chains = make_splits(replace(CONFIG, n_train=100), ("train",))["train"]
    for problem in make_splits(replace(CONFIG, n_train=100, steps="levels"), ("train",))["train"]:
        symbols, edges = problem.extra["idx_to_symbol"], problem.extra["edges"]
        distance = {problem.extra["root"]: 0}  # by relaxation, not by a queue
        for _ in symbols:
            for parent, child in edges:
                if parent in distance:
                    distance[child] = min(distance.get(child, 99), distance[parent] + 1)
        assert len(problem.steps) == distance[problem.extra["target"]]
        for k, step in enumerate(problem.steps):
            told = [fact.removeprefix("Every ").split(" is a ") for fact in step.removesuffix(".").split(". ")]
            expected = [[symbols[a], symbols[b]] for a, b in edges if distance.get(a) == k]
            assert sorted(told) == sorted(expected)
            subjects = [subject for subject, _ in groupby(subject for subject, _ in told)]
            assert len(subjects) == len(set(subjects)), "facts about one node stand together"
    assert {len(problem.steps) for problem in chains} == {3, 4, 5, 6}


def test_smaller_graphs_when_asked_for() -> None:
    config = replace(CONFIG, n_train=200, min_nodes=7, max_nodes=12)
    problems = make_splits(config, ("train",))["train"]
    sizes = {len(problem.extra["idx_to_symbol"]) for problem in problems}
    assert max(sizes) <= 12
    assert len(sizes) > 3
    assert {len(problem.steps) for problem in problems} <= {3, 4, 5, 6}
    for least, most, message in (
        (6, 12, "min_nodes=6 must be at least 7"),
        (12, 11, "min_nodes=12 must be at most max_nodes=11"),
        (7, 39, "max_nodes=39 must be at least 7 and at most 38"),
    ):
        with pytest.raises(UserError, match=message):
            replace(CONFIG, min_nodes=least, max_nodes=most)
