"""The memory that a training needs, added up before it begins, and the sizes of batches that fit.

What stays is added up from weights and options. What comes and goes with a batch is counted by a trial of the work
itself: on fake tensors, which take neither memory nor time (`fake.py`). The parts never exist at the same time:

    update      weights + reference + optimizer + gradients + what a forward and backward pass of a micro-batch takes
    rollouts    weights + reference + optimizer + cache and logits of the rollouts that are sampled at once
    evaluation  weights + reference + optimizer + cache and logits of the questions that are asked at once
    saving      weights + reference + optimizer + one tensor, since tensors are written one by one

Sizes follow from the machine's total memory and not from what is free now, so the same command has the same sizes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dropout_grpo.distributed.sharding import is_sharded
from dropout_grpo.errors import LESS_MEMORY, UserError
from dropout_grpo.exploration.base import Exploration
from dropout_grpo.latent.casts import product_weights
from dropout_grpo.latent.decoding import DecodingStrategy, next_token
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.latent.rollout import Prompts, think_in_groups
from dropout_grpo.latent.shared_prompt import cache_tensors
from dropout_grpo.training.fake import Ledger, NeedsData, fake_weights
from dropout_grpo.training.masters import gradient_bytes, has_master, weight_bytes
from dropout_grpo.training.memory import MicroBatches, total_memory
from dropout_grpo.training.progress import console

GB = 1e9

SHARE = 0.9
"""Share of the machine's memory that a training may use; the rest is for the system and other programs."""

PROCESS = 0.6 * GB
"""The process itself, with torch, transformers, tokenizer and data."""

OVERHEAD = 1.1
"""Memory that the allocator and matrix products take, as a multiple of what tensors take."""

_SMALL = 2**24
"""Parameters of a model so small that a real trial of one row is faster than a fake one, and all sizes fit anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What sampling holds after its first token: ``state``, and ``more`` bytes of cache after its last one."""

    state: Any
    more: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Work on batches of rows, whose size is to be chosen.

    Attributes:
        name: what it is.
        batches: holds the size.
        rows: the smallest size.
        most: number of rows that there are at most; a larger size has no effect.
        run: works on this many rows; returns the loss of an update, or what sampling holds.
    """

    name: Literal["update", "rollouts", "evaluation"]
    batches: MicroBatches
    rows: int
    most: int
    run: Callable[[int], Tensor | Held]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size that was chosen for a work: ``rows`` at once, which take ``bytes`` while they are worked on.

    ``batches`` had ``before`` rows, and gets these if the plan is carried out.
    """

    name: str
    batches: MicroBatches
    rows: int
    before: int
    bytes: int

    @property
    def choice(self) -> str:
        """The option with its value."""
        return f"{self.batches.option} {self.rows}" + (
            f" (was {self.before}, to fit)" if self.rows < self.before else ""
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Memory of a training in bytes. ``available`` is what it may use, None if the machine's memory is unknown."""

    available: int | None
    process: int
    weights: int
    gradients: int
    optimizer: int
    reference: int
    saving: int
    sizes: tuple[Size, ...]
    gradient_checkpointing: bool

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by name."""
        stays = {name: getattr(self, name) for name in ("process", "weights", "gradients", "optimizer", "reference")}
        return stays | {size.name: size.bytes for size in self.sizes} | {"saving": self.saving}

    @property
    def total(self) -> int:
        """Bytes at the peak: what stays, and the largest of what comes and goes."""
        stays = self.process + self.weights + self.optimizer + self.reference
        return stays + max([self.saving, *(self._goes(size) for size in self.sizes)])

    def _goes(self, size: Size) -> int:
        return size.bytes + (self.gradients if size.name == "update" else 0)

    @property
    def fits(self) -> bool:
        """Whether the total is available."""
        return self.available is None or self.total <= self.available

    def table(self) -> str:
        """The parts as lines, in GB."""
        chosen = {size.name: size.choice for size in self.sizes}
        lines = [f"{name:<12} {bytes_ / GB:8.2f} GB  {chosen.get(name, '')}" for name, bytes_ in self.parts.items()]
        lines.append(f"{'at the peak':<12} {self.total / GB:8.2f} GB")
        if self.available is not None:
            fits = "it fits" if self.fits else "it does not fit"
            lines.append(f"{'available':<12} {self.available / GB:8.2f} GB  {fits}")
        if self.gradient_checkpointing:
            lines.append("gradient_checkpointing is on")
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {bytes_ / GB:.1f}" for name, bytes_ in self.parts.items() if bytes_ >= 0.05 * GB)
        of = "" if self.available is None else f" of {self.available / GB:.1f}"
        sizes = [size.choice for size in self.sizes]
        if self.gradient_checkpointing:
            sizes.append("gradient_checkpointing")
        return f"memory: {self.total / GB:.1f}{of} GB: {parts}; {', '.join(sizes)}"


def available_memory() -> int | None:
    """Bytes that a training may use; None if the machine's memory is unknown."""
    total = total_memory()
    return None if total is None else int(SHARE * total)


def require_fitting(plan: Plan) -> None:
    """Check that a training fits.

    Raises:
        UserError: it does not; gives the parts and the remedies.
    """
    if not plan.fits:
        assert plan.available is not None
        raise UserError(
            f"this training needs {plan.total / GB:.1f} GB, and {plan.available / GB:.1f} GB of this machine's memory "
            f"can be used, even with the smallest batches ({plan}). {LESS_MEMORY}"
        )


def planned(
    model: LatentModel,
    works: Sequence[Work],
    *,
    optimizer: int,
    reference: nn.Module | None,
    available: int | None,
    gradient_checkpointing: bool | None = None,
) -> Plan:
    """The plan of a training, with the greatest sizes that fit, halved from those of ``works``.

    A plan that does not fit has the smallest sizes.

    Args:
        model: the model, also on the device ``meta``, with weights in the dtypes of the training.
        works: what is done with it.
        optimizer: bytes of the optimiser's state.
        reference: the reference of a KL; None if there is none.
        available: bytes that the training may use; None if unknown.
        gradient_checkpointing: the option; None switches it on in the model if not even the smallest update fits.
    """
    stays = {"process": int(PROCESS), **lasting(model, optimizer=optimizer, reference=reference)}
    sizes = []
    for work in works:
        beside = sum(bytes_ for name, bytes_ in stays.items() if name != "gradients" or work.name == "update")
        goes = None if available is None else available - beside
        before = work.batches.size
        rows, needed = _fitting(work, before, _Needs(model, work), goes)
        if work.name == "update" and gradient_checkpointing is None and goes is not None and needed > goes:
            model.gradient_checkpointing = True
            rows, needed = _fitting(work, before, _Needs(model, work), goes)
        sizes.append(Size(name=work.name, batches=work.batches, rows=rows, before=before, bytes=needed))
    return Plan(
        available=available,
        **stays,
        saving=max(map(gradient_bytes, model.parameters())),
        sizes=tuple(sizes),
        gradient_checkpointing=model.gradient_checkpointing,
    )


def lasting(model: LatentModel, *, optimizer: int, reference: nn.Module | None) -> dict[str, int]:
    """Bytes of what a training holds from its first update on, by name; activations come on top.

    Args:
        model: the model, with weights in the dtypes of the training.
        optimizer: bytes of the optimiser's state.
        reference: the reference of a KL; None if there is none.
    """
    shared = {id(parameter) for parameter in model.parameters()}
    own = () if reference is None else (p for p in reference.parameters() if id(p) not in shared)
    return {
        "weights": _each(model.parameters(), weight_bytes) + _each(model.buffers(), weight_bytes),
        "gradients": _each((p for p in model.parameters() if p.requires_grad), gradient_bytes),
        "optimizer": optimizer,
        "reference": _each(own, weight_bytes),
    }


def bytes_of_casts(model: LatentModel) -> int:
    """Bytes that bf16 products add in an update: autocast's copy of each trained weight, and the gradient of the copy.

    The gradient waits until the last use of the weight, in the backward pass of the prompt.
    """
    return 4 * sum(parameter.numel() for parameter in product_weights(model) if parameter.requires_grad)


def require_room(parts: Mapping[str, int], total: int) -> None:
    """Check that what a training holds fits into a GPU, before rollouts and rewards are paid for.

    Args:
        parts: see ``lasting``.
        total: bytes of the GPU.

    Raises:
        UserError: it does not; gives the parts and the remedies.
    """
    if (needed := sum(parts.values())) > total:
        named = ", ".join(f"{name} {bytes_ / GB:.1f}" for name, bytes_ in parts.items() if bytes_)
        raise UserError(
            f"this training needs {needed / GB:.1f} GB without any batch ({named}), and the GPU has {total / GB:.1f} "
            f"GB. {LESS_MEMORY}"
        )


def _fitting(work: Work, size: int, needs: Callable[[int], int], room: int | None) -> tuple[int, int]:
    """The size, halved until it fits in the room, and its bytes. Few sizes are tried: the bytes are nearly linear."""

    def used(size: int) -> int:
        return max(work.rows, min(size, work.most) // work.rows * work.rows)

    most = needs(used(size))
    if room is None or most <= room or used(size) == work.rows:
        return size, most
    least = needs(work.rows)
    slope = (most - least) / (used(size) - work.rows)
    while size // 2 >= work.rows and least + slope * (used(size) - work.rows) > room:
        size //= 2
    while (bytes_ := needs(used(size))) > room and size // 2 >= work.rows:
        size //= 2
    return size, bytes_


class _Needs:
    """Bytes that a work takes, from the number of rows: its peak, without weights and gradients."""

    def __init__(self, model: LatentModel, work: Work) -> None:
        self._model, self._work = model, work
        self._row: float | None = None  # of one row, measured on real weights

    def __call__(self, rows: int) -> int:
        model = self._model
        on_meta = model.device.type == "meta"
        if self._row is None and (on_meta or not (_is_small(model) or is_sharded(model))):
            try:
                return int(OVERHEAD * self._fake(rows))
            except (NeedsData, NotImplementedError) as error:
                name = type(model.model).__name__
                if on_meta:
                    raise UserError(
                        f"{name} looks at numbers that it computes, so its memory is only known with its weights: "
                        "start the training, which prints its plan."
                    ) from error
                console.print(
                    f"memory: {name} looks at numbers that it computes: a real row is measured.", markup=False
                )
        if self._row is None:
            self._row = peak(model, self._work.run, self._work.rows)[0] / self._work.rows
        return int(OVERHEAD * self._row * rows)

    def _fake(self, rows: int) -> int:
        work, trained = self._work, [p for p in self._model.parameters() if p.requires_grad]
        first = work.name == "update" and rows == work.most and not any(map(has_master, trained))
        most = fake_peak(self._model, work.run, rows, first=first)
        return most - _each(trained, gradient_bytes) if first else most


def _is_small(model: nn.Module) -> bool:
    return sum(parameter.numel() for parameter in model.parameters()) <= _SMALL


def peak(model: LatentModel, run: Callable[[int], Tensor | Held], rows: int, *, first: bool = False) -> tuple[int, int]:
    """Bytes at the peak of a work on this many rows, and when its forward pass ends; without weights.

    A micro-batch adds its gradients to those that are there, so each is freed when it has been added, and none is
    counted. The ``first`` one makes them while its activations are freed: they are counted.
    """

    def added(parameter: Tensor) -> None:
        parameter.grad = None

    counted = first or is_sharded(model)  # FSDP has hooks of its own
    own = [] if counted else [p for p in model.parameters() if p.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(added) for parameter in own]
    try:
        with Ledger(model) as ledger:
            result = run(rows)
            held = ledger.live
            if isinstance(result, Tensor):
                result.backward()
                return ledger.peak, held
            return ledger.peak + result.more, held + result.more
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)


def fake_peak(model: LatentModel, run: Callable[[int], Tensor | Held], rows: int, *, first: bool = False) -> int:
    """The same peak, on fake tensors. If all layers are alike, a few are run, and the others are added.

    What a layer adds may grow a little with their number, since the peak may come at another moment.
    """
    with fake_weights(model):
        layers = len(model.sites.layers)
        if layers <= _MORE or not _layers_alike(model):
            return peak(model, run, rows, first=first)[0]
        with _first_layers(model, _FEW):
            few = peak(model, run, rows, first=first)
        with _first_layers(model, _MORE):
            more = peak(model, run, rows, first=first)
        layer = max(more[0] - few[0], more[1] - few[1]) / (_MORE - _FEW)
        return more[0] + int((layers - _MORE) * layer)


_FEW, _MORE = 2, 5


def _layers_alike(model: LatentModel) -> bool:
    kinds = {
        (type(layer), *((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters()))
        for layer in model.sites.layers
    }
    types = getattr(model.model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    return len(kinds) == 1 and len(set(types)) == 1


@contextmanager
def _first_layers(model: LatentModel, count: int) -> Iterator[None]:
    layers, whole = model.sites.layers, model.sites.layers._modules
    try:
        layers._modules = dict(islice(whole.items(), count))
        yield
    finally:
        layers._modules = whole


def sampled(
    model: LatentModel,
    prompts: Prompts,
    seeds: Tensor,
    exploration: Exploration,
    strategy: DecodingStrategy,
    *,
    length: int,
    latent_steps: int | None = None,
) -> Held:
    """A trial of rollouts: thoughts and the first token. The rest only makes the cache longer."""
    with torch.no_grad():
        state, noise = think_in_groups(model, prompts, seeds, exploration, latent_steps)
        state, _ = next_token(model, state, model.end_marker(state.rows), 0, strategy=strategy, noise=noise)
    position = sum(part[:, :, :1].nbytes for layer in cache_tensors(state.cache) for part in layer)
    return Held(state=state, more=(length - 1) * position)


def optimizer_bytes(
    parameters: Iterable[Tensor], *, matrices: Sequence[Tensor] = (), eight_bit: Sequence[Tensor] = ()
) -> int:
    """Bytes of the state of ``build_optimizer``: AdamW has two numbers for each weight, and Muon one."""
    muon, small = ({id(parameter) for parameter in some} for some in (matrices, eight_bit))

    def state(parameter: Tensor) -> int:
        if id(parameter) in muon:
            return gradient_bytes(parameter)
        return 2 * (parameter.numel() if id(parameter) in small else gradient_bytes(parameter))

    return _each((parameter for parameter in parameters if parameter.requires_grad), state)


def _each(tensors: Iterable[Tensor], bytes_of: Callable[[Tensor], int]) -> int:
    """The sum over tensors, each counted once."""
    return sum(bytes_of(tensor) for tensor in {id(tensor): tensor for tensor in tensors}.values())
