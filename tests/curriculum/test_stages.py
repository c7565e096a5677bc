"""What a problem looks like in each stage, by hand for problems with 1 to 5 steps."""

import pytest

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import stages_of
from dropout_grpo.errors import UserError

STAGES = stages_of(CurriculumConfig(c_thought=2, max_latent_stage=3, cot_epochs=5, epochs_per_stage=4, final_epochs=6))


def test_stages_in_order() -> None:
    assert [stage.index for stage in STAGES] == [0, 1, 2, 3, 4]
    assert [stage.latent_steps for stage in STAGES] == [0, 2, 4, 6, 6]
    assert [stage.epochs for stage in STAGES] == [5, 4, 4, 4, 6]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ("a", ["a", "", "", "", ""]),
        ("ab", ["ab", "b", "", "", ""]),
        ("abc", ["abc", "bc", "c", "", ""]),
        ("abcd", ["abcd", "bcd", "cd", "d", ""]),
        ("abcde", ["abcde", "bcde", "cde", "de", ""]),  # the final stage drops what stage 3 left in words
    ],
)
def test_words_of_each_stage(steps: str, words: list[str]) -> None:
    assert ["".join(stage.words(tuple(steps))) for stage in STAGES] == words


def test_short_problems_are_padded_to_the_block() -> None:
    # One step and stage 3: nothing is left in words, and the thoughts are 3 x 2 all the same.
    stage = STAGES[3]
    assert list(stage.words(("a",))) == []
    assert stage.latent_steps == 6


def test_another_curriculum() -> None:
    stages = stages_of(
        CurriculumConfig(c_thought=1, max_latent_stage=1, cot_epochs=0, epochs_per_stage=2, final_epochs=0)
    )
    assert [(s.index, s.dropped_steps, s.latent_steps, s.epochs) for s in stages] == [
        (0, 0, 0, 0),
        (1, 1, 1, 2),
        (2, None, 1, 0),
    ]


def test_config_knows_the_full_block() -> None:
    assert CurriculumConfig(c_thought=2, max_latent_stage=3).latent_steps == 6
    assert CurriculumConfig(c_thought=3, max_latent_stage=5).latent_steps == 15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c_thought": 0}, "c_thought=0 must be at least 1"),
        ({"max_latent_stage": 0}, "max_latent_stage=0"),
        ({"uniform_prob": 1.1}, "uniform_prob=1.1 must be at least 0 and at most 1"),
        ({"uniform_prob": -0.1}, "uniform_prob=-0.1 must be at least 0 and at most 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"cot_epochs": -1}, "cot_epochs=-1 must be at least 0"),
        ({"epochs_per_stage": -1}, "epochs_per_stage=-1"),
        ({"final_epochs": -2}, "final_epochs=-2"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"eval_steps": -1}, "eval_steps=-1"),
        ({"cot_epochs": 0, "epochs_per_stage": 0, "final_epochs": 0}, "nothing to train"),
    ],
)
def test_refusals_name_the_option_and_its_value(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CurriculumConfig(**options)  # type: ignore[arg-type]


def test_edges_are_allowed() -> None:
    CurriculumConfig(cot_epochs=0, epochs_per_stage=0, final_epochs=1, warmup_steps=0, uniform_prob=1.0)
