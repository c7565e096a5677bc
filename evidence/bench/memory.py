"""Peak memory of one arm.

On a CPU the arm runs in a fresh process, ``python -m evidence.bench.memory "{...}"``. Its peak memory is
Linux's VmHWM, because ``ru_maxrss`` of a child starts from the memory of its parent.
"""

import gc
import json
import re
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from dropout_grpo.latent.graphs import forget_recordings
from dropout_grpo.training.machine import freed_memory_kept, keep_freed_memory, return_freed_memory
from evidence.bench import arms
from evidence.bench.config import Job, Setting
from evidence.bench.workload import Networks, Workload

_STATUS = Path("/proc/self/status")


def peak_memory(name: str, work: Workload, job: Job, attention: str | None) -> dict[str, Any]:
    """Peak memory of one run.

    Returns:
        ``peak``: bytes at the peak; ``before``: bytes with only the model and its inputs; ``kind``: how measured.
    """
    if work.on_cuda:
        return _on_cuda(name, work, job, attention)
    task = {"setting": asdict(work.setting), "job": job, "arm": name, "attention": attention}
    command = [sys.executable, "-m", "evidence.bench.memory", json.dumps(task)]
    return_freed_memory()  # an arm may need most of the machine's memory
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the memory of {name} in {job} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_once(task: dict[str, Any]) -> dict[str, Any]:
    """Runs an arm once and measures its memory; called in the fresh process."""
    keep_freed_memory()  # as in every command
    setting = Setting(**task["setting"])
    work = Workload(setting, Networks(setting))
    arm = arms.build(task["arm"], work, task["job"], task["attention"])
    arm.prepare()
    before = peak_resident()
    with freed_memory_kept():
        arm.run()
    return {"kind": "peak resident memory of a fresh process", "before": before, "peak": peak_resident()}


def peak_of(status: Path) -> int:
    """Peak resident memory of a process in bytes, from its ``status`` in Linux's /proc; 0 if it has just ended."""
    return _bytes_of("VmHWM", status)


def anonymous_of(status: Path) -> int:
    """Resident memory of a process now, without pages of files.

    transformers maps a file of float32 weights. Its pages stay until something else needs the memory, and the kernel
    then drops them, so no process is killed for them.
    """
    return _bytes_of("RssAnon", status)


def _bytes_of(name: str, status: Path) -> int:
    try:
        found = re.search(rf"{name}:\s+(\d+) kB", status.read_text(encoding="ascii"))
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def peak_resident() -> int:
    """Peak resident memory of this process in bytes."""
    if _STATUS.is_file():
        peak = peak_of(_STATUS)
        assert peak, "Linux gives VmHWM of a process that runs"
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def return_memory() -> None:
    """Return what no tensor uses, graphs included, so that the next case has room for it."""
    forget_recordings()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _on_cuda(name: str, work: Workload, job: Job, attention: str | None) -> dict[str, Any]:
    forget_recordings()
    arm = arms.build(name, work, job, attention)
    arm.prepare()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(work.untimed):  # graphs take their memory when they are recorded
        arm.run()
    torch.cuda.synchronize()
    return {"kind": "torch.cuda.max_memory_allocated", "before": before, "peak": torch.cuda.max_memory_allocated()}


if __name__ == "__main__":
    print(json.dumps(run_once(json.loads(sys.argv[1]))))
