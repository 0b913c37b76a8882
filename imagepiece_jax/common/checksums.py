"""Is a step on disk what was written? Reading with a checksum of every array.

Orbax does not notice flipped bits: it restores them silently. The JSON item of a step
therefore holds a table {name: [dtype, shape, CRC32]}, and a CRC32 of its own.
"""

import asyncio
import contextlib
import json
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util


class DamagedError(Exception):
    """A step that cannot be read, or that reads differently from what was written."""


def described(arrays, meta):
    """The text that is stored with `arrays` (by name): what they are, and `meta`."""
    table = {name: _entry(array) for name, array in arrays.items()}
    return json.dumps({"meta": meta, "arrays": table}, sort_keys=True)


def items(arrays, content):
    """A step's items as Orbax takes them; `content` is from `described`."""
    return ocp.args.Composite(
        state=ocp.args.PyTreeSave(traverse_util.unflatten_dict(arrays, sep="/")),
        meta=ocp.args.JsonSave(
            {"content": content, "crc32": zlib.crc32(content.encode())}
        ),
    )


def read(folder, choose):
    """Arrays by name, and the content text, of a step; DamagedError if not whole.

    `choose(folder, table)` names the arrays to read, and may raise an InputError.
    """
    with _reported_as_damage():
        meta = _read_item(folder, meta=ocp.args.JsonRestore())
        content = meta["content"]
        if zlib.crc32(content.encode()) != meta["crc32"]:
            raise DamagedError("its meta data are not what was written (checksum)")
        table = json.loads(content)["arrays"]
    names = list(choose(folder, table))
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
    """Orbax and TensorStore raise many types, or give something else than arrays."""
    try:
        yield
    except (MemoryError, DamagedError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DamagedError(reason) from error


def _read_item(folder, **restore):
    """One item of a step, as Orbax gives it.

    Each process reads alone: whether it can may depend on its view of the folder, and
    Orbax would wait for the others.
    """
    alone = ocp.options.MultiprocessingOptions(
        primary_host=None, active_processes={jax.process_index()}
    )
    handler = ocp.CompositeCheckpointHandler(**handlers())
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)
    with checkpointer, patient_event_loops():
        found = checkpointer.restore(folder, ocp.args.Composite(**restore))
    (item,) = found.values()
    return item


class _PatientEventLoop(asyncio.SelectorEventLoop):
    """Closes when its tasks are done, even if one of them has failed."""

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
    """Else Orbax gives up at the first array that fails while others are on their way.

    Each of those would print "Event loop is closed" and a traceback when it arrives.
    """
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_PatientPolicy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def _entry(array):
    """What the table says of an array: [dtype, shape, CRC32 of its bytes]."""
    data = np.ascontiguousarray(array).view(np.uint8).data
    return [str(array.dtype), list(array.shape), zlib.crc32(data)]


def handlers():
    """What reads and writes each item of a step."""
    return {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
