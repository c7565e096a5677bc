"""Masks bit for bit: from golden values, from Python's integers, and as the activations of a model show them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dropout_grpo.errors import UserError
from dropout_grpo.exploration import NoExploration, PerStepDropout, SharedDropout
from dropout_grpo.exploration.seeds import as_int64, bernoulli, fold, random_bits, rollout_seeds, stream, uniform
from dropout_grpo.latent import LatentModel
from helpers import splitmix
from helpers.engine import ALL_PHASES, ALL_SITES, engine_rows, latent_model, reference_mask
from helpers.oracle import site_modules
from helpers.tiny import EXTRA_KINDS, KINDS, WIDE_HEADS

EDGES = [0, 1, -1, 2, 41, -42, 2**31, 2**32, -(2**32), 2**53 + 1, 2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1]
EDGE_SEEDS = torch.tensor(EDGES)


def test_the_reference_is_splitmix64() -> None:
    """The first outputs from the state 1234567, as published with the generator's implementations."""
    assert [splitmix.mix((1234567 + i * splitmix.GAMMA) & splitmix.WORD) for i in range(5)] == [
        *(6457827717110365317, 3203168211198807973, 9817491932198370423),
        *(4593380528125082431, 16408922859458223821),
    ]


@pytest.mark.parametrize(
    ("seed", "name", "golden"),
    [
        (0, "answer.0", [-1180717030240201580, 3461681641521816724, -2801781231548784161]),
        (-1, "answer.1", [7985537620100078823, 4051460283592824982, 1997042649541515000]),
        (42, "layers.0.mlp", [-8213929661929596261, -6641270361194126670, -761775461018246105]),
    ],
)
def test_golden_bits(seed: int, name: str, golden: list[int]) -> None:
    """With other values, on another platform or after a change, seeds that were stored replay other masks."""
    assert random_bits(torch.tensor([seed]), stream(name, 3)).tolist() == [golden]


def test_bits_are_those_of_python_integers() -> None:
    for name in ("", "thought", "layers.11.mlp_hidden", "answer.127"):
        actual = random_bits(EDGE_SEEDS, stream(name, 50))
        expected = [[splitmix.signed(splitmix.bits(seed, name, i)) for i in range(50)] for seed in EDGES]
        assert actual.tolist() == expected
        assert random_bits(EDGE_SEEDS + 1, stream(name, 50)).tolist() != expected
        assert random_bits(EDGE_SEEDS, stream(name, 51)[1:]).tolist() != expected
        u = [[splitmix.uniform(seed, name, i) for i in range(50)] for seed in EDGES]
        assert uniform(EDGE_SEEDS, stream(name, 50)).tolist() == u
        for p in (0.0, 0.1, 0.5, 0.999):
            zeros = [[splitmix.dropped(seed, name, i, p) for i in range(50)] for seed in EDGES]
            assert bernoulli(EDGE_SEEDS, stream(name, 50), p).tolist() == zeros


@pytest.mark.parametrize(("run_seed", "step"), [(0, 0), (-3, 1), (2**64 + 5, 10**6), (12345678901234567890, -1)])
def test_rollout_seeds_are_those_of_python_integers(run_seed: int, step: int) -> None:
    ids = [5, 0, -7, 2**40, 2**63 - 1]
    actual = rollout_seeds(run_seed, step, torch.tensor(ids), 3)
    expected = [[splitmix.rollout_seed(run_seed, step, i, k) for k in range(3)] for i in ids]
    assert actual.tolist() == [[splitmix.signed(word) for word in row] for row in expected]
    assert as_int64(run_seed) == splitmix.signed(run_seed & splitmix.WORD)
    # A row is its problem's, wherever it stands, and more rollouts leave the first ones as they are.
    assert torch.equal(rollout_seeds(run_seed, step, torch.tensor(ids[::-1]), 3), actual.flip(0))
    assert torch.equal(rollout_seeds(run_seed, step, torch.tensor(ids), 9)[:, :3], actual)


def test_no_two_rollouts_have_the_same_seed() -> None:
    """Of 3 runs x 20 steps x 50 problems x 8 rollouts: two of 24,000 random words are equal once in 1e11 times."""
    ids = torch.arange(50)
    drawn = torch.stack([rollout_seeds(run, step, ids, 8) for run in range(3) for step in range(20)])
    assert drawn.unique().numel() == drawn.numel() == 24_000


def test_a_repeated_problem_gets_seeds_of_its_own() -> None:
    ids, repeats = torch.tensor([5, 8, 5, 5]), torch.tensor([0, 0, 1, 2])
    actual = rollout_seeds(3, 4, ids, 8, repeats)
    once = rollout_seeds(3, 4, ids, 8)
    assert actual.unique().numel() == 32
    assert once.unique().numel() == 16
    assert torch.equal(actual[:2], once[:2])  # a first occurrence is as it would be alone
    # Nor do they equal a latent step's mask seed of an earlier rollout (`PerStepDropout`).
    assert not torch.isin(actual[2:], fold(once[0][:, None], torch.arange(1, 9))).any()


def factors_of(
    model: LatentModel, seeds: Tensor, phase: str = "latent", step: int = 0, kind: type[SharedDropout] = SharedDropout
) -> dict[str, Tensor]:
    noise = model.noise(kind(0.3, ALL_SITES, ALL_PHASES), seeds)
    assert noise is not None
    return dict(noise.factors(phase, step))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.float64) for kind in KINDS + EXTRA_KINDS] + [("gpt2", torch.float32), ("qwen3", torch.bfloat16)],
)
def test_a_models_masks_are_the_references_in_every_dtype(kind: str, dtype: torch.dtype) -> None:
    model = latent_model(kind, dtype)
    actual = factors_of(model, EDGE_SEEDS)
    assert set(actual) == {*site_modules(model.model), "thought"}
    for name, mask in actual.items():
        expected = torch.stack([reference_mask(seed, name, 0.3) for seed in EDGES])  # [B, F], or [B, heads]
        head_width = model.model.config.hidden_size // 4 if kind not in WIDE_HEADS else 8
        repeated = expected.repeat_interleave(head_width if name.endswith("heads") else 1, dim=1)
        assert mask.dtype == torch.promote_types(dtype, torch.float32)  # 1 / 0.7 in bf16 is off by 0.2 %
        assert torch.equal(mask[:, 0], repeated.to(mask.dtype))
        assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.7, dtype=mask.dtype).item()}


def test_a_mask_is_its_seeds_in_any_batch() -> None:
    model = latent_model("llama")
    order = torch.tensor([9, 3, 3, 0, 13])
    for kind in (SharedDropout, PerStepDropout):
        together = factors_of(model, EDGE_SEEDS, step=1, kind=kind)
        some = factors_of(model, EDGE_SEEDS[order], step=1, kind=kind)
        alone = [factors_of(model, EDGE_SEEDS[i : i + 1], step=1, kind=kind) for i in order.tolist()]
        for name, mask in together.items():
            assert torch.equal(some[name], mask[order])
            assert torch.equal(torch.cat([one[name] for one in alone]), mask[order])
            assert not torch.equal(some[name], mask[order - 1])


def test_p_zero_is_no_noise() -> None:
    model = latent_model("gpt2")
    assert model.noise(SharedDropout(0.0, ALL_SITES, ALL_PHASES), EDGE_SEEDS) is None
    assert model.noise(PerStepDropout(0.0), EDGE_SEEDS) is None
    quiet, zero = engine_rows(model, NoExploration())[1], engine_rows(model, SharedDropout(0.0, ALL_SITES))[1]
    assert torch.equal(quiet, zero)
    assert not torch.equal(quiet, engine_rows(model, SharedDropout(0.05, ALL_SITES))[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SharedDropout(1.0), r"p=1\.0 is outside \[0, 1\)"),
        (lambda: SharedDropout(-0.1), r"p=-0\.1 is outside"),
        (lambda: SharedDropout(float("nan")), "p=nan is outside"),
        (lambda: SharedDropout(0.1, ["atention"]), r"site 'atention' is unknown \(did you mean 'attention'\?\)"),
        (lambda: SharedDropout(0.1, "mlp_hiden"), r"'mlp_hiden' is unknown \(did you mean 'mlp_hidden'\?\)"),
        (lambda: SharedDropout(0.1, "xyz"), "'xyz' is unknown; known are residual, attention, mlp"),
        (lambda: PerStepDropout(0.1, phases=["latents"]), r"phase 'latents' is unknown \(did you mean 'latent'\?\)"),
        (lambda: SharedDropout(0.1, []), "has no site: name at least one of residual"),
        (lambda: SharedDropout(0.1, phases=()), "has no phase: name at least one of prompt"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_masks_that_are_drawn_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, exploration = latent_model("gpt2"), SharedDropout(0.3, ALL_SITES, ALL_PHASES)

    def factors() -> dict[str, Tensor]:
        noise = model.noise(exploration, EDGE_SEEDS)
        assert noise is not None
        return dict(noise.factors("latent", 0))

    expected = factors()
    monkeypatch.setattr("dropout_grpo.exploration.held_noise._PIECE", 5 * len(EDGES))
    actual = factors()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
