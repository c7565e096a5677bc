"""The measured collapse: nothing to learn without exploration, in batches no larger than the options allow."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dropout_grpo.rl import collapse as collapse_module
from dropout_grpo.rl.collapse import collapse
from helpers.grpo_run import CONFIG
from helpers.tiny_latent import tiny_latent, tiny_problems


def rows_of_decoder_calls(model: Any) -> list[int]:
    """Gets the number of rows of every later forward pass through the decoder."""
    rows: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows.append(kwargs["inputs_embeds"].shape[0])

    model.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    return rows


def test_no_pass_has_more_rollouts_than_a_micro_batch() -> None:
    model = tiny_latent()
    rows = rows_of_decoder_calls(model)
    found = collapse(model, tiny_problems(7), replace(CONFIG, micro_batch_size=8, rollout_batch_size=12))
    assert found == {"frac_reward_zero_std": 1.0, "grad_norm": 0.0}
    assert max(rows) == 12  # 28 rollouts: three groups at a time are sampled, two are back-propagated


def test_the_norm_is_that_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With advantages that are not 0, every size of micro-batch gives the same norm."""
    gains = torch.linspace(-1.0, 2.0, 28, dtype=torch.float64).view(7, 4)
    monkeypatch.setattr(collapse_module, "group_advantages", lambda rewards: gains)
    model = tiny_latent(dtype=torch.float64)
    norms = [collapse(model, tiny_problems(7), replace(CONFIG, micro_batch_size=n))["grad_norm"] for n in (4, 12, 28)]
    assert norms[0] > 1e-2
    assert norms == pytest.approx([norms[2]] * 3, rel=1e-9)
