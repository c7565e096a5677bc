"""The plan of a training's memory: parts by hand, fake runs against real ones, and the choice of sizes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropout_grpo.config.curriculum import CurriculumConfig
from dropout_grpo.curriculum.trainer import CurriculumTrainer
from dropout_grpo.errors import UserError
from dropout_grpo.exploration import SharedDropout
from dropout_grpo.latent.casts import autocast
from dropout_grpo.latent.decoding import Sampling
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts, replay
from dropout_grpo.training import loop, plan
from dropout_grpo.training.fake import Fake, Ledger, NeedsData, fake_weights
from dropout_grpo.training.memory import MicroBatches
from dropout_grpo.training.plan import Held, Work, bytes_of_casts, fake_peak, lasting, peak, require_room, sampled
from helpers.grpo_run import CONFIG, alternating, trainer
from helpers.tiny_latent import tiny_latent, tiny_problems


def test_a_ledger_by_hand() -> None:
    layer, rows = nn.Linear(4, 3, bias=False), torch.ones(5, 4)
    with Ledger(layer) as ledger:
        out = layer(rows).tanh()
        assert (ledger.live, ledger.peak) == (4 * 5 * 3, 4 * (5 * 3 + 5 * 3))  # product and tanh; the product is freed
        out.sum().backward()
        # sum, its gradient (a view), that of tanh, and the weight's, which stays
        assert ledger.peak == 4 * (5 * 3 + 1 + 1 + 5 * 3 + 3 * 4)
        assert ledger.live == 4 * (5 * 3 + 3 * 4)


def works(model: LatentModel, bf16: bool) -> dict[str, Callable[[int], Tensor | Held]]:
    ids, masks = model.encode(["Ann has 3 ? ?", "Ann has"])
    masks_of, exploration = torch.arange(4).view(2, 2), SharedDropout(0.3)

    def update(rows: int) -> Tensor:
        answers = torch.zeros(4, 3, dtype=torch.int64)
        with autocast(model.device, bf16):
            return replay(model, Prompts(ids, masks), masks_of, answers, exploration, temperature=1.0).sum()

    def rollouts(rows: int) -> Held:
        with autocast(model.device, bf16):
            strategy = Sampling(masks_of.flatten(), 1.0)
            return sampled(model, Prompts(ids, masks), masks_of, exploration, strategy, length=3)

    return {"update": update, "rollouts": rollouts}


@pytest.mark.parametrize(
    ("kind", "bf16", "checkpointing"), [("gpt2", False, False), ("llama", True, False), ("gemma2", True, True)]
)
def test_a_fake_run_takes_the_bytes_of_a_real_one(kind: str, bf16: bool, checkpointing: bool) -> None:
    """To the byte: at the peak, and when the forward pass ends."""
    model = tiny_latent(kind)
    model.gradient_checkpointing = checkpointing
    before = dict(model.named_parameters())
    for run in works(model, bf16).values():
        real = peak(model, run, 4)
        with fake_weights(model):
            assert peak(model, run, 4) == real
    assert all(p is before[name] and p.grad is None for name, p in model.named_parameters())


def test_a_few_layers_stand_for_all() -> None:
    model = tiny_latent("llama", n_layer=8)
    for run in works(model, bf16=False).values():
        with fake_weights(model):
            whole, _ = peak(model, run, 4)
        assert 0.97 * whole <= fake_peak(model, run, 4) <= 1.03 * whole
    assert len(model.sites.layers) == 8


def test_a_fake_number_cannot_be_read() -> None:
    layer = nn.Linear(2, 2)
    with fake_weights(layer):
        out = layer(torch.ones(3, 2))
        assert isinstance(out, Fake)
        assert (out.shape, out.dtype, out.device.type) == ((3, 2), torch.float32, "cpu")
        with pytest.raises(NeedsData):
            bool(out.sum() > 0)


def test_the_parts_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, replace(CONFIG, beta=0.1))
    monkeypatch.setattr(loop, "available_memory", lambda: 10**9)
    weights = sum({p.data_ptr(): 4 * p.numel() for p in made.model.parameters()}.values())
    buffers = sum(buffer.nbytes for buffer in made.model.buffers())
    found = made.plan()
    assert found.weights == weights + buffers
    assert (found.gradients, found.optimizer, found.reference) == (weights, 2 * weights, weights)
    assert found.saving == 4 * max(p.numel() for p in made.model.parameters())
    update, rollouts = found.sizes
    assert (update.rows, rollouts.rows) == (CONFIG.micro_batch_size, CONFIG.rollout_batch_size)
    stays = plan.PROCESS + weights + buffers + 2 * weights + weights
    assert found.total == stays + max(weights + update.bytes, rollouts.bytes)
    assert found.fits


def test_the_longest_row_is_of_any_stage_that_is_shown(tmp_path: Path) -> None:
    """``uniform_prob`` shows problems in words though no stage of words trains."""
    config = CurriculumConfig(c_thought=1, max_latent_stage=1, cot_epochs=0, epochs_per_stage=1, final_epochs=0)
    problems = tiny_problems(3, steps=2)
    longest = []
    for probability in (0.0, 0.5):
        made = CurriculumTrainer(
            tiny_latent(latent_steps=1), replace(config, uniform_prob=probability), problems, tmp_path
        )
        shown: list[int] = []
        made.model.model.get_decoder().register_forward_pre_hook(
            lambda module, args, kwargs, shown=shown: shown.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        made.works()[0].run(1)
        longest.append(max(shown))
    words = {stage: max(map(len, made._answers[stage])) for stage in (0, 1)}
    assert longest[1] >= words[0] > words[1]
    assert longest[0] < longest[1]


@pytest.mark.parametrize("room", range(0, 500, 7))
def test_the_size_is_the_first_half_that_fits(room: int) -> None:
    """Sizes 64, 32, ... in groups of 4 rows; at most 40 rows are ever there."""

    def needs(rows: int) -> int:
        return 50 + 5 * rows

    work = Work(name="update", batches=MicroBatches("micro_batch_size", 64), rows=4, most=40, run=lambda rows: Held)
    size, bytes_ = plan._fitting(work, 64, needs, room)
    fits = [size for size in (64, 32, 16, 8, 4) if needs(min(size, 40)) <= room]
    assert size == (fits[0] if fits else 4)
    assert bytes_ == needs(min(size, 40))


def curriculum(folder: Path) -> CurriculumTrainer:
    config = CurriculumConfig(c_thought=1, max_latent_stage=1, cot_epochs=1, epochs_per_stage=0, final_epochs=0)
    return CurriculumTrainer(tiny_latent(latent_steps=1), config, tiny_problems(5, steps=1), folder)


@pytest.mark.parametrize("make", [curriculum, trainer])
def test_what_cannot_fit_is_refused_before_training(
    make: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(tmp_path)
    monkeypatch.setattr(loop, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"needs 0.6 GB, and 0.0 GB .*micro_batch_size \d+ \(was .*\(lora\.r;"):
        made.train()
    assert made.model.gradient_checkpointing  # was tried
    assert all(work.batches.size == work.rows for work in made.works())
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_layers_are_run_again_where_nothing_else_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the bytes of the smallest update with and without checkpointing, the plan switches it on."""
    made = trainer(tmp_path)
    model, update = made.model, made.works()[0]
    without = plan._Needs(model, update)(update.rows)
    model.gradient_checkpointing = True
    with_it = plan._Needs(model, update)(update.rows)
    model.gradient_checkpointing = False
    assert with_it < without
    monkeypatch.setattr(loop, "available_memory", lambda: 10**9)
    free = made.plan()
    fixed = free.process + free.weights + free.gradients + free.optimizer
    monkeypatch.setattr(loop, "available_memory", lambda: fixed + (without + with_it) // 2)
    made.train()
    said = capsys.readouterr().err
    assert f"micro_batch_size {update.rows} (was {CONFIG.micro_batch_size}, to fit)" in said
    assert "gradient_checkpointing" in said


def test_the_optimisers_state_is_not_between_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step, which allocates it, is not where malloc keeps what is freed; the steps after it are."""
    made, states = trainer(tmp_path, reward_funcs=[alternating]), []

    @contextmanager
    def kept() -> Iterator[None]:
        states.append(len(made.optimizer.state))
        yield

    monkeypatch.setattr(loop, "freed_memory_kept", kept)
    made.train()
    assert states == [len([p for p in made.model.parameters() if p.requires_grad])] * (CONFIG.max_steps - 1)


def test_nor_is_that_of_a_stages_new_optimiser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three stages of two updates, each with an optimiser of its own: the second update of each stage is inside."""
    options = CurriculumConfig(
        c_thought=1, max_latent_stage=1, cot_epochs=1, epochs_per_stage=1, final_epochs=1, batch_size=3
    )
    made, states = CurriculumTrainer(tiny_latent(latent_steps=1), options, tiny_problems(5, steps=2), tmp_path), []

    @contextmanager
    def kept() -> Iterator[None]:
        states.append(len(made.optimizer.state) > 0)
        yield

    monkeypatch.setattr(loop, "freed_memory_kept", kept)
    made.train()
    assert states == [True] * 3


def test_what_a_training_holds_is_compared_with_the_gpu_before_it_begins() -> None:
    model = tiny_latent()
    weights = sum(parameter.numel() for parameter in model.parameters())
    parts = lasting(model, optimizer=8 * weights, reference=deepcopy(model.model))
    assert parts["gradients"] == parts["reference"] == 4 * weights
    needed = parts["weights"] + 16 * weights
    require_room(parts, needed)
    with pytest.raises(UserError, match=r"needs .* without any batch \(weights .* GB\. A training takes less"):
        require_room(parts, needed - 1)


def test_casts_are_of_the_weights_that_products_read() -> None:
    """GPT-2's tied table of embeddings stays float32. Two layers of width 16, MLPs of width 24."""
    model = tiny_latent()
    layer = 48 * (16 + 1) + 16 * (16 + 1) + 24 * (16 + 1) + 16 * (24 + 1)
    assert bytes_of_casts(model) == 4 * 2 * layer
    model.model.transformer.h[0].requires_grad_(False)  # casts of frozen weights are kept too, but have no gradients
    assert bytes_of_casts(model) == 4 * layer
