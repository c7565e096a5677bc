"""Counter-based random bits: (seed, stream, index) -> 64 bits, the same on every device and in any batch order.

A rollout stores one 64-bit seed. Its mask and the uniform numbers that sample its answer are pure functions of that
seed, so nothing else has to be stored to replay it. The bits come from the finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17), applied to seed and counter. All of it
is integer arithmetic, since torch's int64 arithmetic wraps modulo 2**64 on both CPU and CUDA.
"""

from functools import lru_cache
from hashlib import blake2b

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15
_MUL_1 = 0xBF58476D1CE4E5B9
_MUL_2 = 0x94D049BB133111EB
_WORD = 1 << 64


def as_int64(value: int) -> int:
    """The two's-complement int64 with the same low 64 bits as ``value``."""
    value %= _WORD
    return value - _WORD if value >= _WORD // 2 else value


def _shift_right(z: Tensor, n: int) -> Tensor:
    # torch's >> is arithmetic on int64; clearing the copied sign bits makes it the logical shift of uint64.
    return (z >> n).bitwise_and_((1 << (64 - n)) - 1)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, elementwise on int64: a bijection of 64-bit words that mixes all bits."""
    z = z + as_int64(_GAMMA)  # a copy; the rest works in place, since allocations would take longer than the arithmetic
    z.bitwise_xor_(_shift_right(z, 30)).mul_(as_int64(_MUL_1))
    z.bitwise_xor_(_shift_right(z, 27)).mul_(as_int64(_MUL_2))
    return z.bitwise_xor_(_shift_right(z, 31))


def stream(name: str, size: int, device: torch.device | str | None = None) -> Tensor:
    """Counters of a named stream, int64 [size]: a hash of ``name`` (BLAKE2b, 64 bits) mixed with 0 .. size-1."""
    key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")
    index = torch.arange(size, dtype=torch.int64, device=device)
    return mix(index * as_int64(_GAMMA) + as_int64(key))


def random_bits(seeds: Tensor, streams: Tensor) -> Tensor:
    """64 random bits for every (seed, counter): int64 [B, F] from ``seeds`` [B] and ``streams`` [F]."""
    return mix(mix(seeds)[:, None] ^ streams[None, :])


def bernoulli(seeds: Tensor, streams: Tensor, p: float) -> Tensor:
    """True with probability ``p``, bool [B, F]. The threshold is an integer, so every platform agrees."""
    return _shift_right(random_bits(seeds, streams), 32) < round(p * (1 << 32))


def uniform(seeds: Tensor, streams: Tensor) -> Tensor:
    """Uniform in [0, 1), float32 [B, F], from the 24 bits that a float32 holds exactly."""
    return _shift_right(random_bits(seeds, streams), 40).to(torch.float32) * 2.0**-24


def normal(seeds: Tensor, streams: Tensor) -> Tensor:
    """Standard normal, float64 [B, F], from 16 bits: one of 65,536 equally probable quantiles.

    They are looked up in a table, since logarithms on a CPU and a GPU may differ in the last bit. The largest quantile
    is 4.3, and the variance is 0.9999.
    """
    return normal_quantiles(torch.float64, seeds.device)[_shift_right(random_bits(seeds, streams), 48)]


@lru_cache(maxsize=8)
def normal_quantiles(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Quantiles of a standard normal, in the middle of each of 65,536 parts of equal probability."""
    middles = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    return torch.special.ndtri(middles).to(device, dtype)


def fold(seeds: Tensor, value: int | Tensor) -> Tensor:
    """A new seed from each seed and one more coordinate (a step, an index); int64, shape of the broadcast.

    It is output number ``value`` of a SplitMix64 that starts from the mixed seed. Seed and coordinate enter
    differently: with ``mix(mix(a) ^ mix(b))``, step 1 of run 2 would have the seeds of step 2 of run 1.
    """
    counter = torch.as_tensor(value, dtype=torch.int64, device=seeds.device) * as_int64(_GAMMA)
    return mix(mix(seeds) + counter)


def rollout_seeds(
    run_seed: int, step: int, problem_ids: Tensor, num_generations: int, repeats: Tensor | None = None
) -> Tensor:
    """Seeds of the K rollouts of each problem at one training step.

    Args:
        run_seed: any integer; only its low 64 bits are used.
        step: training step (batch of rollouts), so that a problem gets new masks when it occurs again.
        problem_ids: int64 [N].
        num_generations: K.
        repeats: int64 [N], how often the problem has already occurred in this step, so that a second occurrence gets
            new masks too. None gives the same seeds as zeros.

    Returns:
        int64 [N, K]; row i depends only on problem_ids[i] and repeats[i], not on its index in the batch.
    """
    run = torch.tensor([as_int64(run_seed)], dtype=torch.int64, device=problem_ids.device)
    problem = fold(fold(run, step), problem_ids)  # [N]
    if repeats is not None:
        problem = torch.where(repeats > 0, fold(problem, -repeats), problem)
        # The counter is negative because fold(problem, 1) is already the seed of rollout 1.
    k = torch.arange(num_generations, dtype=torch.int64, device=problem_ids.device)
    return fold(problem[:, None], k[None, :])  # [N, K]
