"""Variants of the method, one option each: what is sampled, replayed and subtracted in each of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import Exploration, NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.exploration.seeds import fold
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from helpers.grpo_run import CONFIG, Replays, alternating, trainer
from helpers.tiny_latent import assert_same_weights, read_metrics, tiny_latent, weights_of

HELD = SharedDropout(0.2)
GREEDY = replace(CONFIG, answers="greedy")
PAPER = replace(
    GREEDY,
    beta=5e-3,
    beta_schedule="learning_rate",
    kl_estimator="k3_huber",
    loss_type="grpo",
    weight_decay=0.01,
    sync_ref_model=True,
    ref_model_sync_steps=2,
)


def test_greedy_answers_under_masks_have_log_probs_at_the_temperature() -> None:
    model = tiny_latent(dtype=torch.float64, seed=17)
    prompts, seeds = Prompts(*model.encode(["Ann has 3", "Bob has 4 ?"])), torch.arange(12).view(2, 6)
    options: dict[str, Any] = {"temperature": 0.7, "max_completion_length": 4}
    with torch.no_grad():
        made = roll_out(model, prompts, seeds, HELD, greedy=True, **options)
        cold = roll_out(model, prompts, seeds, HELD, **options | {"temperature": 0})
        sampled = roll_out(model, prompts, seeds, HELD, **options)
        replayed = replay(model, prompts, seeds, made.token_ids, HELD, temperature=0.7)
    assert torch.equal(made.token_ids, cold.token_ids)
    assert not torch.equal(made.token_ids, sampled.token_ids)
    assert len({tuple(row) for row in made.token_ids[:6].tolist()}) > 1, "masks make no difference"
    torch.testing.assert_close(made.logprobs[made.mask], replayed[made.mask], atol=1e-12, rtol=0)
    assert (made.logprobs[made.mask] < 0).all()  # of a distribution, not of a certainty


def test_greedy_runs_learn_from_masks_and_replay_exactly(tmp_path: Path) -> None:
    model = tiny_latent(seed=17)
    before = weights_of(model)
    trainer(tmp_path, replace(GREEDY, num_generations=8), model=model, exploration=SharedDropout(0.4)).train()
    lines = read_metrics(tmp_path)
    assert min(line["frac_reward_zero_std"] for line in lines) < 1.0
    assert max(line["replay/logprob_diff_max"] for line in lines) < 1e-5
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights_of(model).items())


@pytest.mark.parametrize(
    ("exploration", "config"),
    [(NoExploration(), PAPER), (SharedDropout(0.0), replace(GREEDY, weight_decay=0.1))],
    ids=["paper", "plain"],
)
def test_deterministic_runs_warn_once_and_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exploration: Exploration, config: Any
) -> None:
    model = tiny_latent()
    before = weights_of(model)
    trainer(tmp_path, config, model=model, exploration=exploration).train()
    assert_same_weights(weights_of(model), before)
    assert capsys.readouterr().err.count("nothing can be learned") == 1
    assert all((line["grad_norm"], line["frac_reward_zero_std"]) == (0.0, 1.0) for line in read_metrics(tmp_path))
    trainer(tmp_path / "a", GREEDY, exploration=HELD)
    trainer(tmp_path / "b", CONFIG, exploration=NoExploration())
    assert "nothing can be learned" not in capsys.readouterr().err  # other runs do not warn


@pytest.mark.parametrize("exploration", [HELD, PerStepDropout(0.2)], ids=["held", "naive"])
def test_without_replay_every_update_has_fresh_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exploration: Exploration
) -> None:
    replays = Replays(monkeypatch)
    config = replace(CONFIG, max_steps=1, num_iterations=2, micro_batch_size=12, replay=False)
    made = trainer(tmp_path, config, exploration=exploration, reward_funcs=[alternating])
    groups, _ = made.sampler.sample(1)
    made.train()
    order = groups.prompts.longest_first()
    assert replays.seeds == [fold(groups.seeds[order], -1).tolist(), fold(groups.seeds[order], -2).tolist()]
    # The old log-probs are those of the rollout, so the first ratio is that of two masks and not 1.
    first = replays.surrogates[0]
    assert ((first["logprobs"] - first["old"]) * first["mask"]).abs().max() > 0.05
    assert read_metrics(tmp_path)[0]["replay/logprob_diff_max"] > 0.05


def test_fresh_masks_need_masks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"replay: false .* choose an exploration\.kind"):
        trainer(tmp_path, replace(CONFIG, replay=False), exploration=NoExploration())


REINFORCE = replace(CONFIG, num_generations=1, baseline="ema", ema_decay=0.5, prompts_per_step=4, max_steps=4)


def test_reinforce_subtracts_the_mean_of_earlier_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = Replays(monkeypatch)
    rewards = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    config = replace(REINFORCE, micro_batch_size=4)
    calls = iter(rewards)

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
        return list(map(float, next(calls)))

    made = trainer(tmp_path, config, reward_funcs=[reward])
    orders = [made.sampler.prompts(made.sampler.indices(step)).longest_first() for step in (1, 2, 3, 4)]
    made.train()
    # Step means 1/4, 1/2, 3/4. Baselines: none yet; 1/4; (1/4 * 1/2 + 1/2) / (3/2); (1/16 + 1/4 + 3/4) / (7/4)
    baselines = [0.0, 1 / 4, 5 / 12, 17 / 28]
    assert [line["baseline"] for line in read_metrics(tmp_path)] == pytest.approx(baselines)
    replayed = [0, 1, 2, 3]  # in the first step only the right answer has an advantage
    for step, update in zip(replayed, replays.surrogates, strict=True):
        expected = torch.tensor(rewards[step], dtype=torch.float32)[orders[step]] - baselines[step]
        expected = expected[expected != 0]
        assert update["advantages"].tolist() == pytest.approx(expected.tolist())
        assert update["totals"].rollouts == 4  # all sampled count in the mean
