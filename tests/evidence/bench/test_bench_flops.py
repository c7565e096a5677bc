"""FLOPs by hand, and against what torch counts while the arms run."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from evidence.bench import arms
from evidence.bench.config import Job
from evidence.bench.flops import (
    Phase,
    Shape,
    cot_phases,
    engine_phases,
    forward_flops,
    passes,
    plain_phases,
    published_phases,
    triangle,
)
from evidence.bench.workload import _smollm2, shape_of
from helpers.bench_setting import SMALL, networks, workload

SHAPE = Shape(layers=2, width=3, mlp=12, vocab=10)


def test_forward_by_hand() -> None:
    phase = Phase(name="any", tokens=5, pairs=15, logits=1, rows=5)
    linear = 2 * (3 * 9 + 3 * 3 + 3 * 12 + 12 * 3) * 5 * 2  # each token in each of 2 layers
    attention = (2 * 3 + 2 * 3) * 15 * 2  # a pair: a dot product over the width, and a sum of values
    head = 2 * 3 * 10
    assert forward_flops(SHAPE, [phase]) == linear + attention + head == 2160 + 360 + 60


def test_a_llama_s_products_by_hand() -> None:
    """Queries, keys and values apart, with a key head for several query heads, and an MLP with a gate."""
    shape = Shape(layers=2, width=6, mlp=10, vocab=10, key_width=2)
    phase = Phase(name="any", tokens=5, pairs=15, logits=0, rows=5)
    linear = 2 * (6 * 6 + 6 * 2 + 6 * 2 + 6 * 6 + 3 * 6 * 10) * 5 * 2
    assert forward_flops(shape, [phase]) == linear + 4 * 6 * 15 * 2  # attention costs what it does without groups


def test_smollm2_has_its_published_sizes() -> None:
    tokenizer = word_tokenizer([str(i) for i in range(49_152 - 5)])
    with torch.device("meta"):
        model = _smollm2(tokenizer, replace(SMALL, size="smollm2"))
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    shape = shape_of(model.config)
    layers = shape.layers * sum(a * b for a, b in shape.products())
    norms = (2 * 30 + 1) * 576
    assert layers + shape.width * shape.vocab + norms == 134_515_008


def test_the_design_s_token_forwards() -> None:
    """60 prompt tokens, 6 thoughts, 6 answer tokens, K = 32: about 440 token-forwards per group instead of 2,300."""
    setting = replace(
        SMALL, questions=1, num_generations=32, prompt_tokens=60, latent_steps=6, answer_tokens=6, micro_batch_size=64
    )
    assert sum(p.tokens for p in engine_phases(setting, "rollouts")) == 60 + 32 * 12 == 444
    assert sum(p.tokens for p in plain_phases(setting, "rollouts")) == 32 * 72 == 2304


def test_phases_by_hand() -> None:
    """2 questions, K = 3, 7 prompt tokens, 2 thoughts, 4 answer tokens, chain of thought 3 + 4."""
    read, think, answer = engine_phases(SMALL, "rollouts")
    assert (read.tokens, read.pairs, read.logits) == (14, 2 * 28, 0)
    assert (think.tokens, think.pairs, think.logits) == (12, 6 * (8 + 9), 0)
    assert (answer.tokens, answer.pairs, answer.logits) == (24, 6 * (10 + 11 + 12 + 13), 24)
    assert plain_phases(SMALL, "rollouts")[0].tokens == 42
    think, answer = published_phases(SMALL, "rollouts")
    assert think.tokens == 6 * (7 + 8)
    assert answer.tokens == 6 * (10 + 11 + 12 + 13)
    assert published_phases(SMALL, "update")[1].tokens == 6 * 13
    read, answer = cot_phases(SMALL, "rollouts")
    assert (read.tokens, answer.tokens, answer.logits) == (42, 6 * 6, 6 * 7)


def test_rows_of_a_product() -> None:
    """In an update they are cut into micro-batches; a sampled token is a row, scored ones are all rows at once."""
    assert [p.rows for p in engine_phases(SMALL, "rollouts")] == [14, 6, 6]
    assert [p.rows for p in engine_phases(SMALL, "update")] == [14, 6, 24]
    assert [p.rows for p in engine_phases(replace(SMALL, micro_batch_size=3), "update")] == [7, 3, 12]
    assert [p.rows for p in engine_phases(SMALL, "curriculum")] == [35, 5, 20]


DENSE = {  # pairs that kernels compute which a causal position would not need: squares instead of triangles
    ("engine", "rollouts"): 2 * (49 - triangle(7)),
    ("plain", "rollouts"): 6 * (49 - triangle(7)),
    ("published", "rollouts"): 6 * sum(s * s - triangle(s) for s in (7, 8, 10, 11, 12, 13)),
    ("cot", "rollouts"): 6 * (49 - triangle(7)),
    ("engine", "update"): 2 * (49 - triangle(7)) + 6 * (4 * 13 - (10 + 11 + 12 + 13)),
    ("plain", "update"): 6 * (49 - triangle(7)) + 6 * (4 * 13 - (10 + 11 + 12 + 13)),
    ("published", "update"): 6 * sum(s * s - triangle(s) for s in (7, 8, 13)),
    ("cot", "update"): 6 * (13 * 13 - triangle(13)),
    ("engine", "curriculum"): 5 * (49 - triangle(7)) + 5 * (4 * 13 - (10 + 11 + 12 + 13)),
    ("published", "curriculum"): 5 * sum(s * s - triangle(s) for s in (7, 8, 13)),
    ("cot", "curriculum"): 5 * (13 * 13 - triangle(13)),
    ("engine", "evaluation"): 5 * (49 - triangle(7)),
    ("published", "evaluation"): 5 * sum(s * s - triangle(s) for s in (7, 8, 10, 11, 12, 13)),
    ("cot", "evaluation"): 5 * (49 - triangle(7)),
}


UNREAD = {("engine", "update"): 6, ("plain", "update"): 6, ("engine", "curriculum"): 5}
"""Rows whose last thought has an output that nothing reads: its last layer ends at keys and values, and so the backward
pass does not run the rest of it. The published way has that position in its last pass, beside others."""


@pytest.mark.parametrize(("name", "job"), DENSE)
def test_what_an_arm_runs_is_what_torch_counts(name: str, job: Job) -> None:
    """To the last FLOP, but for the squares that kernels compute and the output that nothing reads."""
    work = workload()
    run = arms.build(name, work, job, "eager")
    run.prepare()
    run.run()  # not counted: what is made on the way, and the probe of every model that is loaded
    counted = _flops(run.run)
    shape = networks().shape
    squares = DENSE[name, job] * shape.layers * 4 * shape.width
    rest = sum(2 * a * b for a, b in shape.products()[1:]) + 9 * 4 * shape.width  # 7 prompt tokens and 2 thoughts
    unread = 2 * UNREAD.get((name, job), 0) * rest
    assert counted == passes(job) * (forward_flops(shape, arms.phases(name, work, job)) + squares) - unread


def _flops(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
