"""Everything that runs on a GPU, on a pretended device that refuses what CUDA refuses; results are those of the CPU."""

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.evaluation.answering import EvaluationConfig, answer_problems
from dropout_grpo.exploration import Exploration, SharedDropout
from dropout_grpo.exploration.gaussian import Gaussian
from dropout_grpo.latent import LatentModel, graphs
from dropout_grpo.latent.decoding import Generation
from dropout_grpo.latent.io.custom_generate.generate import generate
from dropout_grpo.latent.rollout import Prompts, replay, roll_out
from dropout_grpo.latent.tokens import add_latent_tokens
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.tasks.word_tokenizer import word_tokenizer
from evidence.places import DOCS
from evidence.rivals.gaussian_v import GaussianV
from evidence.rivals.svp import SVP
from helpers import families
from helpers.by_path import module_at
from helpers.engine import ALL_PHASES, ALL_SITES, EXPLORATIONS, HELD, QUESTIONS, difference, latent_model, prompts
from helpers.grpo_run import CONFIG, alternating, steps_of, trainer
from helpers.pretended import NAME, Pretended, place, pretended
from helpers.tiny_latent import tiny_latent, tiny_problems
from helpers.tiny_lora import tiny_lora

pytestmark = pytest.mark.filterwarnings("error:.*cannot be recorded")

SEEDS = torch.arange(12).view(3, 4) - 5
OTHERS = {"gaussian": Gaussian(), "gaussian_v": GaussianV(), "svp": SVP()}
ALL = {**EXPLORATIONS, **OTHERS}
CASES = [("gpt2", name) for name in ("per_step", *OTHERS)] + [("llama", "every_site")]


def rollouts(
    model: LatentModel, exploration: Exploration = HELD, *, questions: list[list[int]] = QUESTIONS, length: int = 6
) -> Generation:
    seeds = SEEDS[: len(questions)]
    with torch.no_grad():
        inputs = Prompts(*model.pad(questions))
        return roll_out(model, inputs, seeds, exploration, temperature=1.5, top_p=0.9, max_completion_length=length)


def held(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, Pretended)
    return tensor.held


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_rollouts_and_their_replay(kind: str, name: str) -> None:
    """Step by step, then recorded, then replayed; and the gradients of the log-probabilities."""
    model, exploration = latent_model(kind, torch.float32), ALL[name]
    expected = rollouts(model, exploration)
    prompts = Prompts(*model.pad(QUESTIONS))
    logprobs = replay(model, prompts, SEEDS, expected.token_ids, exploration, temperature=1.5)
    logprobs.sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model = place(latent_model(kind, torch.float32))
    with pretended():
        for _ in range(3):
            actual = rollouts(model, exploration)
            assert torch.equal(held(actual.token_ids), expected.token_ids)
            assert difference(held(actual.logprobs), expected.logprobs) < 1e-5
        recorded = name not in ("gaussian_v", "svp")
        assert len(graphs._RECORDINGS.get(model, ())) == (2 if recorded else 0)
        prompts = Prompts(*model.pad(QUESTIONS))
        logprobs = replay(model, prompts, SEEDS, actual.token_ids, exploration, temperature=1.5)
        logprobs.sum().backward()
        for parameter, weight in model.named_parameters():
            if parameter in gradients:
                assert difference(held(weight.grad), gradients[parameter]) < 1e-4, parameter


GPU_TESTS: dict[str, tuple[Any, ...]] = {
    "test_bits_of_the_gpu_are_those_of_the_cpu": ("thought",),
    "test_scores_and_gradients_agree": ("gpt2", HELD, torch.float64, 1e-10),
    "test_answers_agree": ("qwen3", SharedDropout(0.3, ALL_SITES, ALL_PHASES)),
    "test_the_first_ratio_is_one": ("llama", False),
}


@pytest.mark.parametrize("name", GPU_TESTS)
def test_the_tests_for_a_gpu_run_at_all(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a helper made a tensor on the CPU, so that 54 of them could only fail."""
    tests = module_at("tests/exactness/test_gpu.py")
    with pretended():
        device = torch.device(NAME, 0)

        def on_device(kind: str, dtype: torch.dtype) -> tuple[LatentModel, Prompts]:
            batch = prompts()
            moved = Prompts(batch.input_ids.to(device), batch.attention_mask.to(device))
            return place(latent_model(kind, dtype)), moved

        monkeypatch.setattr(tests, "CUDA", device)
        monkeypatch.setattr(tests, "on_cuda", on_device)
        getattr(tests, name)(*GPU_TESTS[name])


RESULTS = json.loads((DOCS / "results" / "families.json").read_text(encoding="utf-8"))["families"]
SHARING = [name for name, actual in RESULTS.items() if actual.get("shares_prompt")]
USUAL = ("gpt2", "qwen3", "gpt_neox", "mixtral")
"""The families of the ordinary run: absolute and rotary positions, and experts."""


@pytest.mark.parametrize(
    "family", [name if name in USUAL else pytest.param(name, marks=pytest.mark.slow) for name in SHARING]
)
def test_families_with_one_copy_of_the_prompt(family: str) -> None:
    """Each is recorded, but for those with experts and those that transformers does not mark as recordable."""
    plain, tokenizer = families.tiny(family, torch.float32), word_tokenizer(families.WORDS)
    if hasattr(plain.config, "_experts_implementation"):
        plain.config._experts_implementation = "grouped_mm"  # what transformers uses
    add_latent_tokens(plain, tokenizer)
    model = LatentModel(plain, tokenizer, latent_steps=1)
    questions = model.encode_rows(families.QUESTIONS)
    expected = rollouts(model, SharedDropout(0.3), questions=questions, length=1)
    place(model)
    with pretended():
        for _ in range(2):
            actual = rollouts(model, SharedDropout(0.3), questions=questions, length=1)
            assert torch.equal(held(actual.token_ids), expected.token_ids)
            assert difference(held(actual.logprobs), expected.logprobs) < 1e-4
        marked = getattr(plain, "_can_compile_fullgraph", False) and not hasattr(plain.config, "num_experts_per_tok")
        assert len(graphs._RECORDINGS.get(model, ())) == (2 if marked else 0)


VARIANT: dict[str, Any] = {
    "importance_sampling_level": "sequence",
    "baseline": "ema",
    "num_iterations": 2,
    "mask_truncated_completions": True,
}


def double(seed: int = 0) -> LatentModel:
    """In float64, so that Adam makes no step of the rounding of a gradient of 0."""
    return tiny_latent(dtype=torch.float64, seed=seed)


def trained(folder: Path, model: LatentModel, resume: bool = False, **options: Any) -> dict[str, Tensor]:
    """The weights after some steps of GRPO."""
    config = replace(CONFIG, **{"max_steps": 2, "prompts_per_step": 2, **options})
    trainer(folder, config, model=model, resume=resume).train(resume_from_checkpoint=resume)
    return {name: p.held if isinstance(p, Pretended) else p.detach() for name, p in model.named_parameters()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        assert difference(actual[name].detach(), expected[name]) < 1e-4, name


@pytest.mark.parametrize("options", [{}, pytest.param(VARIANT, marks=pytest.mark.slow)], ids=["plain", "variant"])
def test_grpo(options: dict[str, Any], tmp_path: Path) -> None:
    expected = trained(tmp_path / "a", double(), **options)
    with pretended():
        model = place(double())
        assert_close(trained(tmp_path / "b", model, **options), expected)
        assert len(graphs._RECORDINGS[model]) > 0
    for actual, line in zip(steps_of(tmp_path / "b"), steps_of(tmp_path / "a"), strict=True):
        assert actual.pop("part") == line.pop("part")
        assert actual == pytest.approx(line, rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_grpo_of_an_adapter(tmp_path: Path) -> None:
    expected = trained(tmp_path / "a", tiny_lora(tmp_path / "c"), beta=0.1)
    with pretended():
        assert_close(trained(tmp_path / "b", place(tiny_lora(tmp_path / "c")), beta=0.1), expected)


@pytest.mark.slow
def test_a_resumed_run_with_a_reference(tmp_path: Path) -> None:
    options: dict[str, Any] = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 1, "save_steps": 1}
    expected = trained(tmp_path / "a", double(), **options)
    with pretended():
        trained(tmp_path / "b", place(double()), max_steps=1, **options)
        assert_close(trained(tmp_path / "b", place(double()), resume=True, **options), expected)


def test_curriculum(tmp_path: Path) -> None:
    config = CurriculumConfig(c_thought=2, max_latent_stage=1, cot_epochs=1, epochs_per_stage=1, final_epochs=0)
    weights = []
    for placed in (False, True):
        with pretended() if placed else nullcontext():
            model = place(double()) if placed else double()
            run = RunFolder(tmp_path / str(placed), "sft", {})
            CurriculumTrainer(model, config, tiny_problems(2, steps=2), run, seed=0).train()
            weights.append(dict(model.named_parameters()))
    assert_close({name: held(p) for name, p in weights[1].items()}, weights[0])


def test_evaluation() -> None:
    model, problems = double(seed=17), tiny_problems(3)
    config = EvaluationConfig(num_samples=2, max_new_tokens=3, batch_size=4)
    expected = answer_problems(model, problems, config, exploration=SharedDropout(0.3))
    with pretended():
        place(model)
        for _ in range(2):
            assert answer_problems(model, problems, config, exploration=SharedDropout(0.3)) == expected
        assert len(graphs._RECORDINGS[model]) >= 3


def test_generate_of_a_published_folder(tmp_path: Path) -> None:
    model = tiny_latent(thought="projection")
    model.save_pretrained(tmp_path)
    ids, mask = model.encode(["Ann has 3 ?", "Ann has 4"])
    model.model.name_or_path = str(tmp_path)
    expected = generate(model.model, input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    with pretended():
        place(model)
        ids, mask = model.encode(["Ann has 3 ?", "Ann has 4"])
        actual = generate(model.model, input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert torch.equal(held(actual), expected)


def test_a_token_decoded_step_by_step_waits_once() -> None:
    """While all rows go on."""
    model, seen = place(latent_model("gpt2", torch.float32)), []
    with pretended() as crossings, graphs.step_by_step():
        for length in (3, 4):
            crossings.clear()
            assert rollouts(model, length=length).mask.shape == (12, length)
            seen.append(Counter(crossings))
    assert seen[1] - seen[0] == {"copy to the host": 1}


def test_what_a_micro_batch_waits_for(tmp_path: Path) -> None:
    """It waits for the longest prompt, for whether there is padding and for the number of tokens of prompts and of
    answers, and copies indices, seeds and advantages."""
    seen = []
    with pretended() as crossings:
        for groups in (2, 1):  # of 4 groups: 2 micro-batches, then 4
            config = replace(CONFIG, prompts_per_step=4, micro_batch_size=4 * groups)
            made_by = trainer(tmp_path / str(groups), config, model=place(double()), reward_funcs=[alternating])
            sampled, _ = made_by.sampler.sample(1)
            crossings.clear()
            made_by.update.backward(sampled, group_advantages(sampled.rewards))
            seen.append(Counter(crossings))
    assert seen[1] - seen[0] == {"_local_scalar_dense": 2 * 2, "nonzero": 2 * 2, "copy to the device": 2 * 4}
