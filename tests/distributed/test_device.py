"""Which device a process uses, what a command says about it, and that no two processes share a GPU."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dropout_grpo.distributed import device as devices, processes
from dropout_grpo.errors import UserError
from helpers.several import in_processes
from helpers.tiny_latent import tiny_latent, tiny_problems


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("told", "expected"), [("true", "cpu"), ("1", "cpu"), ("false", "cuda"), (None, "cuda")])
def test_accelerate_can_choose_the_cpu_of_a_machine_with_a_gpu(
    told: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    if told is not None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", told)
    assert devices.default_device().type == expected


@pytest.mark.parametrize(
    ("environment", "count", "index"),
    [
        ({"RANK": "5", "LOCAL_RANK": "1"}, 4, 1),
        ({"RANK": "1"}, 4, 1),  # a launcher of one node that sets no LOCAL_RANK
        ({"RANK": "5", "LOCAL_RANK": "1"}, 1, 0),  # this process sees only its own GPU
        ({"LOCAL_RANK": "3"}, 2, 1),  # more processes than GPUs: refused when they compare
        ({}, 2, 0),
    ],
)
def test_the_gpu_of_a_process(environment: dict[str, str], count: int, index: int) -> None:
    assert devices.local_gpu(count, environment) == index


def test_a_gpu_belongs_to_one_process() -> None:
    devices.require_own_gpus(["a GPU-1", "a GPU-2", "b GPU-1"])
    with pytest.raises(UserError, match="ranks 0 and 2 use the same GPU: 3 processes share 2"):
        devices.require_own_gpus(["a GPU-1", "a GPU-2", "a GPU-1"])


def compare_gpus(counts: list[int]) -> list[str]:
    """What a process says if each finds this many GPUs; gloo stands in for NCCL."""
    said, chosen = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "set_device", chosen.append)
        patch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
        patch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
        for count in counts:
            torch.cuda.set_device(devices.local_gpu(count))
            try:
                devices.require_own_gpus(processes.gather(devices.gpu_identity()))
                said.append("each has its own")
            except UserError as error:
                said.append(str(error))
    return said


@pytest.mark.slow
def test_processes_compare_their_gpus(tmp_path: Path) -> None:
    for own, shared in in_processes(2, compare_gpus, tmp_path / "out", [2, 1]):
        assert own == "each has its own"
        assert shared.startswith("ranks 0 and 1 use the same GPU")


def test_connected_processes_refuse_to_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process is enough to see that ``connected`` compares them."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(processes, "gpu_identity", lambda: "a GPU-1")
    monkeypatch.setattr(processes, "gather", lambda value: [value, value])
    backends: list[str] = []
    monkeypatch.setattr(processes.dist, "rendezvous", lambda *args, **options: iter([(dist.HashStore(), 0, 2)]))
    monkeypatch.setattr(processes.dist, "init_process_group", lambda backend, **options: backends.append(backend))
    monkeypatch.setattr(processes.dist, "barrier", lambda: None)
    with pytest.raises(UserError, match="ranks 0 and 1 use the same GPU"), processes.connected():
        pass
    assert backends == ["cpu:gloo,cuda:nccl"]


def test_a_device_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    assert devices.describe_device(torch.device("cuda"), True) == "NVIDIA H200, 139 GiB, bf16 matrix products"
    threads = torch.get_num_threads()
    assert devices.describe_device(torch.device("cpu"), False) == f"CPU, {threads} threads, float32 matrix products"


def test_a_gpu_that_torch_cannot_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "version"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert devices.unused_gpu(driver) is None  # no driver
    driver.write_text("NVRM version", encoding="utf-8")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in str(devices.unused_gpu(driver))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "needs a driver for CUDA 13.0" in str(devices.unused_gpu(driver))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert devices.unused_gpu(driver) is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.unused_gpu(driver) is None


def test_a_command_says_where_it_computes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dropout_grpo.cli.main import main

    tiny_latent("gpt2").save_pretrained(tmp_path / "model")
    assert (
        main(["ask", str(tmp_path / "model"), tiny_problems(1)[0].question, "--masks", "0", "--max_new_tokens", "8"])
        == 0
    )
    assert f"device: CPU, {torch.get_num_threads()} threads, float32" in capsys.readouterr().err
