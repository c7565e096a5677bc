"""Micro-batches that do not fit are halved, and gradients of failed attempts are discarded."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError, is_out_of_memory
from dropout_grpo.evaluation.answering import EvaluationConfig, answer_problems, evaluation_batches
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent import LatentModel
from dropout_grpo.rl.advantage import group_advantages
from dropout_grpo.rl.trainer import GRPOTrainer
from dropout_grpo.runs.folder import RunFolder
from dropout_grpo.training import loop, memory
from dropout_grpo.training.memory import MicroBatches, total_memory
from dropout_grpo.training.optimizer import build_optimizer, build_schedule, update
from helpers.grpo_run import CONFIG, alternating, steps_of, trainer
from helpers.tiny_latent import tiny_latent, tiny_problems

WORDS = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


def test_the_allocators_own_words_are_known() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."))
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))


class Attempts:
    """Work that fails above ``fits`` items."""

    def __init__(self, fits: int) -> None:
        self.fits, self.sizes = fits, []  # type: tuple[int, list[int]]

    def __call__(self, size: int) -> str:
        self.sizes.append(size)
        if size > self.fits:
            raise RuntimeError(WORDS)
        return f"done by {size}"


def test_halved_until_it_fits_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    batches, work = MicroBatches("micro_batch_size", 256), Attempts(fits=9)
    assert batches.fit(100, work, rows=8) == "done by 8"  # 32 groups of 8, then 16, then 8
    assert work.sizes == [32, 16, 8]
    assert batches.fit(100, work, rows=8) == "done by 8"
    assert work.sizes == [32, 16, 8, 8]
    warnings = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(warnings) == 2
    assert "out of memory with 256 rows at once: continuing with micro_batch_size=128." in warnings[0]
    assert "out of memory with 128 rows at once: continuing with micro_batch_size=64." in warnings[1]


def test_what_is_there_is_halved_and_not_what_was_allowed() -> None:
    work = Attempts(fits=2)
    MicroBatches("micro_batch_size", 1000).fit(5, work)
    assert work.sizes == [5, 2]
    odd = Attempts(fits=1)
    MicroBatches("micro_batch_size", 25).fit(9, odd, rows=8)  # 25 rows hold 3 groups of 8
    assert odd.sizes == [3, 1]


def test_less_than_one_item_there_is_not() -> None:
    work = Attempts(fits=0)
    with pytest.raises(UserError, match=r"out of memory with micro_batch_size=8, the smallest value. A training"):
        MicroBatches("micro_batch_size", 16).fit(4, work, rows=8)
    assert work.sizes == [2, 1]


def test_the_last_failed_attempt_is_not_held() -> None:
    """Fault: the error's traceback held its tensors while weights were put back in their dtype."""
    held = []

    def work(size: int) -> None:
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        raise RuntimeError(WORDS)

    with pytest.raises(UserError) as caught:
        MicroBatches("micro_batch_size", 1).fit(1, work)
    assert caught.value.__context__ is None
    assert held[0]() is None


def test_graphs_leave_room_for_the_optimizers_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: the first step ran out of memory that only graphs had."""
    given_back: list[int] = []
    made = trainer(tmp_path, replace(CONFIG, max_steps=3), reward_funcs=[alternating])
    monkeypatch.setattr(loop, "give_back_recordings", lambda: given_back.append(made.updates))
    made.train()
    assert given_back == [0]


def test_other_errors_are_not_memory() -> None:
    def work(size: int) -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        MicroBatches("micro_batch_size", 16).fit(4, work)


@contextmanager
def forward_fails_above(rows: int, model: LatentModel) -> Iterator[None]:
    """The decoder has no memory for more rows."""

    def fail(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs["inputs_embeds"].shape[0] > rows:
            raise RuntimeError(WORDS)

    handle = model.model.get_decoder().register_forward_pre_hook(fail, with_kwargs=True)
    yield
    handle.remove()


@contextmanager
def backward_fails_once(model: LatentModel, at: int) -> Iterator[None]:
    """The ``at``-th backward pass has no memory for its last gradient, when it has added all the others."""
    calls = []

    def fail(parameter: Tensor) -> None:
        calls.append(parameter)
        others = [p for p in model.parameters() if p is not parameter]
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in others), "nothing is left behind"
        if len(calls) == at:
            raise RuntimeError(WORDS)

    handle = model.model.get_decoder().wpe.weight.register_post_accumulate_grad_hook(fail)
    yield
    handle.remove()
    assert len(calls) > at, "nothing has failed"


def gradients_of(model: LatentModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def grpo(tmp_path: Path, groups: int) -> GRPOTrainer:
    """5 mixed groups of 4, a given number of them per micro-batch."""
    config = replace(CONFIG, prompts_per_step=5, micro_batch_size=4 * groups, beta=0.1)
    return trainer(tmp_path / str(groups), config, model=tiny_latent(dtype=torch.float64), reward_funcs=[alternating])


def gradients_of_grpo(made: GRPOTrainer) -> tuple[dict[str, Tensor], dict[str, float]]:
    groups, _ = made.sampler.sample(1)
    seen = made.update.backward(groups, group_advantages(groups.rewards))
    assert seen is not None
    return gradients_of(made.model), seen


@pytest.mark.parametrize("at", [1, 2])
def test_grpos_gradients_after_a_failure_are_those_of_the_whole(tmp_path: Path, at: int) -> None:
    whole, seen_whole = gradients_of_grpo(grpo(tmp_path, 5))
    small, seen_small = gradients_of_grpo(grpo(tmp_path, 2))
    failing = grpo(tmp_path, 4)
    with backward_fails_once(failing.model, at):
        found, seen = gradients_of_grpo(failing)
    assert failing.update.batches.size == 8
    for name, expected in small.items():
        assert torch.equal(found[name], expected), name
        torch.testing.assert_close(found[name], whole[name], atol=1e-12, rtol=1e-9)
    assert seen == seen_small
    assert seen == pytest.approx(seen_whole, rel=1e-9, abs=1e-12)


def test_a_run_short_of_memory_is_the_run_with_small_micro_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, short = tiny_latent(), tiny_latent()
    trainer(tmp_path / "small", replace(CONFIG, micro_batch_size=4, rollout_batch_size=4), model=small).train()
    capsys.readouterr()
    made = trainer(tmp_path / "short", replace(CONFIG, micro_batch_size=12, rollout_batch_size=12), model=short)
    with forward_fails_above(4, short):
        made.train()
    assert steps_of(tmp_path / "short") == steps_of(tmp_path / "small")
    for name, tensor in small.state_dict().items():
        assert torch.equal(short.state_dict()[name], tensor), name
    said = capsys.readouterr().err
    assert said.count("continuing with micro_batch_size=4.") == 1
    assert said.count("continuing with rollout_batch_size=4.") == 1


@contextmanager
def no_room_without_checkpointing(model: LatentModel) -> Iterator[None]:
    """A decoder whose activations are kept has no memory; nor has one that runs again with more than 4 rows."""

    def fail(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and not (model.gradient_checkpointing and kwargs["inputs_embeds"].shape[0] <= 4):
            raise RuntimeError(WORDS)

    handle = model.model.get_decoder().register_forward_pre_hook(fail, with_kwargs=True)
    yield
    handle.remove()


def test_layers_run_again_where_not_even_one_group_or_problem_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a GPU nothing is planned. The gradients are those of a machine with more memory."""
    for make, gradients in ((grpo, gradients_of_grpo), (curriculum, gradients_of_curriculum)):
        small, seen_small = gradients(make(tmp_path / "small", 1))
        failing = make(tmp_path / "failing", 3)
        capsys.readouterr()
        with no_room_without_checkpointing(failing.model):
            found, seen = gradients(failing)
        assert seen == seen_small
        assert all(torch.equal(found[name], expected) for name, expected in small.items())
        assert capsys.readouterr().err.count("gradient_checkpointing is on from now on") == 1
        refused = make(tmp_path / "refused", 1)
        config = refused.update if isinstance(refused, GRPOTrainer) else refused
        config.config = replace(config.config, gradient_checkpointing=False)
        with no_room_without_checkpointing(refused.model), pytest.raises(UserError, match="the smallest value"):
            gradients(refused)


# Coconut's curriculum. Stages of 1 thought each; problems of 1 to 3 steps, shown as in different stages.
MIXED = CurriculumConfig(c_thought=1, max_latent_stage=2, uniform_prob=0.7, batch_size=7)


def curriculum(tmp_path: Path, micro_batch_size: int | None) -> CurriculumTrainer:
    problems = [replace(p, steps=p.steps[: 1 + p.id % 3]) for p in tiny_problems(7, steps=3)]
    run = RunFolder(tmp_path / str(micro_batch_size), "sft", {})
    config = replace(MIXED, micro_batch_size=micro_batch_size)
    return CurriculumTrainer(tiny_latent(dtype=torch.float64), config, problems, run, seed=0)


def gradients_of_curriculum(made: CurriculumTrainer) -> tuple[dict[str, Tensor], float]:
    loss = made.backward(made.stages[1], list(range(7)), 3)
    return gradients_of(made.model), loss


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_the_curriculums_gradients_do_not_depend_on_micro_batches(tmp_path: Path, micro_batch_size: int) -> None:
    whole, loss = gradients_of_curriculum(curriculum(tmp_path, None))
    made, most = curriculum(tmp_path, micro_batch_size), []  # type: tuple[CurriculumTrainer, list[int]]

    def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        most.append(kwargs["inputs_embeds"].shape[0])

    made.model.model.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    found, seen = gradients_of_curriculum(made)
    assert max(most) == micro_batch_size
    assert seen == pytest.approx(loss, rel=1e-12)
    for name, expected in whole.items():
        torch.testing.assert_close(found[name], expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_curriculums_gradients_after_a_failure(tmp_path: Path, at: int) -> None:
    small, loss = gradients_of_curriculum(curriculum(tmp_path, 3))
    failing = curriculum(tmp_path, 7)
    with backward_fails_once(failing.model, at):
        found, seen = gradients_of_curriculum(failing)
    assert failing._micro_batches.size == 3
    assert seen == loss
    assert all(torch.equal(found[name], expected) for name, expected in small.items())


@pytest.mark.parametrize(("num_samples", "fits", "kept"), [(0, 3, 2), (3, 6, 6)])
def test_evaluation_short_of_memory_gives_the_same_answers(
    num_samples: int, fits: int, kept: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was answered before memory ran out is not asked again: the longest questions come last."""
    model, problems = tiny_latent(dtype=torch.float64), tiny_problems(7)
    config = EvaluationConfig(num_samples=num_samples, max_new_tokens=3, batch_size=12 if num_samples else 4)
    options: dict[str, Any] = {"exploration": SharedDropout(0.3) if num_samples else None}
    expected, done = answer_problems(model, problems, config, **options), []  # type: tuple[list[ModelAnswers], list[int]]
    capsys.readouterr()
    with forward_fails_above(fits, model):
        assert answer_problems(model, problems, config, progress=done.append, **options) == expected
    assert done == [2, 4, 6, 7]
    said = capsys.readouterr().err
    assert said.count("out of memory") == 1
    assert f"continuing with evaluation.batch_size={kept}." in said


def test_evaluation_of_a_problem_that_does_not_fit() -> None:
    model = tiny_latent()
    config = EvaluationConfig(num_samples=4, batch_size=8)
    with (
        forward_fails_above(3, model),
        pytest.raises(UserError, match=r"out of memory with evaluation.batch_size=4, the smallest value"),
    ):
        answer_problems(model, tiny_problems(5), config, exploration=SharedDropout(0.3))


@pytest.mark.parametrize(
    "message",
    [
        "could not create a primitive",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasLtCreate(&handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "NCCL error in: ProcessGroupNCCL.cpp:3384, unhandled cuda error, NCCL version 2.27.5\n"
        "Last error:\nFailed to CUDA calloc async 4 bytes",
        "NCCL error in: ProcessGroupNCCL.cpp:2391, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'",
    ],
)
def test_libraries_say_it_in_other_words(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access was encountered", "Cuda failure 'invalid'"])
def test_other_failures_of_a_gpu_are_not_memory(message: str) -> None:
    assert not is_out_of_memory(RuntimeError(message))


def test_an_optimizer_without_room_for_its_state_says_so() -> None:
    """The first step allocates it; no traceback, no half of a message."""
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer = build_optimizer(model.parameters(), learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.999))
    schedule = build_schedule(optimizer, "constant", warmup_steps=0, updates=1)

    def fails(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    optimizer.register_step_pre_hook(fails)
    with pytest.raises(UserError, match=r"out of memory in the optimiser's step; the first one .* adapter"):
        update(model, optimizer, schedule, loss=1.0, max_grad_norm=1.0, where="step 1", last_good="none")


def test_a_failed_attempt_leaves_random_numbers_and_gradients_as_they_were() -> None:
    weight = nn.Parameter(torch.zeros(2))
    drawn: list[float] = []

    def work(size: int) -> float:
        assert weight.grad is None
        drawn.append(float(torch.rand(())))
        weight.sum().backward()
        if size > 1:
            raise RuntimeError(WORDS)
        return drawn[-1]

    def clear() -> None:
        weight.grad = None

    MicroBatches("micro_batch_size", 4).fit(4, work, clear=clear)
    assert drawn == [drawn[0]] * 3
    clear()
    before = torch.get_rng_state()
    with pytest.raises(UserError, match="out of memory"):
        MicroBatches("micro_batch_size", 4).fit(4, lambda size: work(size + 1), clear=clear)
    assert torch.equal(torch.get_rng_state(), before)
    assert weight.grad is None


def test_validation_remembers_the_size_that_memory_forced(capsys: pytest.CaptureFixture[str]) -> None:
    model, config = tiny_latent(), EvaluationConfig(num_samples=0, max_new_tokens=3, batch_size=4)
    batches = evaluation_batches(config)
    for _ in range(2):
        with forward_fails_above(3, model):
            answer_problems(model, tiny_problems(7), config, batches=batches)
    assert batches.size == 2
    assert capsys.readouterr().err.count("out of memory") == 1


def test_the_total_is_that_of_the_machine_or_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free now does not count: the same command has the same sizes."""
    assert total_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    for free in (1, 99):
        (tmp_path / "proc" / "meminfo").write_text(f"MemTotal: 100 kB\nMemAvailable: {free} kB\n")
        assert total_memory(tmp_path) == 100 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    for limit, total in (("max", 100 * 1024), ("1000000", 100 * 1024), ("10000", 10000)):
        (group / "memory.max").write_text(f"{limit}\n")
        assert total_memory(tmp_path) == total
    (tmp_path / "proc" / "self").mkdir()
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slurm/job1/step0\n")
    (group / "slurm" / "job1" / "step0").mkdir(parents=True)
    (group / "slurm" / "job1" / "memory.max").write_text("9000\n")
    (group / "slurm" / "job1" / "step0" / "memory.max").write_text("max\n")
    assert total_memory(tmp_path) == 9000
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # processes of a launched run share the machine
    assert total_memory(tmp_path) == 2500


def test_more_than_the_plan_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resident bytes by hand. Where little goes back, the limit grows, so that it is not tried after every batch."""
    batches, resident = MicroBatches("micro_batch_size", 4), [120, 80, 120, 110, 120, 130, 100]
    gone_back = []
    monkeypatch.setattr(memory, "return_freed_memory", lambda: gone_back.append(len(resident)))
    monkeypatch.setattr(memory, "resident_memory", lambda: resident.pop(0))
    batches.give_back()  # without a plan
    assert (gone_back, len(resident)) == ([], 7)
    batches.planned = 100
    batches.give_back()  # 120, then 80
    assert (gone_back, batches.planned) == ([6], 100)
    batches.give_back()  # 120, then 110
    assert (gone_back, batches.planned) == ([6, 4], 121)
    batches.give_back()  # 120
    assert gone_back == [6, 4]
    batches.give_back()  # 130, then 100
    assert (gone_back, batches.planned) == ([6, 4, 1], 121)


def test_every_micro_batch_of_a_training_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 groups of 4 in micro-batches of 2 groups, for 3 steps; 5 problems, 2 at a time, for an epoch."""
    limits = list[int | None]()
    monkeypatch.setattr(MicroBatches, "give_back", lambda batches: limits.append(batches.planned))
    monkeypatch.setattr(loop, "_NOT_GIVEN_BACK", 0)
    grpo = trainer(tmp_path / "grpo", reward_funcs=[alternating])
    grpo.train()
    assert limits == [grpo.plan().total] * 6
    limits.clear()
    options = CurriculumConfig(
        c_thought=1, max_latent_stage=2, cot_epochs=1, epochs_per_stage=0, final_epochs=0, micro_batch_size=2
    )
    sft = CurriculumTrainer(tiny_latent(), options, tiny_problems(5, steps=2), tmp_path / "sft")
    sft.train()
    assert limits == [sft.plan().total] * 3
