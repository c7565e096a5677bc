"""The inputs of work with a fixed shape (``static.py``): all tensors that it reads except weights.

Shapes: B rows, G prompts, S prompt positions, T own positions, N key heads, E head size, D width, F features of a site.
"""

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dropout_grpo.exploration.base import Noise
from dropout_grpo.latent.recurrence import key_positions, keyed_noise
from dropout_grpo.latent.sampling import AverageOverMasks, Chooser, Greedy, Sampled
from dropout_grpo.latent.shared_prompt import cache_tensors
from dropout_grpo.latent.state import LatentState

PROMPT_BUCKET = 32
"""Prompts are padded to a multiple of this many positions, so that shapes recur."""

Place = tuple[str, int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The tensors of a batch, or the buffers that they are copied to.

    Attributes:
        hidden: [B, 1, D].
        next_position: int64 [B, 1].
        own: keys and values of each layer, [B, N, T, E]; empty if rows have no positions of their own yet.
        keys: the prompts' keys, one tensor per layer, [G, N, S, E], with S a multiple of ``PROMPT_BUCKET``.
        values: the prompts' values, in the same form.
        padding: added to the scores of the prompts' positions, [G, 1, 1, S].
        factors: the noise by phase, step and site, [B, 1, F].
        by_key: factors of attention weights by phase, step and site, [B, H, S + T + all later positions].
        seeds: seeds of a chooser that samples, int64 [B].
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
        """Each tensor once: a held mask is the same tensor at every step."""
        return list({id(tensor): tensor for tensor in self._references()}.values())

    def buffers(self) -> "Given":
        """A copy of all tensors."""
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
        """Copy the contents of ``other``, which has the same ``layout``, into these buffers."""
        for buffer, tensor in zip(self.tensors(), other.tensors(), strict=True):
            buffer.copy_(tensor)

    def layout(self) -> Hashable:
        """Shapes, dtypes, places of the noise, and which places share a tensor."""
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
    """The inputs of work with a fixed shape.

    Args:
        state: a state whose rows share prompts.
        noise: drawn here and not inside the work, since a graph would keep the tensors that are cached when drawing.
        moments: phases and steps at which the work uses noise.
        new: number of positions that the work appends.
        chooser: a chooser for which ``is_known`` is True.
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
    """True if the chooser can run on buffers: it has a known type and has not chosen a token yet."""
    if isinstance(chooser, AverageOverMasks) and chooser.log_weights is not None:
        return False
    return type(chooser) in (Greedy, Sampled, AverageOverMasks)  # a subclass may choose in its own way


class Fixed:
    """Noise that has been drawn already."""

    def __init__(self, given: Given) -> None:
        self._given = given

    @property
    def masks_keys(self) -> bool:
        """Whether attention weights are multiplied."""
        return bool(self._given.by_key)

    def factors(self, phase: str, step: int) -> Mapping[str, Tensor]:
        """The factors drawn for this phase and step."""
        return _of_moment(self._given.factors, phase, step)

    def key_factors(self, phase: str, step: int, positions: Tensor) -> Mapping[str, Tensor]:
        """The factors drawn for this phase and step, for these positions and later ones."""
        return _of_moment(self._given.by_key, phase, step)

    def select(self, rows: Tensor) -> "Fixed":
        """Not called: rows do not leave a batch of a fixed shape."""
        raise AssertionError("a row has left")


def _of_moment(drawn: Mapping[Place, Tensor], phase: str, step: int) -> dict[str, Tensor]:
    return {site: factor for (p, s, site), factor in drawn.items() if (p, s) == (phase, step)}


def _widened(positions: Tensor, room: int) -> Tensor:
    """Pad on the left with zeros: [G, N, S, E] -> [G, N, room + S, E]."""
    return nn.functional.pad(positions, (0, 0, room, 0)) if room else positions
