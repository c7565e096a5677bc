"""What a batch gives to work of a fixed shape (``static.py``): all tensors that it reads, the weights apart.

Shapes: B rows, G prompts, S prompt positions, T own positions, N key heads, E head size, D width, F features of a site.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dropout_grpo.exploration.base import Noise
from dropout_grpo.latent.fast.attention import cache_tensors
from dropout_grpo.latent.recurrence import key_positions, keyed_noise
from dropout_grpo.latent.sampling import AverageOverMasks, Chooser, Greedy, Sampled
from dropout_grpo.latent.state import LatentState

PROMPT_BUCKET = 32
"""Prompts are widened to a multiple of this many positions, so that shapes come again."""

Place = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Tensors to be copied to buffers, and the buffers.

    Attributes:
        hidden: [B, 1, D].
        next_position: int64 [B, 1].
        own: keys and values of each layer, [B, N, T, E]; empty where rows have no positions of their own yet.
        keys: of the prompts, a layer each, [G, N, S, E] with S a multiple of ``PROMPT_BUCKET``.
        values: likewise.
        padding: added to the scores of the prompts' positions, [G, 1, 1, S].
        factors: the noise by phase, step and site, [B, 1, F].
        by_key: factors of attention weights likewise, [B, H, S + T and all positions to come].
        seeds: of a chooser that draws, int64 [B].
    """

    hidden: Tensor
    next_position: Tensor
    own: tuple[tuple[Tensor, Tensor], ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    padding: Tensor
    factors: Mapping[Place, Tensor]
    by_key: Mapping[Place, Tensor]
    seeds: Tensor | None

    def tensors(self) -> list[Tensor]:
        """Each once: masks that are held are the same tensor at every step."""
        return list({id(tensor): tensor for tensor in self._references()}.values())

    def buffers(self) -> "Given":
        """A copy at places of its own."""
        copies = {id(tensor): tensor.clone() for tensor in self.tensors()}

        def copy(tensor: Tensor) -> Tensor:
            return copies[id(tensor)]

        return Given(
            hidden=copy(self.hidden),
            next_position=copy(self.next_position),
            own=tuple((copy(key), copy(value)) for key, value in self.own),
            keys=tuple(map(copy, self.keys)),
            values=tuple(map(copy, self.values)),
            padding=copy(self.padding),
            factors={place: copy(factor) for place, factor in self.factors.items()},
            by_key={place: copy(factor) for place, factor in self.by_key.items()},
            seeds=None if self.seeds is None else copy(self.seeds),
        )

    def load(self, other: "Given") -> None:
        """Into these buffers what is in others of the same ``layout``."""
        for buffer, tensor in zip(self.tensors(), other.tensors(), strict=True):
            buffer.copy_(tensor)

    def layout(self) -> Hashable:
        """Shapes, dtypes, places of the noise, and which of them share a tensor."""
        numbers = {id(tensor): number for number, tensor in enumerate(self.tensors())}
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in self.tensors())
        places = (tuple(self.factors), tuple(self.by_key))
        return shapes, tuple(numbers[id(t)] for t in self._references()), places, len(self.own)

    def _references(self) -> Iterator[Tensor]:
        yield from (self.hidden, self.next_position, self.padding, *self.keys, *self.values)
        for pair in self.own:
            yield from pair
        yield from self.factors.values()
        yield from self.by_key.values()
        if self.seeds is not None:
            yield self.seeds


def given_by(
    state: LatentState, noise: Noise | None, moments: list[tuple[str, int]], new: int, chooser: Chooser | None = None
) -> Given:
    """What a state, the noise at these moments (phase and step) and a chooser give to work of a fixed shape.

    Args:
        state: its rows share prompts.
        noise: drawn here, outside of the work: a graph would hold on to whatever tensors its drawing has cached.
        moments: at which the work asks for noise.
        new: positions that the work appends.
        chooser: one that ``is_known``.
    """
    prefix = state.prefix
    assert prefix is not None, "the rows have no prompt in common"
    length = prefix.keys[0].shape[-2]
    room = -length % PROMPT_BUCKET
    padding = prefix.padding
    if padding is None:
        padding = prefix.keys[0].new_zeros(prefix.groups, 1, 1, length)
    factors = {} if noise is None else {m: noise.factors(*m) for m in moments}
    by_key: dict[tuple[str, int], Mapping[str, Tensor]] = {}
    if (keyed := keyed_noise(noise)) is not None:
        positions = nn.functional.pad(key_positions(state, new), (room, 0), value=-1)
        by_key = {m: keyed.key_factors(*m, positions) for m in moments}
    return Given(
        hidden=state.hidden,
        next_position=state.next_position,
        own=tuple(cache_tensors(state.cache)),
        keys=tuple(_widened(key, room) for key in prefix.keys),
        values=tuple(_widened(value, room) for value in prefix.values),
        padding=nn.functional.pad(padding, (room, 0), value=torch.finfo(padding.dtype).min),
        factors={(*moment, site): f for moment, found in factors.items() for site, f in found.items()},
        by_key={(*moment, site): f for moment, found in by_key.items() for site, f in found.items()},
        seeds=chooser.seeds if isinstance(chooser, Sampled) else None,
    )


def is_known(chooser: Chooser) -> bool:
    """Can the chooser be set up anew on buffers? One of another type, or that has begun, cannot."""
    if isinstance(chooser, AverageOverMasks) and chooser.log_weights is not None:
        return False
    return type(chooser) in (Greedy, Sampled, AverageOverMasks)  # a subclass may choose in its own way


class Fixed:
    """Noise that was drawn beforehand."""

    def __init__(self, given: Given) -> None:
        self._given = given

    @property
    def masks_keys(self) -> bool:
        """Are attention weights multiplied?"""
        return bool(self._given.by_key)

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """What was drawn for the moment."""
        return _of_moment(self._given.factors, phase, step)

    def key_factors(self, phase: str, step: int, positions: Tensor) -> Mapping[str, Tensor]:
        """What was drawn for the moment, of these positions and those that come after."""
        return _of_moment(self._given.by_key, phase, step)

    def select(self, rows: Tensor) -> "Fixed":
        """Rows do not leave work of a fixed shape."""
        raise AssertionError("a row has left")


def _of_moment(drawn: Mapping[Place, Tensor], phase: str, step: int) -> dict[str, Tensor]:
    return {site: factor for (p, s, site), factor in drawn.items() if (p, s) == (phase, step)}


def _widened(positions: Tensor, room: int) -> Tensor:
    """[G, N, S, E] -> [G, N, room + S, E], zeros first."""
    return nn.functional.pad(positions, (0, 0, room, 0)) if room else positions
