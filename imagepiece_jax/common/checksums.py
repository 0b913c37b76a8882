"""Checkpoint steps on disk, with a checksum per array.

A step's JSON item holds a table {name: [dtype, shape, CRC32]}, and a CRC32 of its own.
"""

import contextlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterator

import numpy as np

from imagepiece_jax.errors import InputError

# Orbax 0.12.8 does not notice flipped bits: it restored 48 of 48 silently
# (tests/training/cluster/test_checkpoint.py flips bits).
#
# A checksum per file, written in one file after a complete step, was tried. A kill
# between the two, 1.6 s for 320 MB, leaves a complete step without checksums. Reading
# the weights alone would mean reading all files: 2.0 s instead of 0.6.
log = logging.getLogger("imagepiece_jax.checkpoints")

# Function (step folder, table) -> names of the arrays to read.
TableChoice = Callable[[pathlib.Path, dict[str, list]], Collection[str]]


class DamagedError(Exception):
    """An unreadable step, or a step changed since it was written."""


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """List the completely written steps in `folder`, in order."""
    folder = pathlib.Path(folder)
    step_names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in step_names if name.isdecimal())


def read_newest_step(
    folder: str | os.PathLike, choose: TableChoice, steps: list[int] | None = None
) -> tuple[dict, dict, int]:
    """Read the newest intact step in `folder`: (arrays by name, metadata, step).

    A damaged step is skipped with a warning.

    choose: function (step folder, {array name: entry}) -> names of the arrays to read
    steps: the steps to try, oldest first; None: all
    """
    folder = pathlib.Path(folder)
    steps = complete_steps(folder) if steps is None else steps
    if not steps:
        raise InputError(f"{folder} holds no checkpoint")
    for step in reversed(steps):
        try:
            arrays, metadata = _read_step(folder / str(step), choose)
        except DamagedError as error:
            warning = "skipping the damaged checkpoint %s: %s; an earlier one is tried"
            log.warning(warning, folder / str(step), error)
            continue
        return arrays, metadata, step
    raise InputError(
        f"{folder} has only damaged checkpoints (steps {steps} were tried)"
    )


def seal_metadata(arrays: dict[str, np.ndarray], metadata: dict) -> dict:
    """Make a step's JSON item: `metadata` and the table of arrays, with a checksum."""
    array_table = {name: _table_entry(array) for name, array in arrays.items()}
    content = json.dumps({"meta": metadata, "arrays": array_table}, sort_keys=True)
    return {"content": content, "crc32": zlib.crc32(content.encode())}


def _read_step(folder: pathlib.Path, choose: TableChoice) -> tuple[dict, dict]:
    """Read a step: (arrays, metadata). Raises DamagedError for a damaged part."""
    from imagepiece_jax.common import orbax_files  # an optional package

    with _translate_read_errors("meta"):
        sealed_item = orbax_files.read_json_item(folder / "meta")
        if zlib.crc32(sealed_item["content"].encode()) != sealed_item["crc32"]:
            raise DamagedError("its metadata does not fit its checksum")
        content = json.loads(sealed_item["content"])
        array_table = content["arrays"]
    key_paths = [tuple(name.split("/")) for name in choose(folder, array_table)]
    with _translate_read_errors("state"):
        array_by_path = orbax_files.read_arrays(folder / "state", key_paths)
        arrays = {"/".join(path): array for path, array in array_by_path.items()}
        for name, array in arrays.items():
            if _table_entry(array) != array_table[name]:
                raise DamagedError(f"{name} does not fit its checksum")
    return arrays, content["meta"]


@contextlib.contextmanager
def _translate_read_errors(item_name: str) -> Iterator[None]:
    """Turn Orbax's and TensorStore's errors into a DamagedError.

    item_name: the step's item "meta" or "state"
    """
    try:
        yield
    except (MemoryError, DamagedError):
        raise
    except json.JSONDecodeError as error:
        raise DamagedError(f"its {item_name} is cut off or is not JSON") from error
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DamagedError(f"its {item_name} cannot be read ({reason})") from error


def _table_entry(array: np.ndarray) -> list:
    """Table entry of an array: [dtype, shape, CRC32 of its bytes]."""
    array_bytes = np.ascontiguousarray(array).view(np.uint8).data
    return [str(array.dtype), list(array.shape), zlib.crc32(array_bytes)]
