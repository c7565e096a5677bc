"""What the paper's own runs add to the objective: the group filter, an annealed beta, a renewed reference."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.errors import UserError
from dropout_grpo.exploration import NoExploration, SharedDropout
from dropout_grpo.latent.rollout import replay
from dropout_grpo.rl.groups import select_groups
from dropout_grpo.rl.reference import ReferencePolicy
from helpers.grpo_run import CONFIG, Replays, alternating, constant, trainer
from helpers.tiny_latent import assert_same_weights, read_metrics, tiny_latent, tiny_problems, weights_of

MEANS = torch.tensor([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0], [0.0, 1.0], [0.1, 0.3], [torch.nan, 0.5]])


def test_groups_by_mean_reward_by_hand() -> None:
    def kept(low: float, high: float, **options: Any) -> list[int]:
        return select_groups(MEANS, mean_range=(low, high), **{"mixed": False, **options}).tolist()

    assert kept(0.2, 0.95) == [1, 3, 4, 5]  # 0.2 itself is in
    assert kept(0.21, 0.95) == [1, 3, 5]
    assert kept(0.0, 1.0) == [0, 1, 2, 3, 4, 5]
    assert kept(0.2, 0.95, mixed=True) == [3, 4]
    assert kept(0.2, 0.95, limit=2) == [1, 3]
    assert select_groups(MEANS[:0], mixed=True, mean_range=(0.2, 0.95)).tolist() == []


def rewards_in_turn(groups: Sequence[Sequence[float]]) -> Any:
    """Rewards of the groups of every step, whatever was said."""

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        assert len(completions) == sum(len(group) for group in groups)
        return [value for group in groups for value in group]

    return reward


def test_the_update_is_the_mean_over_the_kept_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)
    config = replace(CONFIG, max_steps=1, filter_groups=(0.2, 0.95), micro_batch_size=12)
    # Means 1/8, 1/2 and 1: the first group is mixed but too hard.
    reward = rewards_in_turn([[0.5, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    made = trainer(tmp_path, config, reward_funcs=[reward])
    groups, _ = made.sampler.sample(1)
    made.train()
    assert replays.seeds == [groups.seeds[1:2].tolist()]
    (update,) = replays.surrogates
    assert update["totals"].rollouts == 4
    assert update["advantages"].tolist() == [0.5, 0.5, -0.5, -0.5]
    (line,) = read_metrics(tmp_path)
    found = [line[f"groups/{name}"] for name in ("sampled", "mixed", "kept", "step_skipped")]
    assert found == [3, 2, 1, 0]


def test_a_step_without_a_kept_group_moves_nothing(tmp_path: Path) -> None:
    model = tiny_latent()
    config = replace(CONFIG, filter_groups=(0.2, 0.95), beta=0.5, weight_decay=0.1)
    made = trainer(tmp_path, config, model=model, reward_funcs=[constant])
    with torch.no_grad():
        model.model.lm_head.weight.mul_(1.1)  # the policy has left its reference
    before = weights_of(model)
    made.train()
    assert_same_weights(weights_of(model), before)
    lines = read_metrics(tmp_path)
    assert [line["groups/step_skipped"] for line in lines] == [1, 1, 1]
    assert [line["learning_rate"] for line in lines] == [1e-2] * 3  # the schedule has not moved
    assert made.updates == 0
    # Without the filter it does.
    trainer(tmp_path / "b", replace(config, filter_groups=None, beta=0.0), reward_funcs=[constant]).train()
    assert read_metrics(tmp_path / "b")[-1]["learning_rate"] == pytest.approx(1e-2 / 3)


def test_the_filter_with_dynamic_sampling_samples_until_enough_groups_are_kept(tmp_path: Path) -> None:
    config = replace(
        CONFIG, max_steps=1, prompts_per_step=1, filter_groups=(0.4, 0.6), dynamic_sampling_max_gen_batches=3
    )
    calls = iter([[1.0, 0, 0, 0], [1.0, 1, 0, 0]])  # mixed but hard; then of mean 1/2

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return next(calls)

    trainer(tmp_path, config, reward_funcs=[reward]).train()
    (line,) = read_metrics(tmp_path)
    assert [line[f"groups/{name}"] for name in ("sampled", "mixed", "kept")] == [2, 2, 1]


def test_beta_follows_the_learning_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)
    config = replace(CONFIG, beta=0.3, beta_schedule="learning_rate", micro_batch_size=12)
    trainer(tmp_path, config).train()
    assert [update["beta"] for update in replays.surrogates] == pytest.approx([0.3, 0.2, 0.1])
    lines = read_metrics(tmp_path)
    assert [line["beta"] for line in lines] == pytest.approx([0.3, 0.2, 0.1])
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])


def test_cosine_to_a_tenth(tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=5, warmup_steps=1, lr_scheduler_type="cosine", min_lr_rate=0.1)
    trainer(tmp_path, config, reward_funcs=[alternating]).train()
    # After the warm-up, 4 updates at 0, pi/4, pi/2 and 3 pi/4 of the cosine from 1 to 0.1.
    half = 2**0.5 / 4
    expected = [0.5, 1.0, 0.1 + 0.9 * (0.5 + half), 0.55, 0.1 + 0.9 * (0.5 - half)]
    assert [100 * line["learning_rate"] for line in read_metrics(tmp_path)] == pytest.approx(expected)


def test_the_reference_is_renewed_by_trls_formula(tmp_path: Path) -> None:
    config = replace(
        CONFIG, max_steps=4, beta=0.1, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=0.6
    )
    model = tiny_latent(dtype=torch.float64)
    made = trainer(tmp_path, config, model=model)
    assert made.update.reference is not None
    expected, policies = weights_of(model), []
    for step in (1, 2, 3, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * step)
        made.update.reference.end_step(step, model)
        policies.append(weights_of(model))
        if step % 2 == 0:
            expected = {name: 0.6 * policies[-1][name] + 0.4 * tensor for name, tensor in expected.items()}
        for name, tensor in weights_of(made.update.reference.model).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-12, rtol=0)
    assert not any(parameter.requires_grad for parameter in made.update.reference.model.parameters())


@pytest.mark.parametrize(("kind", "noise"), [("matched", SharedDropout(0.3)), ("none", NoExploration())])
def test_the_reference_has_the_policys_masks_or_none(tmp_path: Path, kind: Any, noise: Any) -> None:
    config = replace(CONFIG, beta=0.1, ref_exploration=kind, temperature=0.8)
    made = trainer(tmp_path, config, exploration=SharedDropout(0.3))
    groups, _ = made.sampler.sample(1)
    prompts, tokens = groups.prompts, groups.answers.token_ids
    assert made.update.reference is not None
    found = made.update.reference.logprobs(prompts, groups.seeds, tokens)
    expected = replay(made.model, prompts, groups.seeds, tokens, noise, temperature=0.8).detach()
    torch.testing.assert_close(found, expected)
    other = NoExploration() if kind == "matched" else SharedDropout(0.3)
    wrong = replay(made.model, prompts, groups.seeds, tokens, other, temperature=0.8)
    assert not torch.allclose(found, wrong, atol=1e-2)


def test_a_reference_of_another_model_is_refused() -> None:
    config = replace(CONFIG, beta=0.1, sync_ref_model=True)
    reference = ReferencePolicy(tiny_latent(), config, NoExploration())
    tensors = reference.tensors()
    name = next(iter(tensors))
    for broken in ({}, {**tensors, name: tensors[name][:1]}):
        with pytest.raises(UserError, match="reference weights are not those of this model"):
            reference.load(broken)


def test_long_questions_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = tiny_problems(10)
    everything = trainer(tmp_path / "a", problems=problems).sampler
    lengths = [len(row) for row in everything.encoded]
    most = sorted(lengths)[5]
    made = trainer(
        tmp_path / "b",
        GRPOConfig(max_prompt_length=most, num_train_epochs=1, prompts_per_step=2, num_generations=2),
        problems=problems,
    )
    kept = [problem for problem, length in zip(problems, lengths, strict=True) if length <= most]
    assert made.sampler.problems == kept
    assert (made.max_steps, made.state.max_steps, made.state.num_train_epochs) == (len(kept) // 2, len(kept) // 2, 1)
    assert f"{10 - len(kept)} of 10 GRPO questions have more than max_prompt_length={most} tokens" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match=f"prompts_per_step=.*, or raise max_prompt_length={min(lengths)}"):
        trainer(tmp_path / "d", replace(CONFIG, max_prompt_length=min(lengths)), problems=problems)
    with pytest.raises(UserError, match="max_prompt_length=1 leaves no question: raise it"):
        trainer(tmp_path / "c", replace(CONFIG, max_prompt_length=1), problems=problems)
