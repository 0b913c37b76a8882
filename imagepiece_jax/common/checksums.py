"""Checkpoint steps on disk, with a checksum of every array.

Orbax does not notice flipped bits: it restores them silently. The JSON item of a step
therefore holds a table {name: [dtype, shape, CRC32]}, and a CRC32 of its own.
"""

import asyncio
import contextlib
import json
import pathlib
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util

from imagepiece_jax.errors import InputError


class DamagedError(Exception):
    """A step that cannot be read, or whose content is not what was written."""


def steps(folder):
    """Numbers of the completely written steps in `folder`, in order."""
    folder = pathlib.Path(folder)
    names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdecimal())


def newest(folder, choose, among=None, reader=None):
    """(arrays by name, meta, step) of the newest intact step in `folder`.

    choose: as for `read`
    among: numbers of the steps to try, in order; None: all
    reader: called in place of `read`
    Raises InputError where there is no step, or none that is intact.
    """
    folder, reader = pathlib.Path(folder), reader or read
    among = steps(folder) if among is None else among
    if not among:
        raise InputError(f"{folder} holds no checkpoint")
    for step in reversed(among):
        try:
            arrays, content = reader(folder / str(step), choose)
        except DamagedError as error:
            logging.warning(
                "skipping the damaged checkpoint %s: %s", folder / str(step), error
            )
            continue
        return arrays, json.loads(content)["meta"], step
    raise InputError(
        f"{folder}: every checkpoint tried is damaged (steps {among}); remove the "
        "folder to start again, or choose another --workdir"
    )


def described(arrays, meta):
    """The JSON text stored with `arrays` (by name): their table, and `meta`."""
    table = {name: _entry(array) for name, array in arrays.items()}
    return json.dumps({"meta": meta, "arrays": table}, sort_keys=True)


def items(arrays, content):
    """A step's items as Orbax takes them; `content` is the text of `described`."""
    return ocp.args.Composite(
        state=ocp.args.PyTreeSave(traverse_util.unflatten_dict(arrays, sep="/")),
        meta=ocp.args.JsonSave(
            {"content": content, "crc32": zlib.crc32(content.encode())}
        ),
    )


def read_content(folder) -> str:
    """The text of `described` in a step. Raises DamagedError if it is not intact."""
    with _reported_as_damage():
        meta = _read_item(folder, meta=ocp.args.JsonRestore())
        if zlib.crc32(meta["content"].encode()) != meta["crc32"]:
            raise DamagedError("its metadata is not what was written (checksum)")
        return meta["content"]


def read(folder, choose):
    """Arrays by name, and the text of `described`, of a step.

    choose: called with (folder, table), names the arrays to read; may raise InputError
    Raises DamagedError if any of it is not intact.
    """
    content = read_content(folder)
    with _reported_as_damage():
        table = json.loads(content)["arrays"]
    names = list(choose(folder, table))
    if not names:  # Orbax refuses an empty tree
        return {}, content
    tree = traverse_util.unflatten_dict(dict.fromkeys(names, 0), sep="/")
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    restore = ocp.args.PyTreeRestore(tree, restore_args=as_numpy, partial_restore=True)
    with _reported_as_damage():
        arrays = traverse_util.flatten_dict(_read_item(folder, state=restore), sep="/")
        for name in names:
            if _entry(arrays[name]) != table[name]:
                raise DamagedError(f"{name} is not what was written (checksum)")
    return arrays, content


@contextlib.contextmanager
def _reported_as_damage():
    """Raise whatever Orbax and TensorStore raise (many types) as a DamagedError."""
    try:
        yield
    except (MemoryError, DamagedError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DamagedError(reason) from error


def _read_item(folder, **restore):
    """One item of a step, as Orbax returns it.

    Each process reads alone: whether it can may depend on its view of the folder, and
    Orbax would wait for the others.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={jax.process_index()}
    )
    handler = ocp.CompositeCheckpointHandler(**handlers())
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)
    with checkpointer, patient_event_loops():
        (item,) = checkpointer.restore(folder, ocp.args.Composite(**restore)).values()
    return item


class _PatientEventLoop(asyncio.SelectorEventLoop):
    """Event loop that closes when its tasks are done, even if one of them failed."""

    def close(self):
        tasks = asyncio.all_tasks(self)
        if tasks and not self.is_closed():
            self.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        super().close()


class _PatientPolicy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return _PatientEventLoop()


@contextlib.contextmanager
def patient_event_loops():
    """Let reads that have begun end before an event loop closes.

    Orbax gives up at the first array that fails; each of the others would print "Event
    loop is closed" and a traceback when it arrives.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def _entry(array):
    """Entry of an array in the table: [dtype, shape, CRC32 of its bytes]."""
    data = np.ascontiguousarray(array).view(np.uint8).data
    return [str(array.dtype), list(array.shape), zlib.crc32(data)]


def handlers():
    """Orbax's handler of each item of a step."""
    return {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
