"""What people who know TRL expect of a trainer: its argument names, callbacks, evaluation, resuming, completions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState

from dropout_grpo import (
    CurriculumConfig,
    CurriculumTrainer,
    GRPOConfig,
    GRPOTrainer,
    LatentModel,
    NoExploration,
    SharedDropout,
    UserError,
)
from dropout_grpo.config.evaluation import EvaluationConfig
from dropout_grpo.config.lora import LoRAConfig
from dropout_grpo.evaluation.answering import answer_problems
from dropout_grpo.evaluation.measures import summarize
from dropout_grpo.latent.lora.checkpoint import peft_config
from dropout_grpo.rl import trainer as trainer_module
from helpers.eval_run import SEED, problems
from helpers.grpo_run import CONFIG, alternating, digits, steps_of, talkative, trainer
from helpers.tiny_latent import assert_same_weights, read_metrics, tiny_latent, tiny_problems, weights_of

ROWS = [{"question": p.question, "answer": p.answer} for p in tiny_problems(5)]


def test_lists_of_dicts_datasets_and_paths_train_as_problems_and_models_do(tmp_path: Path) -> None:
    model = tiny_latent()
    model.save_pretrained(tmp_path / "checkpoint")
    expected = tiny_latent()
    made = trainer(tmp_path / "expected", model=expected, exploration=SharedDropout(0.1), seed=0)
    made.train()
    for name, given, dataset in (
        ("dicts", tiny_latent(), ROWS),
        ("dataset", tiny_latent(), datasets.Dataset.from_list(ROWS)),
        ("path", str(tmp_path / "checkpoint"), tiny_problems(5)),
    ):
        found = GRPOTrainer(given, digits, CONFIG, dataset, run=tmp_path / name)
        found.train()
        assert_same_weights(weights_of(found.model), weights_of(expected))
        assert steps_of(tmp_path / name) == steps_of(tmp_path / "expected")


def test_several_eval_datasets_under_masks(tmp_path: Path) -> None:
    sets = {"few": problems()[:2], "more": problems()}
    config = replace(CONFIG, num_generations_eval=3, max_completion_length=5)
    masks = SharedDropout(0.4, phases=("latent", "answer"))
    made = GRPOTrainer(tiny_latent(seed=SEED), digits, config, ROWS, sets, run=tmp_path, exploration=masks)
    asked, options = EvaluationConfig(num_samples=3, max_new_tokens=5), {"exploration": masks}
    rows = {name: summarize(answer_problems(made.model, part, asked, **options)) for name, part in sets.items()}
    assert rows["more"]["pass@3"] > rows["more"]["pass@2"] > 0
    measures = ("pass@1", "masked_pass@1", "pass@2", "pass@3")
    expected = {f"eval/{name}/{measure}": row[measure] for name, row in rows.items() for measure in measures}
    together = {f"eval/{m}": pytest.approx((2 * rows["few"][m] + 8 * rows["more"][m]) / 10) for m in measures}
    assert made.evaluate() == expected | together


EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]


class Watching(TrainerCallback):
    """Records its calls, and sets the given control flags at a step."""

    def __init__(self, **asked: int) -> None:
        self.events: list[tuple[str, int]] = []
        self.metrics: list[dict[str, float]] = []
        self.logs: list[set[str]] = []
        self.given: list[set[str]] = []
        self.asked = asked

    def __getattribute__(self, name: str) -> Any:
        if name not in EVENTS:
            return super().__getattribute__(name)
        return lambda args, state, control, **more: self.see(name.removeprefix("on_"), args, state, control, **more)

    def see(self, event: str, args: Any, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        assert args.num_generations == CONFIG.num_generations
        assert isinstance(more["model"], LatentModel)
        assert more["processing_class"] is more["model"].tokenizer
        self.events.append((event, state.global_step))
        if event == "step_end":
            for flag, step in self.asked.items():
                if state.global_step == step:
                    setattr(control, flag, True)
        if event == "evaluate":
            self.metrics.append(more["metrics"])
        if event == "log":
            self.logs.append(set(more["logs"]))
        if event == "pre_optimizer_step":
            gradients = [p.grad for p in more["model"].parameters()]
            assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
            assert more["optimizer"] is not None
            assert more["lr_scheduler"] is not None


def test_callbacks_are_called_in_transformers_order(tmp_path: Path) -> None:
    watching = Watching()
    config = replace(CONFIG, eval_steps=2, save_steps=3)
    made = GRPOTrainer(tiny_latent(), digits, config, ROWS, ROWS, run=tmp_path, callbacks=[watching])
    output = made.train()
    updates = ["pre_optimizer_step", "optimizer_step"]
    assert watching.events == [
        *[("init_end", 0), ("train_begin", 0)],
        *[("epoch_begin", 0), ("step_begin", 0), *((name, 0) for name in updates), ("step_end", 1), ("log", 1)],
        # 3 of 5 problems in a step: the second step holds the last two of the first pass, the third step begins at 6.
        *[("step_begin", 1), *((name, 1) for name in updates), ("step_end", 2), ("epoch_end", 2)],
        *[("log", 2), ("log", 2), ("evaluate", 2)],
        *[("epoch_begin", 2), ("step_begin", 2), *((name, 2) for name in updates), ("step_end", 3), ("epoch_end", 3)],
        *[("log", 3), ("save", 3)],
        *[("log", 3), ("train_end", 3)],
    ]
    assert [set(metrics) for metrics in watching.metrics] == [{"eval_pass@1"}]
    lines = read_metrics(tmp_path)
    assert watching.logs[0] == lines[0].keys() - {"part", "step"} | {"epoch"}
    assert watching.logs[2:] == [{"eval_pass@1", "epoch"}, watching.logs[0], {"train_runtime", "train_loss", "epoch"}]
    assert [round(entry["epoch"], 9) for entry in made.state.log_history] == [0.6, 1.2, 1.2, 1.8, 1.8]
    assert [entry["loss"] for entry in made.state.log_history if "loss" in entry] == [line["loss"] for line in lines]
    assert output.global_step == 3
    assert output.training_loss == pytest.approx(sum(line["loss"] for line in lines) / 3)
    assert made.state.log_history[-1]["train_loss"] == output.training_loss == output.metrics["train_loss"]


def test_callbacks_can_be_added_and_removed(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    kept, removed = Watching(), Watching()
    made.add_callback(kept)
    made.add_callback(removed)
    made.remove_callback(removed)
    made.train()
    assert removed.events == []
    assert kept.events[0] == ("train_begin", 0)
    with pytest.raises(UserError, match="callbacks: function is not a"):
        made.add_callback(digits)  # type: ignore[arg-type]


def test_rewards_get_tokens_and_state_and_can_log(tmp_path: Path) -> None:
    seen: list[tuple[int, list[list[int]]]] = []

    def tokens(completions: list[str], completion_ids: list[list[int]], **more: Any) -> list[float]:
        seen.append((more["trainer_state"].global_step, completion_ids))
        for i in range(3):
            more["log_metric"]("digits", i)
        return [len(ids) / 3 for ids in completion_ids]

    made = trainer(tmp_path, reward_funcs=[tokens, tokens], model=talkative())
    made.train()
    lines = read_metrics(tmp_path)
    assert [step for step, _ in seen] == [0, 0, 1, 1, 2, 2]
    for line, (_, ids) in zip(lines, seen[::2], strict=True):
        assert len(ids) == 12
        assert line["completions/mean_length"] == pytest.approx(sum(map(len, ids)) / 12)
        assert line["rewards/tokens/mean"] == line["rewards/tokens_2/mean"]
        assert line["digits"] == 1.0

    def clash(completions: list[str], log_metric: Any, **more: Any) -> list[float]:
        log_metric("loss", 0)
        return [0.0] * len(completions)

    with pytest.raises(UserError, match="a reward function logs 'loss', a metric of every run"):
        trainer(tmp_path / "clash", reward_funcs=[clash]).train()


def test_a_callback_can_evaluate_save_and_stop_and_the_run_resumes(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", model=tiny_latent(), exploration=SharedDropout(0.1), seed=0)
    whole.train()
    watching = Watching(should_evaluate=1, should_training_stop=2)
    run = tmp_path / "parts"
    GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, ROWS, run=run, callbacks=[watching]).train()
    seen = [event for event in watching.events if event[0] in ("step_end", "evaluate", "save", "train_end")]
    assert seen == [("step_end", 1), ("evaluate", 1), ("step_end", 2), ("save", 2), ("train_end", 2)]
    again = GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, run=run)
    again.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in again.state.log_history] == [1, 2, 3, 3]
    assert "eval_pass@1" in again.state.log_history[0]
    assert_same_weights(weights_of(again.model), weights_of(whole.model))
    assert [line["step"] for line in steps_of(run)] == [1, 2, 3]


@pytest.mark.parametrize("masked", [False, True])
def test_completions_are_printed_with_rewards_and_advantages(
    masked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault: completions that the update leaves out were printed as empty."""
    shown = {"log_completions": True, "num_completions_to_print": 1, "mask_truncated_completions": masked}
    config = GRPOConfig(**{**vars(CONFIG), "max_steps": 1, **shown})
    made = GRPOTrainer(tiny_latent(), digits, config, ROWS, exploration=NoExploration(), run=tmp_path)
    seen: list[Any] = []
    table = trainer_module.completions_table

    def watched(*args: Any) -> Any:
        seen.append(args)
        return table(*args)

    monkeypatch.setattr(trainer_module, "completions_table", watched)
    made.train()
    assert "step 1" in capsys.readouterr().err
    (_, questions, completions, rewards, advantages, _) = seen[0]
    assert len(questions) == 1
    assert [len(part[0]) for part in (completions, rewards, advantages)] == [CONFIG.num_generations] * 3
    assert rewards[0] == pytest.approx(digits([], completions[0]))
    assert len([*filter(None, completions[0])]) == 3  # and an answer that ends at once
    mean = sum(rewards[0]) / len(rewards[0])
    assert advantages[0] == pytest.approx([reward - mean for reward in rewards[0]], abs=1e-6)


def test_push_to_hub_uploads_a_checkpoint_with_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[tuple[set[str], str, bool]] = []

    def push_folder(folder: Path, repo_id: str, *, private: bool) -> str:
        pushed.append(({p.name for p in folder.iterdir()}, repo_id, private))
        assert "GPT2LMHeadModel" not in (folder / "README.md").read_text(encoding="utf-8"), "a class is no base"
        return "https://hub.example/me/mine"

    monkeypatch.setattr(trainer_module, "push_folder", push_folder)
    made = GRPOTrainer(tiny_latent(), digits, CONFIG, ROWS, run=tmp_path)
    assert made.push_to_hub("me/mine", private=True) == "https://hub.example/me/mine"
    ((files, repo_id, private),) = pushed
    assert {"model.safetensors", "README.md", "custom_generate", "latent_config.json"} <= files
    assert (repo_id, private) == ("me/mine", True)


def test_what_a_callback_pushes_has_the_masters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: with bf16 weights they went up rounded."""
    dtypes: list[set[torch.dtype]] = []

    def push_folder(folder: Path, repo_id: str, *, private: bool) -> str:
        dtypes.append({tensor.dtype for tensor in load_file(folder / "model.safetensors").values()})
        return repo_id

    class Push(TrainerCallback):
        def on_step_end(self, *args: Any, **given: Any) -> None:
            made.push_to_hub("me/mine")

    monkeypatch.setattr(trainer_module, "push_folder", push_folder)
    config = replace(CONFIG, max_steps=2)
    made = GRPOTrainer(tiny_latent(), alternating, config, ROWS, run=tmp_path, param_dtype="bfloat16", callbacks=[Push])
    made.train()
    assert dtypes == [{torch.float32}] * 2


def test_an_adapter_is_pushed_with_a_card_and_only_if_others_can_load_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    cards: list[str] = []

    def push_folder(folder: Path, repo_id: str, *, private: bool) -> str:
        cards.append((folder / "README.md").read_text(encoding="utf-8"))
        return repo_id

    monkeypatch.setattr(trainer_module, "push_folder", push_folder)
    tiny_latent().save_pretrained(tmp_path / "base")
    made = GRPOTrainer(tmp_path / "base", digits, CONFIG, ROWS, run=tmp_path / "run", peft_config=LoRAConfig(r=2))
    with pytest.raises(UserError, match=r"the adapter is on .*base, a folder that only this machine has: call"):
        made.push_to_hub("me/mine")
    peft_config(made.model.model).base_model_name_or_path = "org/base"
    made.push_to_hub("me/mine")
    assert "base_model: org/base" in cards[0]


class WithoutPhases:
    """An exploration that lacks its phases."""

    def noise(self, seeds: Any, sites: Any) -> None:
        return


LONG = [{"prompt": "? " * 60, "answer": "1"}]
"""A question for which the model has no positions."""


class AtNight:
    """An exploration of a phase that there is not."""

    phases = frozenset({"night"})

    def noise(self, seeds: Any, sites: Any) -> None:
        return


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"exploration": "shared_dropout"}, r"exploration is 'shared_dropout': give an object, such as SharedDropout"),
        ({"exploration": NoExploration}, "exploration is the class NoExploration: give an object"),
        ({"exploration": WithoutPhases()}, "exploration: WithoutPhases must have phases and noise"),
        ({"exploration": AtNight()}, "exploration: its phase 'night' is unknown; known are prompt, latent, answer"),
        ({"args": {"max_steps": 3}}, "args is a dict: give a dropout_grpo.GRPOConfig"),
        ({"args": CurriculumConfig()}, "args is a CurriculumConfig: give a dropout_grpo.GRPOConfig"),
        ({"reward_funcs": "org/model"}, "reward models are not supported"),
        ({"eval_dataset": {}}, "eval_dataset has no sets: leave it out, or give problems by name"),
        ({"eval_dataset": LONG}, r"eval_dataset: question 1 \('\? .*' \.\.\.\) has 6. tokens"),
        ({"eval_dataset": {"hard": LONG}}, r"eval_dataset\['hard'\]: question 1"),
        ({"train_dataset": "problems.json"}, 'train_dataset is a string: "problems.json": give a list'),
    ],
)
def test_natural_mistakes_are_refused_in_words(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    made = {"model": tiny_latent(), "reward_funcs": digits, "args": CONFIG, "train_dataset": ROWS, "run": tmp_path}
    with pytest.raises(UserError, match=message):
        GRPOTrainer(**{**made, **given})
    with pytest.raises(UserError, match="args is a GRPOConfig: give a"):
        CurriculumTrainer(tiny_latent(), CONFIG, ROWS, tmp_path)  # type: ignore[arg-type]
