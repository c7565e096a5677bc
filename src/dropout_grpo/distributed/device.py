"""The device of this process: a CPU, or a GPU that no other process of the run uses."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dropout_grpo.errors import UserError

_GIB = 2**30
_CPU_ONLY = "ACCELERATE_USE_CPU"
"""The variable that accelerate launch sets, and processes inherit."""

_NVIDIA = Path("/proc/driver/nvidia/version")
"""Exists where NVIDIA's driver is loaded."""


def default_device() -> torch.device:
    """CUDA if there is a CUDA device, else the CPU; always the CPU under ``accelerate launch --cpu``."""
    return torch.device("cuda" if torch.cuda.is_available() and not _told_cpu() else "cpu")


def choose_device(name: str) -> None:
    """Make a device the default one of this process; ``cpu`` also of those that it starts.

    Args:
        name: ``cpu``, ``cuda``, or ``cuda:1`` for the second GPU that this process sees.

    Raises:
        UserError: the name is another one, there is no such GPU, or each process of a run has its own GPU.
    """
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise UserError(f"--device {name}: it must be cpu, cuda, or a GPU by its number, such as cuda:1.")
    if kind == "cpu":
        os.environ[_CPU_ONLY] = "true"
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(number or 0) >= count:
        known = f"there are cuda:0 to cuda:{count - 1}" if count else "torch sees no GPU here"
        raise UserError(f"--device {name}: {known}; leave --device out, or use --device cpu.")
    os.environ.pop(_CPU_ONLY, None)
    if number:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"--device {name}: each process of a run has its own GPU; use --device cuda.")
        torch.cuda.set_device(int(number))


def _told_cpu() -> bool:
    return os.environ.get(_CPU_ONLY, "").lower() in ("1", "true", "yes")


def local_gpu(count: int, environment: Mapping[str, str] = os.environ) -> int:
    """Index of the GPU of this process.

    ``LOCAL_RANK`` selects it, or ``RANK`` if a launcher sets only that. A process that sees one GPU takes it: some
    launchers show each process only its own. ``require_own_gpus`` refuses two processes on the same GPU.

    Args:
        count: GPUs that this process sees.
        environment: environment variables.
    """
    return int(environment.get("LOCAL_RANK", environment.get("RANK", "0"))) % count


def gpu_identity() -> str:
    """A name of the current GPU that no other GPU of the run has."""
    return f"{socket.gethostname()} {torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def require_own_gpus(identities: Sequence[str]) -> None:
    """Check that no two processes use the same GPU.

    Args:
        identities: ``gpu_identity()`` of each process, by rank.

    Raises:
        UserError: names two ranks that share a GPU.
    """
    first: dict[str, int] = {}
    for rank, identity in enumerate(identities):
        if identity in first:
            raise UserError(
                f"ranks {first[identity]} and {rank} use the same GPU: {len(identities)} processes share "
                f"{len(set(identities))}. Start one process per GPU (--nproc_per_node; a script that connects them "
                "itself calls torch.cuda.set_device first), or hide the GPUs to compute on the CPU "
                "(CUDA_VISIBLE_DEVICES= before the command)."
            )
        first[identity] = rank


def describe_device(device: torch.device, bf16: bool) -> str:
    """Name, memory and precision of a device, in one line.

    Args:
        device: where the models compute.
        bf16: whether matrix products are computed in bf16.
    """
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        what = f"{gpu.name}, {gpu.total_memory / _GIB:.0f} GiB"
    else:
        what = f"{device.type.upper()}, {torch.get_num_threads()} threads"
    return f"{what}, {'bf16' if bf16 else 'float32'} matrix products"


def unused_gpu(driver: Path = _NVIDIA) -> str | None:
    """A warning if this machine has an NVIDIA GPU that torch cannot use, else None.

    Args:
        driver: a file that exists where NVIDIA's driver is loaded.
    """
    if torch.cuda.is_available() or _told_cpu() or "CUDA_VISIBLE_DEVICES" in os.environ or not driver.exists():
        return None
    built = "is built without CUDA" if torch.version.cuda is None else f"needs a driver for CUDA {torch.version.cuda}"
    return (
        f"this machine has an NVIDIA GPU, but torch {torch.__version__} {built}, so the CPU is used. Install a build "
        "of torch that fits the driver: https://pytorch.org/get-started/locally."
    )
