"""The random bits of ``exploration/seeds.py`` implemented again with Python integers, without overflow.

SplitMix64 (Steele, Lea and Flood 2014): a state advances by an odd constant and its finaliser is the output.
The bits of (seed, name, index) are the finaliser of a finalised seed XOR a finalised counter.
"""

from collections.abc import Iterable
from hashlib import blake2b
from statistics import NormalDist

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1  # "& WORD" makes the unsigned low 64 bits of any integer, negative ones included


def mix(word: int) -> int:
    """The output of SplitMix64 for the state ``word``."""
    z = (word + GAMMA) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def bits(seed: int, name: str, index: int) -> int:
    """64 random bits: a function of the low 64 bits of ``seed``, of the stream's name and the place in it."""
    key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    return mix(mix(seed & WORD) ^ mix((key + index * GAMMA) & WORD))


def dropped(seed: int, name: str, index: int, p: float) -> bool:
    """Whether this feature of this site is set to zero: the upper 32 bits, as a fraction of 2**32, are below p."""
    return bits(seed, name, index) >> 32 < round(p * 2**32)


def uniform(seed: int, name: str, index: int = 0) -> float:
    """In [0, 1): the upper 24 bits as a fraction."""
    return (bits(seed, name, index) >> 40) / 2**24


def normal(seed: int, name: str, size: int) -> Tensor:
    """Standard normal numbers, float64 [size]: the upper 16 bits of each word choose a quantile."""
    return _quantiles(bits(seed, name, i) >> 48 for i in range(size))


def normal_matrix(seed: int, name: str, size: int) -> Tensor:
    """Standard normal numbers, float64 [size], four from each word, lowest bits first."""
    return _quantiles(bits(seed, name, i // 4) >> 16 * (i % 4) & 0xFFFF for i in range(size))


def _quantiles(words: Iterable[int]) -> Tensor:
    """Python's own quantile function."""
    return torch.tensor([NormalDist().inv_cdf((k + 0.5) / 65536) for k in words], dtype=torch.float64)


def fold(seed: int, value: int) -> int:
    """A new seed from a seed and a coordinate: output number ``value`` from the state ``mix(seed)``."""
    return mix((mix(seed & WORD) + value * GAMMA) & WORD)


def rollout_seed(run_seed: int, step: int, problem_id: int, k: int) -> int:
    """The seed of rollout k of a problem at a training step."""
    return fold(fold(fold(run_seed, step), problem_id), k)


def signed(word: int) -> int:
    """The int64 with the same bits."""
    return word - (1 << 64) if word >> 63 else word
