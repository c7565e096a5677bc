"""Settings for every test: offline, one thread, no GPU, a known global RNG (which nothing of ours should read)."""

import os
import shutil
import tempfile

os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp()  # where GGUF files are converted to
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a test that needs the network must fail

from collections.abc import Iterator

import pytest

from helpers.gpu import selects_gpu


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPU from ordinary tests, which compare bits, and from the processes that they start.

    The driver reads the variable when CUDA is first used, so nothing above imports torch.
    """
    if not selects_gpu(config.getoption("markexpr")):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(1)  # tiny tensors gain nothing from more, and sums keep one order


@pytest.fixture(scope="module", autouse=True)
def no_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """Reports of runs have no figures outside of the report's own tests: drawing takes half the time of a tiny run."""
    if request.path.parent.name not in ("cli", "commands", "data", "runs", "studies"):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dropout_grpo.report.page.inline_svg", lambda figure, **options: "")
        yield


@pytest.fixture(autouse=True)
def known_global_rng() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def known_attention(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a CPU no test depends on a clock."""
    from dropout_grpo.latent.attention_choice import fixed_attention

    if request.node.get_closest_marker("gpu"):
        yield
        return
    with fixed_attention("products"):
        yield


@pytest.fixture(autouse=True)
def tiny_models_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide ones do."""
    monkeypatch.setattr("dropout_grpo.latent.packing.COPIES", 0)


def pytest_sessionfinish() -> None:
    shutil.rmtree(os.environ["HF_ASSETS_CACHE"])
