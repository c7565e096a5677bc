"""ProsQA, after the description in the Coconut paper: which of two concepts does a person belong to?

The facts are the edges of a random directed graph without cycles. Two people are the roots of two families of concepts.
The question names one leaf of each family, and only one of them can be reached from the person asked about. A graph
grows node by node, mostly within one family and below deep nodes, which makes chains long and wrong turns frequent
(Hao et al. 2024, arXiv 2412.06769, appendix). Names, concepts and sentences are those of the published files. The
constants of the growth are our choice: they make graphs similar to those of the 300 published validation problems.
Means (standard deviations), ours over 5,000 problems:

    |                                         | published     | ours          |
    |-----------------------------------------|---------------|---------------|
    | nodes                                   | 22.8 (2.0)    | 22.8 (2.0)    |
    | edges, one per sentence                 | 36.3 (5.6)    | 36.2 (5.8)    |
    | people                                  | 2.5 (0.7)     | 2.6 (0.8)     |
    | leaves                                  | 7.4 (1.6)     | 7.3 (1.6)     |
    | reached from the person asked about     | 12.4 (2.7)    | 12.3 (2.7)    |
    | steps of the chain                      | 3.75 (0.75)   | 3.77 (0.80)   |
    | shortest chains                         | 1.6 (0.9)     | 1.6 (0.9)     |
    | steps to the wrong leaf from its person | 2.1 (0.7)     | 2.1 (0.8)     |
    | characters of the question              | 937 (147)     | 935 (151)     |
    | 3, 4, 5, 6 steps, in %                  | 41, 44, 12, 2 | 43, 41, 13, 3 |
    | right candidate first, in %             | 48            | 50            |
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, TypeVar

from dropout_grpo.config.ranges import check_ranges, ranged, seed_field
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.tasks.base import SPLIT_NAMES, Task, below, deal_split, pick

_T = TypeVar("_T")

PEOPLE = (
    *("Alex", "Bob", "Carol", "Davis", "Eva", "Fae", "Gabriel", "Jack", "Max"),
    *("Oliver", "Polly", "Rex", "Sally", "Sam", "Stella", "Tom", "Wren"),
)
CONCEPTS = (
    *("bompus", "boompus", "brimpus", "chorpus", "dumpus", "felpus", "fompus", "gerpus", "gorpus", "grimpus"),
    *("gwompus", "hilpus", "impus", "jelpus", "jompus", "kerpus", "lempus", "lorpus", "numpus", "quimpus"),
    *(
        "rempus",
        "rompus",
        "rorpus",
        "scrompus",
        "shumpus",
        "sterpus",
        "storpus",
        "terpus",
        "timpus",
        "tumpus",
    ),
    *("vumpus", "worpus", "wumpus", "yerpus", "yimpus", "yumpus", "zhorpus", "zumpus"),
)

_NODES = 28  # as in the published files, before nodes without edges are dropped
_LEAST_NODES = 7  # smaller graphs rarely have two people and a chain of three steps
_MEAN_PARENTS = 1.5  # of a Poisson distribution
_WITHIN_FAMILY = (0.35, 0.45)  # probabilities that all parents are of the first or second family; else of any
_DEPTH_PREFERENCE = 1.5  # a node at depth d is 1 + 1.5 d times as likely a parent as a root
_MIN_STEPS, _MAX_STEPS = 3, 6  # as in the published files, for which Coconut has 6 stages


@dataclass(frozen=True, kw_only=True)
class ProsqaConfig:
    """Settings of ProsQA. The defaults are the sizes of the published splits, with as many problems again for GRPO.

    Attributes:
        seed: seed of all problems.
        n_train: number of problems for the curriculum, with steps.
        n_grpo: number of problems for GRPO, without steps.
        n_valid: number of problems to choose settings and checkpoints by.
        n_test: number of problems for the final results.
        min_nodes: least number of nodes that a graph is drawn with; smaller graphs give shorter questions.
        max_nodes: largest number of nodes that a graph is drawn with.
        steps: chain is as in the published files: from the person to the right concept, one fact per step. levels is
            a breadth-first search with as many steps: step k states every fact about the nodes k - 1 facts away.
    """

    seed: int = seed_field()
    n_train: int = ranged(17_886, at_least=0)
    n_grpo: int = ranged(17_886, at_least=0)
    n_valid: int = ranged(300, at_least=0)
    n_test: int = ranged(500, at_least=0)
    min_nodes: int = ranged(_NODES, at_least=_LEAST_NODES, at_most=len(CONCEPTS))
    max_nodes: int = ranged(_NODES, at_least=_LEAST_NODES, at_most=len(CONCEPTS))
    steps: Literal["chain", "levels"] = "chain"

    def __post_init__(self) -> None:
        check_ranges(self, "prosqa")
        if self.min_nodes > self.max_nodes:
            raise UserError(f"prosqa.min_nodes={self.min_nodes} must be at most max_nodes={self.max_nodes}.")


@dataclass(frozen=True, slots=True)
class _Graph:
    """Nodes 0 and 1 are the two people; an edge (a, b) has a < b and says that every a is a b."""

    edges: list[tuple[int, int]]
    family: list[int]  # bit 0: reachable from node 0, bit 1: from node 1


def make_splits(config: ProsqaConfig, wanted: Sequence[str] = SPLIT_NAMES) -> dict[str, list[Problem]]:
    """Make the wanted splits of ``train``, ``grpo`` (without steps), ``valid`` and ``test``. All questions differ.

    `Problem.extra` holds the other columns of the published files: ``idx_to_symbol``, ``edges``, ``root``, ``target``
    and ``neg_target``.
    """
    draw = partial(draw_problem, config=config)
    return {split: deal_split("prosqa", split, getattr(config, f"n_{split}"), config.seed, draw) for split in wanted}


def vocabulary() -> list[str]:
    """The phrases of questions, steps and answers, in lower case. A sentence is a subject and a predicate.

    A fact is two tokens ("every lempus", "is a dumpus.") instead of six, so a question has about 75 tokens instead of
    200.
    """
    people = [name.lower() for name in PEOPLE]
    return [
        *people,
        *(f"every {concept}" for concept in CONCEPTS),
        *(f"is a {concept}." for concept in CONCEPTS),
        *(f"is {name}" for name in people),
        *(f"a {concept}" for concept in CONCEPTS),
        *(f"or {concept}?" for concept in CONCEPTS),
    ]


def draw_problem(rng: random.Random, config: ProsqaConfig) -> Problem:
    """Draw a problem with id 0. A graph is drawn again unless its longest chain has 3 to 6 steps."""
    spread = config.max_nodes - config.min_nodes
    while True:
        graph = _draw_graph(rng, config.min_nodes + (below(rng, spread + 1) if spread else 0))
        chosen = _choose_ends(rng, graph)
        if chosen is not None:
            return _tell(rng, graph, *chosen, levels=config.steps == "levels")


def _draw_graph(rng: random.Random, nodes: int) -> _Graph:
    edges: list[tuple[int, int]] = []
    family, depth = [1, 2], [0, 0]
    for node in range(2, nodes):
        n_parents = _poisson(rng, _MEAN_PARENTS)
        within = _draw_family(rng)
        candidates = [other for other in range(node) if within is None or family[other] == within]
        parents: list[int] = []
        while candidates and len(parents) < n_parents:
            weights = [1 + _DEPTH_PREFERENCE * depth[other] for other in candidates]
            parents.append(candidates.pop(_weighted_index(rng, weights)))
        edges += [(parent, node) for parent in parents]
        family.append(0)
        for parent in parents:
            family[node] |= family[parent]
        depth.append(1 + min((depth[parent] for parent in parents), default=-1))
    return _compact(_Graph(edges, family))


def _draw_family(rng: random.Random) -> int | None:
    """The family that all parents are chosen from, 1 or 2, or None for any."""
    first, second = _WITHIN_FAMILY
    threshold = rng.random()
    if threshold < first:
        return 1
    return 2 if threshold < first + second else None


def _compact(graph: _Graph) -> _Graph:
    """Drop nodes without edges, except 0 and 1, and renumber the others without gaps."""
    nodes = sorted({0, 1} | {node for edge in graph.edges for node in edge})
    number = {node: index for index, node in enumerate(nodes)}
    edges = [(number[parent], number[child]) for parent, child in graph.edges]
    return _Graph(edges, [graph.family[node] for node in nodes])


def _choose_ends(rng: random.Random, graph: _Graph) -> tuple[int, int, list[int]] | None:
    """Choose (root, wrong leaf, chain from the root to the right leaf), or None if the chain is too short or too long.

    The right leaf is the deepest leaf of both families, the wrong leaf any leaf of the other family.
    """
    parents = {parent for parent, _ in graph.edges}
    leaves = [
        [node for node, family in enumerate(graph.family) if family == root + 1 and node not in parents | {root}]
        for root in (0, 1)
    ]
    distances = [_distances(graph, root) for root in (0, 1)]
    depths = [max((distances[root][leaf] for leaf in leaves[root]), default=0) for root in (0, 1)]
    if min(depths) == 0 or not _MIN_STEPS <= max(depths) <= _MAX_STEPS:
        return None
    root = pick(rng, [root for root in (0, 1) if depths[root] == max(depths)])
    target = pick(rng, [leaf for leaf in leaves[root] if distances[root][leaf] == depths[root]])
    return root, pick(rng, leaves[1 - root]), _draw_shortest_chain(rng, graph, distances[root], target)


def _distances(graph: _Graph, root: int) -> dict[int, int]:
    """The distance of each node that the root reaches. Parents come before children in `edges`."""
    distance = {root: 0}
    for parent, child in graph.edges:
        if parent in distance:
            distance[child] = min(distance.get(child, len(graph.family)), distance[parent] + 1)
    return distance


def _draw_shortest_chain(rng: random.Random, graph: _Graph, distance: dict[int, int], target: int) -> list[int]:
    """A shortest chain from the node at distance 0 to the target, drawn backwards."""
    chain = [target]
    while distance[chain[-1]] > 0:
        before = distance[chain[-1]] - 1
        chain.append(pick(rng, [a for a, b in graph.edges if b == chain[-1] and distance.get(a) == before]))
    return chain[::-1]


def _draw_levels(
    rng: random.Random, graph: _Graph, distance: dict[int, int], steps: int
) -> list[list[tuple[int, int]]]:
    """For each step, the edges out of the nodes at that distance, grouped by node."""
    levels = []
    for step in range(steps):
        nodes = _shuffled(rng, [node for node in distance if distance[node] == step])
        levels.append([edge for node in nodes for edge in _shuffled(rng, [e for e in graph.edges if e[0] == node])])
    return levels


def _tell(rng: random.Random, graph: _Graph, root: int, wrong: int, chain: list[int], *, levels: bool) -> Problem:
    children = {child for _, child in graph.edges}
    people, concepts = _shuffled(rng, PEOPLE), _shuffled(rng, CONCEPTS)
    symbols = [concepts.pop() if node in children else people.pop() for node in range(len(graph.family))]

    def fact(parent: int, child: int) -> str:
        subject = f"Every {symbols[parent]}" if parent in children else symbols[parent]
        return f"{subject} is a {symbols[child]}."

    target = chain[-1]
    if levels:
        steps = _draw_levels(rng, graph, _distances(graph, root), len(chain) - 1)
    else:
        steps = [[edge] for edge in pairwise(chain)]
    first, second = _shuffled(rng, (symbols[target], symbols[wrong]))
    facts = _shuffled(rng, [fact(*edge) for edge in graph.edges])
    return Problem(
        id=0,
        question=" ".join([*facts, f"Is {symbols[root]} a {first} or {second}?"]),
        steps=tuple(" ".join(fact(*edge) for edge in step) for step in steps),
        answer=f"{symbols[root]} is a {symbols[target]}.",
        extra={
            "idx_to_symbol": symbols,
            "edges": [list(edge) for edge in graph.edges],
            "root": root,
            "target": target,
            "neg_target": wrong,
        },
    )


def _shuffled(rng: random.Random, items: Sequence[_T]) -> list[_T]:
    """Fisher-Yates."""
    items = list(items)
    for last in range(len(items) - 1, 0, -1):
        other = below(rng, last + 1)
        items[last], items[other] = items[other], items[last]
    return items


def _poisson(rng: random.Random, mean: float) -> int:
    """A Poisson draw by Knuth's method: how many uniform draws keep their product above exp(-mean)."""
    count, product = 0, rng.random()
    while product > math.exp(-mean):
        count, product = count + 1, product * rng.random()
    return count


def _weighted_index(rng: random.Random, weights: Sequence[float]) -> int:
    threshold = rng.random() * sum(weights)
    for index, weight in enumerate(weights):
        threshold -= weight
        if threshold < 0:
            return index
    return len(weights) - 1


TASK = Task(name="prosqa", config=ProsqaConfig, make_splits=make_splits, vocabulary=lambda config: vocabulary())
