"""The GRPO loop: what it measures, hands to reward functions, writes and refuses."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.data.rewards import CONTEXT
from dropout_grpo.errors import UserError
from dropout_grpo.latent import LatentModel
from dropout_grpo.rl import trainer as trainer_module
from dropout_grpo.training.optimizer import NonFinite
from helpers.grpo_run import CONFIG, Replays, alternating, digits, talkative, trainer
from helpers.tiny_latent import assert_same_weights, read_metrics, tiny_latent, tiny_problems, weights_of


def test_metrics_have_trls_names_and_the_values_of_what_was_rewarded(tmp_path: Path) -> None:
    seen: list[tuple[list[str], list[str], list[float]]] = []

    def watched(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        values = digits(prompts, completions, **columns)
        seen.append((list(prompts), list(completions), [value for value in values if value is not None]))
        return values

    trainer(tmp_path, reward_funcs=[watched]).train()
    logged = read_metrics(tmp_path)
    assert [line["step"] for line in logged] == [1, 2, 3]
    assert set(logged[0]) == {
        "part", "step", "reward", "reward_std", "frac_reward_zero_std", "entropy", "loss", "grad_norm", "kl",
        "completions/mean_length", "completions/min_length", "completions/max_length", "completions/clipped_ratio",
        "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "replay/logprob_diff_max",
        "replay/logprob_diff_mean", "frac_groups_all_correct", "frac_groups_all_wrong",
        "rewards/watched/mean", "rewards/watched/std", "learning_rate", "rollout_time", "step_time",
    }  # fmt: skip
    for line, (_, _, values) in zip(logged, seen, strict=True):
        rewards = torch.tensor(values).view(3, 4)
        assert line["reward"] == pytest.approx(float(rewards.mean()))
        assert line["reward_std"] == pytest.approx(float(rewards.std(dim=1).mean()))
        assert line["frac_reward_zero_std"] == pytest.approx(sum(len(set(row.tolist())) == 1 for row in rewards) / 3)
        right = sum(set(row.tolist()) == {1.0} for row in rewards) / 3
        parts = (line["frac_groups_all_correct"], line["frac_groups_all_wrong"])
        assert sum(parts) == pytest.approx(line["frac_reward_zero_std"])
        assert parts[0] >= right
        assert line["rewards/watched/mean"] == pytest.approx(float(rewards.mean()))
        assert line["rewards/watched/std"] == pytest.approx(float(rewards.std()))
        assert line["replay/logprob_diff_max"] < 1e-5
        assert line["grad_norm"] > 1e-3
        assert line["kl"] == 0.0
    assert [line["learning_rate"] for line in logged] == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])


def test_lengths_are_counted_with_eos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)
    config = replace(CONFIG, max_steps=1, micro_batch_size=12, max_completion_length=6)
    trainer(tmp_path, config, model=talkative(), reward_funcs=[alternating]).train()
    (line,), (batch,) = read_metrics(tmp_path), replays.surrogates
    lengths = batch["mask"].sum(-1)
    assert lengths.shape == (12,)
    assert 1 <= lengths.min() < lengths.max() == 6
    assert line["completions/mean_length"] == pytest.approx(float(lengths.float().mean()))
    assert (line["completions/min_length"], line["completions/max_length"]) == (lengths.min(), lengths.max())
    assert batch["totals"].tokens == lengths.sum()
    assert batch["totals"].rollouts == 12
    assert 0 < line["entropy"] < 3.44  # ln 31
    # Every ratio is 1, so the loss is -(1/12) sum_k A_k L_k, and A is -1/2 and 1/2 in turn.
    assert batch["advantages"].tolist() == [-0.5, 0.5] * 6
    assert line["loss"] == pytest.approx(float(-(batch["advantages"] * lengths).sum() / 12), abs=1e-5)


def test_rewards_get_the_problems_columns_k_times_each(tmp_path: Path) -> None:
    problems = [replace(problem, extra={"level": problem.id * 10}) for problem in tiny_problems(3)]
    seen: list[dict[str, Any]] = []

    def watched(**columns: Any) -> list[float]:
        seen.append(columns)
        return [0.0] * len(columns["completions"])

    trainer(tmp_path, replace(CONFIG, max_steps=1), problems=problems, reward_funcs=[watched]).train()
    (columns,) = seen
    assert set(columns) == {"prompts", "completions", "question", "steps", "answer", "level", *CONTEXT}
    order = [columns["level"][k] // 10 for k in (0, 4, 8)]
    assert sorted(order) == [0, 1, 2]
    for k in range(12):
        problem = problems[order[k // 4]]
        assert columns["prompts"][k] == columns["question"][k] == problem.question
        assert (columns["answer"][k], columns["level"][k]) == (problem.answer, problem.extra["level"])


def test_several_rewards_with_weights_and_without_an_opinion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)

    def first(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [1.0, None, 0.0, 1.0] * 3

    def second(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float | None]:
        return [0.0, 3.0, 1.0, None] * 3

    config = replace(CONFIG, max_steps=1, reward_weights=(2.0, 0.5), micro_batch_size=12)
    trainer(tmp_path, config, reward_funcs=[first, second]).train()
    (line,) = read_metrics(tmp_path)
    # 2 x 1 + 0, 0.5 x 3, 2 x 0 + 0.5 x 1, 2 x 1: mean 1.5, advantages 0.5, 0, -1, 0.5 in every group
    assert line["reward"] == pytest.approx(1.5)
    assert replays.surrogates[0]["advantages"].tolist() == pytest.approx([0.5, 0.0, -1.0, 0.5] * 3)
    assert line["rewards/first/mean"] == pytest.approx(2 / 3)  # of those it judged
    assert line["rewards/second/mean"] == pytest.approx(4 / 3)
    assert line["rewards/first/std"] == pytest.approx((6 * (1 / 3) ** 2 + 3 * (2 / 3) ** 2) ** 0.5 / 8**0.5)

    trainer(tmp_path / "equal", replace(CONFIG, max_steps=1), reward_funcs=[first, second]).train()
    assert read_metrics(tmp_path / "equal")[0]["reward"] == pytest.approx((1 + 3 + 1 + 1) / 4)


@pytest.mark.parametrize(("save_steps", "last_good"), [(1, r"checkpoints/grpo-step-1"), (0, "the one it started from")])
def test_what_is_not_finite_names_the_step_and_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int, last_good: str
) -> None:
    model, right, calls = tiny_latent(), trainer_module.group_advantages, iter((1.0, 3e38))

    def huge_at_step_2(rewards: Tensor, **options: Any) -> Tensor:
        return next(calls) * 10 * right(rewards, **options)

    monkeypatch.setattr(trainer_module, "group_advantages", huge_at_step_2)
    config = replace(CONFIG, save_steps=save_steps)
    made = trainer(tmp_path, config, model=model, reward_funcs=[alternating])
    with pytest.raises(NonFinite, match=rf"grpo seed 2, step 2, update 1: loss .*{last_good}"):
        made.train()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    assert all(bool(tensor.isfinite().all()) for tensor in weights_of(model).values())
    if save_steps:
        saved = LatentModel.from_pretrained(tmp_path / "checkpoints" / "grpo-step-1")
        assert_same_weights(weights_of(saved), weights_of(model))


def test_a_policy_that_an_update_has_broken_is_no_good_checkpoint(tmp_path: Path) -> None:
    config = replace(CONFIG, learning_rate=1e30, lr_scheduler_type="constant", save_steps=1)
    with pytest.raises(NonFinite, match=r"grpo seed 2, step 1: after the update.* the one it started from"):
        trainer(tmp_path / "saved", config).train()
    assert not (tmp_path / "saved" / "checkpoints").exists()
    with pytest.raises(NonFinite, match="grpo seed 2, step 1: after the update"):  # nor is it what the run ends with
        trainer(tmp_path / "last", replace(config, max_steps=1, save_steps=0)).train()


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train_dataset is empty"):
        trainer(tmp_path / "a", problems=[])
    with pytest.raises(UserError, match="latent_steps 0"):
        trainer(tmp_path / "b", model=tiny_latent(latent_steps=0))
    with pytest.raises(UserError, match="reward_weights has 2 numbers for 1 reward functions"):
        trainer(tmp_path / "c", replace(CONFIG, reward_weights=(1.0, 2.0)))
    long = [*tiny_problems(2), replace(tiny_problems(1)[0], question="? " * 60)]
    with pytest.raises(UserError, match=r"question 3 \('.*' \.\.\.\) has 62 tokens and needs 6 more"):
        trainer(tmp_path / "d", problems=long)


def test_when_metrics_validation_and_checkpoints_are_written(tmp_path: Path) -> None:
    validated = iter([0.25, 0.5])
    config = replace(CONFIG, max_steps=7, logging_steps=2, eval_steps=3, save_steps=5, lr_scheduler_type="constant")
    trainer(tmp_path / "a", config, evaluate=lambda model: next(validated), part="grpo_masks").train()
    logged = read_metrics(tmp_path / "a")
    assert [line["step"] for line in logged] == [2, 3, 4, 6]
    assert {line["step"]: line["eval/pass@1"] for line in logged if "eval/pass@1" in line} == {3: 0.25, 6: 0.5}
    assert {line["part"] for line in logged} == {"grpo_masks"}
    kept = {path.name for path in (tmp_path / "a" / "checkpoints").iterdir()}
    assert kept == {"grpo_masks-step-5", "grpo_masks-step-7"}  # the last step too, so that a run can grow
    after_five = tiny_latent()
    trainer(tmp_path / "b", replace(config, max_steps=5, save_steps=0), model=after_five).train()
    saved = LatentModel.from_pretrained(tmp_path / "a" / "checkpoints" / "grpo_masks-step-5")
    assert_same_weights(weights_of(saved), weights_of(after_five))
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_the_default_rate_for_few_rollouts_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = GRPOConfig(prompts_per_step=2, num_generations=8)
    for config, told in (
        (few, True),
        (replace(few, learning_rate=1e-5), False),
        (replace(few, prompts_per_step=5, num_generations=16), False),
    ):
        trainer(tmp_path, config)
        said = "learning_rate is 0.0003, the default for steps of about 1,000 rollouts. With the 16 of this training"
        assert (said in capsys.readouterr().err) is told


def test_answers_that_validation_cuts_short_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, max_completion_length=6)
    for evaluation, told in ((EvaluationConfig(max_new_tokens=5), True), (EvaluationConfig(max_new_tokens=6), False)):
        trainer(tmp_path, config, eval_dataset=tiny_problems(2), evaluation=evaluation)
        said = "validation cuts answers at evaluation.max_new_tokens=5, below max_completion_length=6: set both."
        assert (said in capsys.readouterr().err) is told
    trainer(tmp_path, config, eval_dataset=tiny_problems(2))  # max_completion_length, too
    assert "validation cuts" not in capsys.readouterr().err
