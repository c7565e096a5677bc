"""What a run is made from. It is compared on resuming, and between the processes of a run.

A run folder keeps its record in ``config.json``, and every training checkpoint keeps that of its part. What an older
version of the program has not recorded is not compared.
"""

import hashlib
import inspect
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dropout_grpo.distributed.processes import gather, size
from dropout_grpo.errors import UserError
from dropout_grpo.old_names import current_path
from dropout_grpo.runs.files import flat_options, jsonable

_LENGTH = "max_steps"  # of GRPO; it may be raised on resuming, which makes the run longer
_MAY_CHANGE = frozenset(
    # Options of any section that change no weight on resuming: where a run is, what is kept in memory, and how often
    # something is written.
    (
        *("run_dir", "resume", "report_to", "fsdp", "gradient_checkpointing"),
        *("eval_steps", "save_steps", "save_total_limit", "log_completions", "num_completions_to_print"),
        "num_generations_eval",
    )
)

_OWN_NAMES = ("exploration.options.", "data.chat_template_kwargs.")
"""Sections whose names are the user's, so that a new name is a difference."""
_MOST_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run, or one part of it, is made from.

    Args:
        options: the options, nested as on the command line.
        digests: SHA-256 of what options only name: problems, weights, code of the user. None where there is none.
        run: the run's id.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    digests: Mapping[str, str | None] = field(default_factory=dict)
    run: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dict(jsonable(asdict(self)))

    @classmethod
    def from_json(cls, saved: Any) -> "Record":
        """The inverse of ``as_json``; an empty record for anything else, as in an older checkpoint."""
        saved = saved if isinstance(saved, dict) else {}
        options, digests = saved.get("options"), saved.get("digests")
        return cls(
            options=options if isinstance(options, dict) else {},
            digests=digests if isinstance(digests, dict) else {},
            run=saved.get("run"),
        )

    def differences(self, now: "Record") -> Iterator[tuple[str, str, str, str]]:
        """Name, description and the two values of each difference between this record and another one."""
        then, later = _flat(self.options), _flat(now.options)
        for name in sorted(then.keys() | later.keys()):
            recorded = name in then or name.startswith(_OWN_NAMES)
            if recorded and then.get(name) != later.get(name):
                yield name, name, repr(then.get(name)), repr(later.get(name))
        for name, old in sorted(self.digests.items()):
            new = now.digests.get(name)
            if old is not None and new is not None and old != new:
                source = f" ({later[name]})" if later.get(name) else ""
                yield name, f"the content of {name}{source}, by its SHA-256,", f"{old:.12}", f"{new:.12}"
        if self.run is not None and now.run is not None and self.run != now.run:
            yield "run", "the run that it belongs to", self.run, now.run

    def require_same(self, now: "Record", where: str, *, may_grow: bool = True) -> bool:
        """Check that a run goes on as it began.

        Args:
            now: the record of the process that continues the run.
            where: the run folder or checkpoint that holds this record, for messages.
            may_grow: allow a greater number of steps.

        Returns:
            True if the run has grown.

        Raises:
            UserError: names the first difference, with both values.
        """
        then, later, grown = _flat(self.options), _flat(now.options), False
        for name, what, old, new in self.differences(now):
            last = name.rpartition(".")[2]
            if last in _MAY_CHANGE:
                continue
            if not (may_grow and last == _LENGTH and name in later and then[name] < later[name]):
                raise UserError(
                    f"cannot resume {where}: {what} was {old} and is now {new}. Restore it, or start a new run in "
                    "another folder."
                )
            grown = True
        return grown


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in flat_options(jsonable(options)).items() if value != {}}
    if isinstance(rewards := flat.get("reward_funcs"), list):
        flat["reward_funcs"] = [current_path(str(path)) for path in rewards]
    return flat


def require_equal_processes(record: Record) -> None:
    """Check that all processes of a run were started alike; the others would train on, each for itself.

    Raises:
        UserError: names the first difference, with both values. Raised in all processes.
    """
    if size() == 1:
        return
    whole = record.as_json()
    digest = hashlib.sha256(repr(whole).encode()).hexdigest()
    if len(set(gather(digest))) == 1:
        return
    first, *others = map(Record.from_json, gather(whole))
    for rank, other in enumerate(others, start=1):
        for _, what, mine, theirs in first.differences(other):
            raise UserError(
                f"the processes of this run were started differently: {what} is {mine} in rank 0 and {theirs} in rank "
                f"{rank}. Start all of them with the same options and files."
            )
    raise UserError("the processes of this run were started differently: they do not have the same options.")


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of all parameters, with their names, dtypes and shapes.

    The tensors are hashed in parallel, so that a billion parameters take seconds. The largest are the first, so that
    none is left to one thread at the end.
    """
    largest_first = sorted(model.named_parameters(), key=lambda named: named[1].nbytes, reverse=True)
    names, tensors = zip(*largest_first, strict=True)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        digests = dict(zip(names, pool.map(_tensor_digest, names, tensors), strict=True))
    return hashlib.sha256("\n".join(digests[name] for name, _ in model.named_parameters()).encode()).hexdigest()


def _tensor_digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor's elements in order, without a copy if it is contiguous and on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def code_digest(code: Any) -> str | None:
    """SHA-256 of the file of a user's function, class or object; None for the package's own, and without a source.

    Of code in the script that runs it is that of the function or class alone, since the script also holds the options.
    """
    named = code if inspect.isroutine(code) or inspect.isclass(code) else type(code)
    if named.__module__.partition(".")[0] == "dropout_grpo":
        return None
    try:
        if named.__module__ == "__main__":
            source = inspect.getsource(named).encode()
        else:
            source = Path(inspect.getsourcefile(named) or "").read_bytes()
    except (OSError, TypeError):  # made by exec, or written in C
        return None
    return hashlib.sha256(source).hexdigest()
