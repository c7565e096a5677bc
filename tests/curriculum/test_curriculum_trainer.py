"""The curriculum: losses against the oracle, stage mixing, resets of the optimiser, and resumed runs."""

import json
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer, _share_out
from dropout_grpo.data.problem import Problem
from dropout_grpo.errors import UserError
from dropout_grpo.evaluation.answering import EvaluationConfig, answer_problems
from dropout_grpo.latent import LatentModel
from dropout_grpo.latent.tokens import encode_answers, encode_questions, encode_steps
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.training.optimizer import NonFinite
from helpers.oracle import oracle_run
from helpers.tiny import tiny_model, tiny_tokenizer
from helpers.tiny_latent import (
    PLAIN_TOKENS,
    assert_same_weights,
    plain_model,
    read_metrics,
    tiny_latent,
    tiny_problems,
    weights_of,
)

# 2 problems with 1 and 3 steps; 1 thought a step, 2 latent stages: stages 0 .. 3 with 0, 1, 2, 2 thoughts.
SHORT, LONG = tiny_problems(1, steps=1)[0], replace(tiny_problems(4, steps=3)[3], id=1)
CONFIG = CurriculumConfig(
    c_thought=1,
    max_latent_stage=2,
    cot_epochs=1,
    epochs_per_stage=1,
    final_epochs=1,
    batch_size=2,
    learning_rate=1e-2,
    warmup_steps=0,
)
FROZEN = replace(CONFIG, learning_rate=1e-12, weight_decay=0.0)
"""Steps too small to see: every logged loss is that of the first weights."""


def trainer(tmp_path: Path, config: CurriculumConfig = CONFIG, **options: Any) -> CurriculumTrainer:
    options = {"model": tiny_latent(), "problems": [SHORT, LONG], "seed": 0, **options}
    run = RunFolder(tmp_path, "sft", {}, resume=options.pop("resume", False))
    return CurriculumTrainer(options.pop("model"), config, options.pop("problems"), run, **options)


def updates(tmp_path: Path) -> list[dict[str, float]]:
    """Logged updates without times; the lines of validations left out."""
    lines = [line for line in read_metrics(tmp_path) if "loss" in line]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


SHOWN = {  # stage -> (thoughts, steps still in words), by hand
    0: (0, {0: ["0 + 1"], 1: ["3 + 1", "3 + 2", "3 + 3"]}),
    1: (1, {0: [], 1: ["3 + 2", "3 + 3"]}),
    2: (2, {0: [], 1: ["3 + 3"]}),
    3: (2, {0: [], 1: []}),
}


def oracle_losses(model: PreTrainedModel, stage: int, problem: Problem) -> Tensor:
    """-log p of each token after the end marker, [L], of one problem as it is shown in a stage."""
    latent = tiny_latent()
    thoughts, words = SHOWN[stage]
    (prompt,) = encode_questions(latent.tokenizer, [problem.question], latent.tokens)
    (steps,) = encode_steps(latent.tokenizer, [words[problem.id]])
    (answer,) = encode_answers(latent.tokenizer, [problem.answer], latent.tokens)
    completion = [*chain.from_iterable(steps), *answer]
    return -oracle_run(model, prompt, thoughts, latent.tokens.end, completion).logprobs


def test_loss_and_gradient_of_each_stage_are_the_oracles(tmp_path: Path) -> None:
    trainer(tmp_path, FROZEN).train()
    logged = updates(tmp_path)
    assert [line["stage"] for line in logged] == [0, 1, 2, 3]
    model = plain_model()
    losses = []
    for line in logged:
        words = torch.cat([oracle_losses(model, int(line["stage"]), problem) for problem in (SHORT, LONG)])
        loss = words.mean()  # over all words of the batch, not over problems first
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        norm = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()
        assert line["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert line["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
        losses.append(line["loss"])
    assert len({round(loss, 3) for loss in losses}) == 4, "the stages do not differ enough to tell them apart"


def test_thoughts_of_a_model_that_caps_its_logits_do_not_predict(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"thoughts_predict: .* does more to its logits than its head"):
        trainer(tmp_path, replace(FROZEN, thoughts_predict=True), model=tiny_latent("gemma2"))


def test_thoughts_predict_the_words_they_stand_in_for(tmp_path: Path) -> None:
    trainer(tmp_path, replace(FROZEN, thoughts_predict=True)).train()
    model, latent = plain_model(), tiny_latent()
    replaced = {SHORT.id: ["0 + 1"], LONG.id: ["3 + 1", "3 + 2"]}  # two latent stages: the third step has no thought
    for line in updates(tmp_path):
        stage = int(line["stage"])
        words = [oracle_losses(model, stage, problem) for problem in (SHORT, LONG)]
        loss = torch.cat(words).sum()
        for problem in (SHORT, LONG):
            (prompt,) = encode_questions(latent.tokenizer, [problem.question], latent.tokens)  # ends in the marker
            (steps,) = encode_steps(latent.tokenizer, [replaced[problem.id]])
            hidden = oracle_run(model, prompt, SHOWN[stage][0], latent.tokens.end, [latent.tokens.eos]).hiddens
            for state, step in zip(hidden, steps, strict=False):  # in stage s, of the start marker and s thoughts
                loss = loss - model.lm_head(state).log_softmax(-1)[step].mean()
        assert line["loss"] == pytest.approx(float(loss.detach()) / sum(map(len, words)), rel=1e-5)


def test_thoughts_of_a_step_share_its_words_in_turn() -> None:
    steps = [[5, 6, 7, 8, 9], [10]]
    assert _share_out(steps, c_thought=2, max_latent_stage=3) == [[5, 7, 9], [6, 8], [10], []]
    assert _share_out(steps, c_thought=1, max_latent_stage=1) == [[5, 6, 7, 8, 9]]


def test_thoughts_without_words_to_stand_in_for_predict_nothing(tmp_path: Path) -> None:
    short = replace(SHORT, steps=("7",))  # fewer words than thoughts
    bare = replace(LONG, steps=())
    wide = replace(FROZEN, c_thought=4, thoughts_predict=True)
    trainer(tmp_path, wide, problems=[short, bare], model=tiny_latent(latent_steps=8)).train()
    assert all(torch.isfinite(torch.tensor(line["loss"])) for line in updates(tmp_path))


def test_a_problem_without_steps_is_trained_on_its_answer_in_every_stage(tmp_path: Path) -> None:
    bare, latent, model = replace(LONG, steps=()), tiny_latent(), plain_model()
    trainer(tmp_path, FROZEN, problems=[SHORT, bare]).train()
    (prompt,) = encode_questions(latent.tokenizer, [bare.question], latent.tokens)
    (answer,) = encode_answers(latent.tokenizer, [bare.answer], latent.tokens)
    for line in updates(tmp_path):
        stage = int(line["stage"])
        alone = -oracle_run(model, prompt, SHOWN[stage][0], latent.tokens.end, answer).logprobs
        words = torch.cat([oracle_losses(model, stage, SHORT), alone])
        assert line["loss"] == pytest.approx(float(words.mean().detach()), rel=1e-5)


def test_mixed_stages_weigh_every_word_the_same(tmp_path: Path) -> None:
    model, problems = plain_model(), (SHORT, LONG)
    for seed in range(6):
        made = trainer(tmp_path / str(seed), replace(FROZEN, uniform_prob=1.0), seed=seed)
        shown = made._mixed_stages(made.stages[0], [0, 1], 0)
        if shown[0] != shown[1]:
            break
    made.train()
    words = torch.cat([oracle_losses(model, s, p) for s, p in zip(shown, problems, strict=True)])
    assert updates(tmp_path / str(seed))[0]["loss"] == pytest.approx(float(words.mean().detach()), rel=1e-5)


def test_how_often_stages_are_mixed(tmp_path: Path) -> None:
    """The stages that a problem can be drawn to are those of its steps; past the last stage there is no other."""
    problems = [replace(tiny_problems(1, steps=i % 3 * 2)[0], id=i) for i in range(6000)]
    made = trainer(tmp_path, replace(CONFIG, uniform_prob=0.4), problems=problems)
    stage, rows = made.stages[1], list(range(6000))
    drawn = torch.tensor(made._mixed_stages(stage, rows, step=7))
    # A share of 0.4 is spread over the stages of a problem; 0.6 stay at stage 1.
    expected = {
        0: [1.0 - 0.6, 0.6, 0.0, 0.0],  # no steps: stage 0 alone
        2: [0.4 / 3, 0.6 + 0.4 / 3, 0.4 / 3, 0.0],  # two steps: 0, 1, 2
        4: [0.08, 0.68, 0.08, 0.16],  # four steps: 0, 1, 2, and 3 and 4, which both are the last
    }
    for kind, shares in enumerate(expected.values()):
        of_kind = drawn[kind::3]
        found = torch.bincount(of_kind, minlength=4) / len(of_kind)
        wanted = torch.tensor(shares)
        assert bool(((found - wanted).abs() <= 4 * (wanted * (1 - wanted) / len(of_kind)).sqrt()).all()), (kind, found)
    # A draw belongs to (seed, step, problem), not to a place in the batch.
    backwards = made._mixed_stages(stage, rows[::-1], step=7)
    assert backwards[::-1] == drawn.tolist()
    assert made._mixed_stages(stage, rows, step=8) != drawn.tolist()
    assert trainer(tmp_path / "never")._mixed_stages(stage, rows, step=7) == [1] * len(rows)


def test_every_epoch_shows_every_problem_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    made = trainer(tmp_path, replace(CONFIG, epochs_per_stage=4, batch_size=3), problems=tiny_problems(8, steps=1))
    assert made.updates_per_epoch == 3
    batches = list(made._batches(made.stages[1]))
    epochs = [batches[start : start + 3] for start in (0, 3, 6, 9)]
    for epoch in epochs:
        assert sorted(map(len, epoch)) == [2, 3, 3]
        assert sorted(i for batch in epoch for i in batch) == list(range(8))
        # Question i has 1 + i // 2 question marks: no batch reaches into the lengths of the next longer one.
        lengths = sorted(sorted(i // 2 for i in batch) for batch in epoch)
        assert all(short[-1] <= long[0] for short, long in pairwise(lengths))
    assert len({str(epoch) for epoch in epochs}) == 4
    assert list(made._batches(made.stages[2])) != batches
    assert list(made._batches(made.stages[1])) == batches  # a pure function of seed, stage and epoch


def test_rates_start_anew_in_each_stage(tmp_path: Path) -> None:
    config = replace(CONFIG, epochs_per_stage=2, lr_scheduler_type="linear", warmup_steps=1, learning_rate=1.0)
    trainer(tmp_path, config, model=tiny_latent(std=0.01)).train()
    # One update of warm-up at half the peak, then from the peak down: updates of a stage are 1, 2, 2, 1.
    assert [line["learning_rate"] for line in updates(tmp_path)] == [0.5, 0.5, 1.0, 0.5, 1.0, 0.5]


@pytest.mark.parametrize(("reset", "steps"), [(True, 1.0), (False, 4.0)])
def test_a_fresh_optimizer_in_every_stage_if_asked_for(tmp_path: Path, reset: bool, steps: float) -> None:
    trainer(tmp_path, replace(CONFIG, reset_optimizer=reset)).train()
    state = load_file(tmp_path / "checkpoints" / "sft-step-4" / "optimizer.safetensors")
    counts = {float(tensor) for name, tensor in state.items() if name.endswith(".step")}
    assert counts == {steps}  # AdamW's own count of its updates


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train"):
        CurriculumConfig(cot_epochs=0, epochs_per_stage=0, final_epochs=0)
    with pytest.raises(UserError, match="train_dataset is empty"):
        trainer(tmp_path / "a", problems=[])
    bare = replace(LONG, id=5, steps=())
    with pytest.raises(UserError, match=r"no training problem has steps.* GRPO, which needs only answers"):
        trainer(tmp_path / "b", problems=[bare])
    # 64 positions: prompt 3 + 59 + newline + start, 2 thoughts, the end marker and 3 of the answer's 4 tokens.
    with pytest.raises(UserError, match=r"question 2 \('.*' \.\.\.\) has 64 tokens and needs 15 more"):
        trainer(tmp_path / "c", problems=[SHORT, replace(LONG, question="Ann has 3" + " ?" * 59)])
    wordy = replace(SHORT, steps=("1 + 2 - 3 * 4",) * 8)  # 8 tokens a step, the newline included
    with pytest.raises(UserError, match="64 positions"):
        trainer(tmp_path / "d", problems=[wordy])
    trainer(tmp_path / "shorter", problems=[replace(wordy, steps=wordy.steps[:6])])


def test_validation_gets_the_stages_own_thoughts_and_length(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def evaluate(model: LatentModel, latent_steps: int, max_new_tokens: int) -> float:
        asked.append((latent_steps, max_new_tokens))
        return len(asked) / 8

    config = replace(CONFIG, epochs_per_stage=2, eval_steps=4)
    trainer(tmp_path, config, evaluate=evaluate).train()
    # The longest answers: "3 + 1" and a newline, three times, then ### 6 EOS; a step less in each stage.
    # At the end of each stage, and at step 4, which is the middle of stage 2.
    assert asked == [(0, 15), (1, 11), (2, 7), (2, 7), (2, 3)]
    logged = [line for line in read_metrics(tmp_path) if "eval/pass@1" in line]
    assert [(line["step"], line["stage"], line["eval/pass@1"]) for line in logged] == [
        (1, 0, 1 / 8), (3, 1, 2 / 8), (4, 2, 3 / 8), (5, 2, 4 / 8), (6, 3, 5 / 8),
    ]  # fmt: skip
    assert {line["part"] for line in read_metrics(tmp_path)} == {"sft"}


def test_only_stages_that_are_trained_count(tmp_path: Path) -> None:
    """Faults: ``evaluate`` asked as in a stage without epochs; the length of such a stage was required."""
    asked: list[tuple[int, int]] = []

    def evaluate(model: LatentModel, latent_steps: int, max_new_tokens: int) -> float:
        asked.append((latent_steps, max_new_tokens))
        return 0.0

    trainer(tmp_path / "a", replace(CONFIG, final_epochs=0), evaluate=evaluate).evaluate()
    assert asked == [(2, 7)]  # stage 2, as in the test above: one step and the answer in words
    wordy = replace(SHORT, steps=("1 + 2 - 3 * 4",) * 8)  # too long in words, which are not shown
    only = replace(CONFIG, cot_epochs=0, epochs_per_stage=0)
    trainer(tmp_path / "b", only, problems=[wordy])
    with pytest.raises(UserError, match="64 positions"):
        trainer(tmp_path / "c", replace(only, uniform_prob=0.5), problems=[wordy])


def test_each_row_needs_room_for_itself_alone(tmp_path: Path) -> None:
    """Fault: the longest question had to leave room for the longest answer of another row."""
    long_question, wordy = replace(SHORT, question="Ann has 1 ?" * 10), replace(LONG, steps=("1 + 2 - 3 * 4",) * 5)
    for i, one in enumerate((long_question, wordy)):
        trainer(tmp_path / str(i), problems=[one])
    trainer(tmp_path / "both", problems=[long_question, wordy])
    with pytest.raises(UserError, match=r"question 2 \('Ann has .*64 positions"):
        trainer(tmp_path / "long", problems=[SHORT, replace(long_question, question="Ann has 1 ?" * 40)])


def test_stages_are_kept_when_asked_for(tmp_path: Path) -> None:
    model = tiny_latent()
    trainer(tmp_path, replace(CONFIG, save_stages=True), model=model, part="x").train()
    folders = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert folders == {"x-step-3", "x-step-4", "x-stage-0", "x-stage-1", "x-stage-2", "x-stage-3"}
    for name in ("x-step-4", "x-stage-3"):
        assert_same_weights(weights_of(LatentModel.from_pretrained(tmp_path / "checkpoints" / name)), weights_of(model))
    stages = [LatentModel.from_pretrained(tmp_path / "checkpoints" / f"x-stage-{i}") for i in range(4)]
    assert [stage.latent_steps for stage in stages] == [0, 1, 2, 2]  # fault: 2 in all of them
    assert model.latent_steps == 2
    first = weights_of(stages[0])
    assert any(not torch.equal(first[name], tensor) for name, tensor in weights_of(model).items())


def test_what_is_not_finite_stops_the_run_and_is_not_saved(tmp_path: Path) -> None:
    model = tiny_latent()

    def poison(model: LatentModel, latent_steps: int, max_new_tokens: int) -> float:
        if latent_steps == 2:  # the end of stage 2
            model.thought.register_forward_hook(lambda module, args, output: output * torch.inf)
        return 0.0

    with pytest.raises(
        NonFinite, match=r"curriculum seed 0, step 3, stage 2: after the update, .*checkpoints/sft-step-2"
    ) as error:
        trainer(tmp_path, model=model, evaluate=poison).train()
    assert "lower learning rate" in str(error.value)
    assert [line["step"] for line in updates(tmp_path)] == [1, 2, 3]
    last = LatentModel.from_pretrained(tmp_path / "checkpoints" / "sft-step-2")
    assert all(bool(tensor.isfinite().all()) for tensor in weights_of(last).values())
    state = json.loads((tmp_path / "checkpoints" / "sft-step-2" / "trainer_state.json").read_text())
    assert state.pop("record")["options"]["learning_rate"] == CONFIG.learning_rate
    assert state == {"step": 2, "stage": 1, "batch_sizes": {"micro_batch_size": 2}}


def test_the_forms_that_grpo_takes_too(tmp_path: Path) -> None:
    """Dicts, a plain model with its tokenizer, a path for the run, problems to validate on, callbacks."""
    expected = trainer(tmp_path / "expected")
    expected.train()
    rows = [{"question": p.question, "steps": list(p.steps), "answer": p.answer} for p in (SHORT, LONG)]
    model = tiny_model("gpt2", torch.float32, vocab_size=PLAIN_TOKENS)
    seen: list[tuple[str, int, float]] = []

    class Seen(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            seen.append(("epoch", state.global_step, state.epoch))

        def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            assert set(more["metrics"]) == {"eval_pass@1"}
            seen.append(("evaluate", state.global_step, state.epoch))

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            assert more["optimizer"] is not None
            seen.append(("save", state.global_step, state.epoch))

    made = CurriculumTrainer(
        model, CONFIG, rows, tmp_path / "run", rows[:1], tiny_tokenizer(), callbacks=[Seen], seed=0
    )
    output = made.train()
    assert_same_weights(weights_of(made.model), weights_of(expected.model))
    assert updates(tmp_path / "run") == updates(tmp_path / "expected")
    assert seen == [
        (event, n + (event != "epoch"), n + (event != "epoch"))
        for n in range(4)
        for event in ("epoch", "evaluate", "save")
    ]  # 4 stages of one epoch of one update
    losses = [line["loss"] for line in updates(tmp_path / "run")]
    assert [log["loss"] for log in made.state.log_history if "loss" in log] == losses
    assert (output.global_step, output.training_loss) == (4, pytest.approx(sum(losses) / 4))
    answered = answer_problems(made.model, [SHORT], EvaluationConfig(num_samples=0, max_new_tokens=3))
    assert made.evaluate() == {"eval/pass@1": float(answered[0].plain_correct)}
    made.save_model()
    assert LatentModel.from_pretrained(tmp_path / "run" / "checkpoints" / "sft").latent_steps == CONFIG.latent_steps
    with pytest.raises(UserError, match="give the trainer an eval_dataset"):
        expected.evaluate()


def test_a_callback_stops_the_curriculum_and_it_resumes(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop = state.global_step == 2

    whole, stopped = trainer(tmp_path / "whole"), trainer(tmp_path / "parts", callbacks=[Stop])
    whole.train()
    assert stopped.train().global_step == 2
    again = trainer(tmp_path / "parts", resume=True)
    assert again.train(resume_from_checkpoint=True).global_step == 4
    assert_same_weights(weights_of(again.model), weights_of(whole.model))
    assert updates(tmp_path / "parts") == updates(tmp_path / "whole")
    assert [log["step"] for log in again.state.log_history] == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("model", "has"),
    [
        ({"latent_steps": 3}, "latent_steps 3 and thought 'hidden_state'"),
        ({"thought": "pause"}, "latent_steps 2 and thought 'pause'"),
    ],
)
def test_a_model_that_would_think_in_another_way_is_refused(model: dict[str, Any], has: str, tmp_path: Path) -> None:
    """Fault: it was trained with other thoughts than it answers with."""
    with pytest.raises(UserError, match=f"has {has}, and the curriculum trains 2"):
        trainer(tmp_path, model=tiny_latent(**model))


def test_validation_questions_are_checked_before_training(tmp_path: Path) -> None:
    """Fault: a long one stopped the training at the first validation."""
    long = [replace(SHORT, question="? " * 60)]
    with pytest.raises(UserError, match=r"eval_dataset: question 1 .* has 6. tokens"):
        trainer(tmp_path, eval_dataset=long)
