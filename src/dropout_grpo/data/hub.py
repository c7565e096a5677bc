"""Hugging Face datasets, by name or from a local folder, through the ``datasets`` package."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dropout_grpo.errors import UserError

HUB_PREFIX = "hf:"
SOURCE_FORM = "hf:NAME_OR_FOLDER[:CONFIG][@SPLIT]"
ANOTHER_FILE = "convert it to .jsonl, or put it into a folder of its own and give hf:FOLDER"
"""What to do about a file that is not read by itself, such as .csv or .parquet."""
_EXAMPLE_SOURCE = "hf:openai/gsm8k:main@train"
_SOURCE = re.compile(rf"{HUB_PREFIX}(?P<name>[^:@]+)(?::(?P<config>[^:@]+))?(?:@(?P<split>[^@]+))?")


def dataset_records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place for messages, row) for every row of a dataset.

    Args:
        source: ``hf:NAME_OR_FOLDER[:CONFIG][@SPLIT]``. A folder holds parquet, jsonl, csv, ... as `datasets` reads
            them; its path must not contain ``:`` or ``@``. The split may be omitted if there is only one, and may be
            a slice, ``train[:1000]``.

    Raises:
        UserError: the package is not installed, `source` has another form, or the dataset cannot be loaded.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise UserError(f"{source!r}: expected {SOURCE_FORM}, for example {_EXAMPLE_SOURCE}")
    if Path(match["name"]).is_file():
        raise UserError(
            f"{source}: {match['name']} is a file, and hf: reads a folder or a dataset of the Hub; leave hf: out for "
            f".json, .jsonl and .txt, else {ANOTHER_FILE}"
        )
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{source}: this needs the datasets package: pip install 'dropout-grpo[data]'") from error
    try:
        loaded = datasets.load_dataset(match["name"], match["config"], split=match["split"])
        if isinstance(loaded, dict):  # no split was named: all of them
            if len(loaded) > 1:
                raise UserError(f"{source}: name one of the splits {', '.join(loaded)}: {source}@{next(iter(loaded))}")
            (loaded,) = loaded.values()
        for number, row in enumerate(loaded, start=1):
            yield f"{source}, record {number}", row
    except UserError:
        raise
    except Exception as error:  # a script, a dataset card, any file in it: each package raises its own exceptions
        raise UserError(f"{source}: the dataset cannot be loaded: {type(error).__name__}: {error}") from error
