"""A training checkpoint: a plain Hugging Face model folder with the state that a resumed run needs. No pickle.

The folder is written under another name, synced to disk and then renamed, so a run killed at any moment leaves either a
complete checkpoint or none under that name. ``manifest.json`` lists the size and SHA-256 of every file, so later damage
is detected.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from dropout_grpo.distributed.processes import on_main
from dropout_grpo.errors import UserError, at_place, reading
from dropout_grpo.latent.io.card import CARD
from dropout_grpo.latent.io.checkpoint import save_latent_model
from dropout_grpo.latent.model import LatentModel
from dropout_grpo.runs.files import sync, write_json, writing
from dropout_grpo.runs.record import bytes_of
from dropout_grpo.training.optimizer import load_optimizer_tensors, optimizer_tensors

OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "trainer_state.json"
REFERENCE_FILE, MANIFEST_FILE = "reference.safetensors", "manifest.json"
ONLY_TO_RESUME = (OPTIMIZER_FILE, STATE_FILE, REFERENCE_FILE, MANIFEST_FILE)
"""Files of a training checkpoint that its model does not need."""


class DamagedCheckpoint(UserError):
    """A checkpoint that differs from what was written. The message says how."""


def save_checkpoint(
    path: Path,
    model: LatentModel,
    optimizer: Optimizer | None = None,
    state: Mapping[str, Any] | None = None,
    reference: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint, replacing an older one at the same path.

    In a run of several processes all must call this: rank 0 writes, and the others wait until it has finished.

    Args:
        path: folder of the checkpoint.
        model: the model to save.
        optimizer: its state is saved, for a training checkpoint.
        state: for a training checkpoint, ``step`` and what else the trainer needs, as JSON.
        reference: weights of a reference model that training has changed.

    Raises:
        UserError: the system refuses a write. ``path`` is unchanged in this case.
    """
    tensors = None if optimizer is None else optimizer_tensors(optimizer)
    on_main(lambda: _write(path, model, tensors, state, reference))


def _write(
    path: Path,
    model: LatentModel,
    optimizer: Mapping[str, Tensor] | None,
    state: Mapping[str, Any] | None,
    reference: Mapping[str, Tensor] | None,
) -> None:
    draft, old = path.with_name(path.name + ".part"), path.with_name(path.name + ".old")
    with writing(path):
        shutil.rmtree(draft, ignore_errors=True)
        try:
            save_latent_model(model, draft, card=state is None)
            if optimizer is not None:
                save_file(dict(optimizer), draft / OPTIMIZER_FILE)
            if reference:
                save_file(dict(reference), draft / REFERENCE_FILE)
            if state is not None:
                write_json(draft / STATE_FILE, state)
            with ThreadPoolExecutor() as pool:  # hashes while the system writes
                synced = pool.map(sync, [*draft.rglob("*")])
                if state is not None:
                    manifest = _manifest(draft, {OPTIMIZER_FILE: optimizer, REFERENCE_FILE: reference})
                    write_json(draft / MANIFEST_FILE, manifest)
            list(synced)  # raises what a thread has raised
            sync(draft)
        except Exception:
            shutil.rmtree(draft, ignore_errors=True)  # a full disk gets its space back
            raise
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        draft.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)


def trainer_state(path: Path) -> dict[str, Any]:
    """Check all files of a training checkpoint against the manifest and return its ``state``.

    Raises:
        DamagedCheckpoint: a file is missing, added or changed.
        UserError: a file cannot be read.
    """
    written = _json(path / MANIFEST_FILE)
    written.pop(CARD, None)  # ``push`` writes it later, which damages nothing
    with reading(path):
        files = _manifest(path)
    for name in sorted(written.keys() | files.keys()):
        if name not in files:
            raise DamagedCheckpoint(f"{path / name} is missing")
        if name not in written:
            raise DamagedCheckpoint(f"{path / name} is not part of the checkpoint")
        if written[name] != files[name]:
            raise DamagedCheckpoint(f"{path / name} has changed since it was written")
    state = _json(path / STATE_FILE)
    if not isinstance(state.get("step"), int):
        raise DamagedCheckpoint(f"{path / STATE_FILE} has no step")
    return state


def restore_optimizer(path: Path, optimizer: Optimizer) -> None:
    """Load the optimiser's state from a training checkpoint.

    Raises:
        UserError: the file cannot be read, or it holds the state of another optimiser.
    """
    file = path / OPTIMIZER_FILE
    with at_place(str(file)):
        load_optimizer_tensors(optimizer, _tensors(file))


def saved_reference(path: Path) -> dict[str, Tensor]:
    """The reference's weights in a training checkpoint; empty if there are none."""
    file = path / REFERENCE_FILE
    with at_place(str(file)):
        return dict(_tensors(file)) if file.is_file() else {}


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one after another."""
    try:  # read, not mapped: a map would keep the disk space of a checkpoint that is removed
        with safe_open(file, framework="pt", backend="pread") as content:
            for name in content.keys():  # noqa: SIM118  # not a dict
                yield name, content.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"it cannot be read: {error}") from error


def _manifest(folder: Path, written: Mapping[str, Mapping[str, Tensor] | None] = {}) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in a folder except the manifest itself and the model card.

    Args:
        folder: the checkpoint.
        written: by name of the file, the tensors that ``save_file`` has just written. Such a file is not read again.
    """
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
    for name in (MANIFEST_FILE, CARD):
        files.pop(name, None)
    with ThreadPoolExecutor() as pool:
        digests = pool.map(_sha256, files.values(), map(written.get, files))
    sizes = [file.stat().st_size for file in files.values()]
    return {name: {"bytes": n, "sha256": d} for name, n, d in zip(files, sizes, digests, strict=True)}


def _sha256(file: Path, tensors: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 of a file; if its tensors are given, it is that of the file's header and the tensors in memory."""
    with file.open("rb") as content:
        if not tensors:
            return hashlib.file_digest(content, "sha256").hexdigest()
        length = content.read(8)
        header = content.read(int.from_bytes(length, "little"))
    digest = hashlib.sha256(length + header)
    places = {name: entry["data_offsets"] for name, entry in json.loads(header).items() if name != "__metadata__"}
    for name in sorted(places, key=places.__getitem__):
        digest.update(bytes_of(tensors[name]))
    return digest.hexdigest()


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DamagedCheckpoint(f"{file} is missing")
    with reading(file, DamagedCheckpoint):
        value = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise DamagedCheckpoint(f"{file} is not a JSON object")
    return value
