"""All arms do the same work: same tokens, log-probs and gradients from the engine, the plain and the published way."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from evidence.bench import arms, cot, engine, published
from evidence.bench.workload import Networks, Workload
from helpers.bench_setting import SMALL, gradients_of, workload

ROWS = SMALL.questions * SMALL.num_generations


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, f"{name} has no gradient to compare"
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


def test_rollouts_of_the_three_ways_are_the_same() -> None:
    work = workload()
    made, plain = engine.rollouts(work), engine.plain_rollouts(work)
    tokens, logprobs = published.rollouts(work, ROWS)
    assert made.token_ids.shape == (ROWS, SMALL.answer_tokens)
    assert len({tuple(row) for row in made.token_ids.tolist()}) == ROWS, "rollouts that are alike show nothing"
    for other_tokens, other_logprobs in ((plain.token_ids, plain.logprobs), (tokens, logprobs)):
        assert torch.equal(other_tokens, made.token_ids)
        torch.testing.assert_close(other_logprobs, made.logprobs, rtol=0, atol=1e-5)
    assert (engine.unmasked_rollouts(work).logprobs - made.logprobs).abs().max() > 1e-3


def test_updates_of_the_three_ways_have_the_same_gradient() -> None:
    work = workload()
    loss = engine.update(work)
    wanted = gradients_of(work.networks.model)
    work.prepare()
    assert engine.plain_update(work) == pytest.approx(loss, abs=1e-6)
    assert_same(gradients_of(work.networks.model), wanted)
    assert published.update(work, ROWS) == pytest.approx(loss, abs=1e-6)
    assert_same(gradients_of(work.reference), wanted)


def test_curriculum_steps_have_the_same_gradient() -> None:
    work = workload()
    loss = engine.curriculum(work)
    assert published.curriculum(work, SMALL.problems) == pytest.approx(loss, rel=1e-5)
    assert_same(gradients_of(work.reference), gradients_of(work.networks.model))


def test_evaluations_give_the_same_texts() -> None:
    work = workload()
    said = engine.evaluation(work)
    assert published.evaluation(work, SMALL.problems) == said
    assert len(said) == SMALL.problems
    assert len(set(said)) > 1


def test_the_engine_reads_a_prompt_once_per_question() -> None:
    """60 prompt tokens, 6 thoughts, 6 answer tokens, K = 32: 444 positions a group, not 2,304."""
    setting = replace(
        SMALL, positions=80, questions=1, num_generations=32, prompt_tokens=60, latent_steps=6, answer_tokens=6
    )
    work = Workload(setting, Networks(setting))
    for run, expected in ((engine.rollouts, 60 + 32 * (6 + 6)), (engine.plain_rollouts, 32 * (60 + 6 + 6))):
        read: list[int] = []
        first = work.model.sites.layers[0]
        handle = first.register_forward_pre_hook(lambda module, args, read=read: read.append(args[0].shape[:2].numel()))
        run(work)
        handle.remove()
        assert sum(read) == expected


def test_loss_of_chains_of_thought_is_that_of_transformers() -> None:
    work = workload()
    loss = cot.curriculum(work, SMALL.problems)
    found = gradients_of(work.reference)
    work.prepare("eager")
    prompts = work.question_ids[: SMALL.problems]
    ids = torch.cat([prompts, work.chain_of_thought[: SMALL.problems]], dim=1)
    labels = torch.where(torch.arange(ids.shape[1]) < SMALL.prompt_tokens, -100, ids)
    wanted = work.reference(input_ids=ids, labels=labels).loss
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert_same(found, gradients_of(work.reference))


def test_few_rows_of_the_published_way_are_scaled_to_the_batch() -> None:
    work = workload(published_rows=2)
    assert arms.rows_run("published", work, "update") == 2
    assert arms.build("published", work, "update").scale == 3.0  # 6 rollouts
    assert arms.build("published", work, "curriculum").scale == 2.5  # 5 problems
    assert arms.build("cot", work, "update").scale == 1.0
    tokens, _ = published.rollouts(work, 2)
    assert torch.equal(tokens, engine.rollouts(work).token_ids[:2])
