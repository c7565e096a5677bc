"""What an update of GRPO replays, compares with, holds to its reference, trains, and leaves out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.rl import update as update_module
from dropout_grpo.rl.groups import Groups
from dropout_grpo.rl.reference import ReferencePolicy
from dropout_grpo.rl.trainer import GRPOTrainer
from helpers.grpo_run import CONFIG, Replays, alternating, constant, talkative, trainer
from helpers.tiny_latent import (
    assert_same_weights,
    newest_checkpoint,
    read_metrics,
    tiny_latent,
    tiny_problems,
    weights_of,
)


def test_a_constant_reward_teaches_nothing_and_replays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)
    model = tiny_latent()
    before = weights_of(model)
    trainer(tmp_path, replace(CONFIG, weight_decay=0.1), model=model, reward_funcs=[constant]).train()
    for line in read_metrics(tmp_path):
        assert (line["frac_reward_zero_std"], line["grad_norm"], line["loss"], line["kl"]) == (1.0, 0.0, 0.0, 0.0)
        ratios = [line[f"clip_ratio/{region}_mean"] for region in ("low", "high", "region")]  # no step leaves a gap
        assert [*ratios, line["replay/logprob_diff_max"], line["replay/logprob_diff_mean"]] == [0.0] * 5
    assert replays.seeds == []
    assert_same_weights(weights_of(model), before)


def test_only_groups_that_differ_within_themselves_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays = Replays(monkeypatch)

    def one_group(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        mixed = [i for i, prompt in enumerate(prompts) if prompt == tiny_problems(5)[3].question]
        return [1.0 if i in mixed[:1] else 0.1 for i in range(len(prompts))]

    model = tiny_latent()
    rows: list[int] = []

    def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            rows.append(kwargs["inputs_embeds"].shape[0])

    model.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    monkeypatch.setattr(GRPOTrainer, "_fit_in_memory", lambda trainer: None)  # it runs a row to measure it
    config = replace(CONFIG, max_steps=1, prompts_per_step=5, scale_rewards="batch")
    trainer(tmp_path, config, model=model, reward_funcs=[one_group]).train()
    (line,) = read_metrics(tmp_path)
    assert line["frac_reward_zero_std"] == pytest.approx(0.8)
    assert line["grad_norm"] > 0
    assert rows == [1, 4, 4, 4]  # the question once, then K rows for two thoughts and the answer
    assert [len(call) for call in replays.seeds] == [1]
    assert replays.surrogates[0]["totals"].rollouts == 20  # the others count in the denominator all the same


def test_replay_differences_are_of_the_tokens_that_are_replayed(tmp_path: Path) -> None:
    """Group 0 alone has an advantage. Two of its log-probs are wrong, by 0.5 and 0.25; those of group 1 by 3."""
    made = trainer(tmp_path, replace(CONFIG, micro_batch_size=4))
    sampled, _ = made.sampler.sample(1)
    logprobs = sampled.answers.logprobs.clone()
    logprobs[0, 0] += 0.5
    logprobs[3, 0] -= 0.25
    logprobs[4:8] += 3.0
    advantages = torch.zeros(3, 4)
    advantages[0] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    seen = made.update.backward(replace(sampled, answers=replace(sampled.answers, logprobs=logprobs)), advantages)
    assert seen is not None
    assert seen["replay/logprob_diff_max"] == pytest.approx(0.5, abs=1e-5)
    tokens = int(sampled.answers.mask[:4].sum())
    assert seen["replay/logprob_diff_mean"] == pytest.approx(0.75 / tokens, abs=1e-5)


def test_replaying_all_groups_would_give_the_same_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def some_groups(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [float(i % 4 == 0 and i < 8) for i in range(len(prompts))]

    config = replace(CONFIG, max_steps=1, micro_batch_size=20, prompts_per_step=5)
    skipping, replaying = tiny_latent(dtype=torch.float64), tiny_latent(dtype=torch.float64)
    trainer(tmp_path / "a", config, model=skipping, reward_funcs=[some_groups]).train()
    made = trainer(tmp_path / "b", config, model=replaying, reward_funcs=[some_groups])
    made.update.reference = ReferencePolicy(
        replaying, config, made.exploration
    )  # with a reference every group is replayed, and at beta = 0 it has no other effect
    made.train()
    a, b = read_metrics(tmp_path / "a")[0], read_metrics(tmp_path / "b")[0]
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-9)
    for name, tensor in weights_of(skipping).items():
        torch.testing.assert_close(weights_of(replaying)[name], tensor, atol=1e-7, rtol=1e-7)


def test_kl_to_the_model_that_it_started_from(tmp_path: Path) -> None:
    model = tiny_latent()
    made = trainer(tmp_path, replace(CONFIG, beta=0.1), model=model)
    before = weights_of(model)
    made.train()
    kl = [line["kl"] for line in read_metrics(tmp_path)]
    assert kl[0] == 0.0
    assert min(kl[1:]) > 0.0
    assert made.update.reference is not None
    assert_same_weights(weights_of(made.update.reference.model), before)  # frozen
    assert not any(parameter.requires_grad for parameter in made.update.reference.model.parameters())
    assert trainer(tmp_path / "none").update.reference is None  # without beta no second model is kept


def test_groups_without_variance_still_feel_the_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)
    model = tiny_latent()
    config = replace(CONFIG, max_steps=15, beta=1.0, lr_scheduler_type="constant", learning_rate=5e-3)
    made = trainer(tmp_path, config, model=model, reward_funcs=[constant], problems=tiny_problems(3))
    with torch.no_grad():
        for parameter in model.parameters():  # the policy has left its reference
            parameter.add_(0.05 * torch.randn(parameter.shape))
    made.train()
    logged = read_metrics(tmp_path)
    assert [len(call) for call in replays.seeds[:2]] == [2, 1]  # all 3 groups, micro-batches of 8 rollouts
    assert logged[0]["kl"] > 0
    assert logged[0]["grad_norm"] > 0
    assert logged[0]["frac_reward_zero_std"] == 1.0
    assert logged[0]["loss"] > 0.0
    assert sum(line["kl"] for line in logged[-3:]) < 0.5 * sum(line["kl"] for line in logged[:3])  # and returns to it


def test_later_iterations_compare_with_the_policy_that_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)
    config = replace(CONFIG, max_steps=1, num_iterations=2, micro_batch_size=12, learning_rate=2e-2)
    trainer(tmp_path, config, reward_funcs=[alternating]).train()
    first, second = replays.surrogates
    assert torch.equal(first["old"], second["old"])  # of the policy that sampled, both times
    assert replays.seeds[0] == replays.seeds[1]  # under the same masks
    moved = [((batch["logprobs"] - batch["old"]) * batch["mask"]).sum(-1) for batch in (first, second)]
    assert moved[0].abs().max() < 1e-5
    assert (moved[1] * first["advantages"]).sum() > 0.5  # the better answers are likelier, the worse less so
    (line,) = read_metrics(tmp_path)
    assert line["replay/logprob_diff_max"] < 1e-5  # of the first, when rollout and replay are one policy
    # The rest is of the last update. By hand from its ratios: how many are held at 0.8 or 1.2.
    ratio = (second["logprobs"] - second["old"]).exp()
    gain, tokens = second["advantages"][:, None], float(second["mask"].sum())
    low = ((ratio < 0.8) & (gain < 0) & second["mask"]).sum()
    high = ((ratio > 1.2) & (gain > 0) & second["mask"]).sum()
    assert low > 0
    assert high > 0
    assert line["clip_ratio/low_mean"] == pytest.approx(float(low) / tokens)
    assert line["clip_ratio/high_mean"] == pytest.approx(float(high) / tokens)
    assert line["clip_ratio/region_mean"] == pytest.approx(float(low + high) / tokens)


def test_rates_are_spread_over_all_updates(tmp_path: Path) -> None:
    trainer(tmp_path, replace(CONFIG, num_iterations=2, warmup_steps=1, learning_rate=0.01)).train()
    # 6 updates, the first at 1/2, then 1, 4/5, 3/5, 2/5, 1/5; a step shows that of its first update.
    assert [line["learning_rate"] for line in read_metrics(tmp_path)] == pytest.approx([0.005, 0.008, 0.004])


@pytest.mark.parametrize("length", [1, 4])
def test_truncated_answers_get_no_gradient_when_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    replays = Replays(monkeypatch)
    config = replace(CONFIG, max_steps=1, micro_batch_size=12, max_completion_length=length)
    config = replace(config, mask_truncated_completions=True)
    made = trainer(tmp_path, config, model=talkative(), reward_funcs=[alternating])
    sampled: list[Groups] = []
    sample = made.sampler.sample

    def watched(step: int) -> tuple[Groups, dict[str, float]]:
        groups, statistics = sample(step)
        sampled.append(groups)
        return groups, statistics

    monkeypatch.setattr(made.sampler, "sample", watched)
    made.train()
    tokens, mask = sampled[0].answers.token_ids, sampled[0].answers.mask
    ended = (tokens == made.model.tokens.eos).any(-1)  # an answer that ends with the last token it may have is whole
    assert 0 < int(ended.sum()) < 12
    assert bool((tokens[:, -1] == made.model.tokens.eos).any())
    (line,), (batch,) = read_metrics(tmp_path), replays.surrogates
    assert line["completions/clipped_ratio"] == pytest.approx(1 - float(ended.float().mean()))
    used = (mask & ended[:, None]).view(3, 4, -1)
    replayed = used.flatten(1).any(1)  # a group whose answers are all cut is not
    assert torch.equal(batch["mask"], used[replayed].flatten(0, 1))
    assert line["completions/max_length"] == length  # metrics are of what was sampled
    assert batch["totals"].rollouts == 12
    assert batch["totals"].tokens == mask.sum()  # dapo averages over those of the cut answers too, as TRL's does
    assert torch.equal(batch["advantages"], torch.tensor([-0.5, 0.5] * 2 * int(replayed.sum())))  # rewards are of all


def test_all_answers_truncated_and_masked_is_no_update(tmp_path: Path) -> None:
    model = tiny_latent()
    before = weights_of(model)
    config = replace(CONFIG, max_steps=1, mask_truncated_completions=True)
    trainer(tmp_path, config, model=model, reward_funcs=[alternating]).train()
    (line,) = read_metrics(tmp_path)
    assert (line["completions/clipped_ratio"], line["loss"], line["grad_norm"]) == (1.0, 0.0, 0.0)
    assert_same_weights(weights_of(model), before)


@pytest.mark.parametrize("kept", [[], [0]])
def test_groups_without_a_token_that_has_an_advantage_are_not_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[int]
) -> None:
    """Fault: they were, for a gradient of 0, and weight decay moved the weights."""
    replays, model = Replays(monkeypatch), tiny_latent()
    before = weights_of(model)
    config = replace(CONFIG, max_steps=1, mask_truncated_completions=True, weight_decay=0.1, micro_batch_size=4)
    made = trainer(tmp_path, config, model=model, reward_funcs=[alternating])
    cut = torch.ones(3, 4, dtype=torch.bool)
    cut[kept] = False
    monkeypatch.setattr(made, "_truncated", lambda answers: cut.flatten())
    made.train()
    assert len(replays.seeds) == len(kept)
    if not kept:
        assert_same_weights(weights_of(model), before)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_rounding_between_rollout_and_replay_is_not_clipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Any
) -> None:
    """Fault: in bf16 it exceeds GSPO's clip range, and a sixth of the tokens lost their gradient in the only update."""
    replays = Replays(monkeypatch)
    options: dict[str, Any] = {"importance_sampling_level": level, "epsilon": 3e-4, "epsilon_high": 4e-4}
    config = replace(CONFIG, max_steps=1, num_iterations=2, learning_rate=1e-9, micro_batch_size=12, **options)
    made = trainer(tmp_path, config, reward_funcs=[alternating])
    sample = made.sampler.sample

    def rounded(step: int) -> Any:
        groups, logged = sample(step)
        groups.answers.logprobs[::2] += 0.01
        return groups, logged

    monkeypatch.setattr(made.sampler, "sample", rounded)
    made.train()
    (line,) = read_metrics(tmp_path)
    assert line["clip_ratio/region_mean"] == 0  # of the second update
    assert line["replay/logprob_diff_max"] == pytest.approx(0.01, abs=1e-4)  # still measured
    for batch in replays.surrogates:
        assert torch.allclose(batch["logprobs"] * batch["mask"], batch["old"] * batch["mask"], atol=1e-6)


def test_a_batch_that_did_not_fit_is_compared_with_the_rollouts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fault: what had fitted before was compared with its own replay."""
    found, replay = [], update_module.replay
    for fails in (False, True):
        calls: list[int] = []

        def limited(*args: Any, fails: bool = fails, calls: list[int] = calls, **options: Any) -> Tensor:
            calls.append(0)
            if fails and len(calls) == 2:
                raise torch.OutOfMemoryError("out of memory")
            return replay(*args, **options)

        monkeypatch.setattr(update_module, "replay", limited)
        config = replace(CONFIG, max_steps=1, micro_batch_size=8)
        made = trainer(tmp_path / str(fails), config, reward_funcs=[alternating])
        sample = made.sampler.sample

        def rounded(step: int, sample: Any = sample) -> Any:
            groups, logged = sample(step)
            groups.answers.logprobs.add_(0.01)
            return groups, logged

        monkeypatch.setattr(made.sampler, "sample", rounded)
        made.train()
        found.append((len(calls), read_metrics(tmp_path / str(fails))[0]["replay/logprob_diff_mean"]))
    assert [calls for calls, _ in found] == [2, 5]
    assert [gap for _, gap in found] == pytest.approx([0.01] * 2, abs=1e-4)


def test_weights_without_requires_grad_stay_and_have_no_optimiser_state(tmp_path: Path) -> None:
    """Only the output projections of the two attentions are trained."""
    model = tiny_latent("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("o_proj.weight"))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    config = replace(CONFIG, max_steps=4, save_steps=2, weight_decay=0.1)
    trainer(tmp_path, config, model=model, reward_funcs=[alternating]).train()
    for name, weight in model.named_parameters():
        assert weight.requires_grad == name.endswith("o_proj.weight")
        same = torch.equal(weight.detach().view(torch.int32), before[name].view(torch.int32))  # 0 and -0 differ
        assert same != weight.requires_grad, name
    state = load_file(newest_checkpoint(tmp_path, "grpo") / "optimizer.safetensors")
    assert {name.partition(".")[0] for name in state} == {"0", "1"}, "one matrix in each of two layers"


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has requires_grad: there is nothing to train"):
        trainer(tmp_path, model=tiny_latent().requires_grad_(False)).train()
