"""Options that contradict the method are refused before anything is trained, with the value and the remedy."""

from dataclasses import fields
from typing import Any

import pytest

from dropout_grpo.config.grpo import GRPOOptions
from dropout_grpo.config.grpo_config import GRPOConfig
from dropout_grpo.errors import UserError


def test_defaults_are_the_papers_objective() -> None:
    config = GRPOConfig()
    assert (config.loss_type, config.scale_rewards, config.leave_one_out) == ("sum", "none", False)
    assert (config.beta, config.num_iterations, config.epsilon_high) == (0.0, 1, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 1}, "num_generations=1: a group of one .* use at least 2"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0: for greedy answers, use answers"),
        ({"micro_batch_size": 7}, "micro_batch_size=7 must hold one group of num_generations=8"),
        ({"rollout_batch_size": 7}, "rollout_batch_size=7 must hold one group of num_generations=8"),
        ({"epsilon": 1e308, "num_iterations": 2}, r"epsilon=1e\+308 must be .*at most 1,?000,?000"),
        ({"epsilon_high": 1e308, "num_iterations": 2}, r"epsilon_high=1e\+308"),
        ({"kl_delta": 1e308, "beta": 0.1, "kl_estimator": "k3_huber"}, r"kl_delta=1e\+308 must be .*at most 80"),
        ({"scale_rewards": "group", "leave_one_out": True}, "leave_one_out .* set scale_rewards to none"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GRPOConfig(**options)


@pytest.mark.parametrize(
    ("options", "processes", "expected"),
    [  # max_steps, prompts_per_step, micro_batch_size
        ({"num_train_epochs": 2, "prompts_per_step": 10}, 1, (20, 10, 256)),
        # A step moves on by 4 x 10 questions, also by those that it does not need.
        ({"num_train_epochs": 2, "prompts_per_step": 10, "dynamic_sampling_max_gen_batches": 4}, 1, (5, 10, 256)),
        # 10 groups in 4 passes are 3, 3, 3 and 1.
        ({"prompts_per_step": 10, "gradient_accumulation_steps": 4}, 1, (200, 10, 24)),
        ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}, 3, (200, 12, 16)),
        # Where 16 answers do not fit in memory: the same step, 8 of them at once.
        ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2, "micro_batch_size": 8}, 3, (200, 12, 8)),
    ],
)
def test_the_steps_and_batches_that_trls_options_mean(
    options: dict[str, Any], processes: int, expected: tuple[int, int, int]
) -> None:
    settled = GRPOConfig(**options).settled(100, processes)
    assert (settled.max_steps, settled.prompts_per_step, settled.micro_batch_size) == expected


def test_every_option_is_documented() -> None:
    # The command line takes its help from this docstring.
    text = (GRPOOptions.__doc__ or "") + (GRPOConfig.__doc__ or "")
    missing = [field.name for field in fields(GRPOConfig) if f"        {field.name}: " not in text]
    assert not missing


def test_messages_use_the_words_of_the_interface() -> None:
    """A recipe and the command line have a section; options that are given in Python have none."""
    with pytest.raises(UserError, match=r"^learning_rate=-1 must"):
        GRPOConfig(learning_rate=-1)
    with pytest.raises(UserError, match=r"^grpo\.learning_rate=-1 must"):
        GRPOOptions(learning_rate=-1)
    assert GRPOConfig().settled(100, 1).named("micro_batch_size") == "micro_batch_size"
    assert GRPOOptions().named("micro_batch_size") == "grpo.micro_batch_size"
