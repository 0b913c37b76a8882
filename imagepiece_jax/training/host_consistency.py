"""Do all processes of a run mean the same run? Asked before the first step.

Hosts that differ in a field, in the data or in the folder would wait for each other for
ever, or train something that nobody asked for. Here every process tells the others, and
all of them refuse together.
"""

import contextlib
import json
import pathlib
import secrets
import socket
import time
import zlib

import jax
import numpy as np
from flax import traverse_util

from imagepiece_jax.common import parallel
from imagepiece_jax.errors import InputError, RunError

# Fields that say how one host reads, and may differ from host to host.
OF_ONE_HOST = ("data.dir", "data.workers", "data.threads")
PATIENCE = 30.0  # seconds until a new file must be seen by every host (NFS caches)


class _Told(InputError):
    """A mistake that another process has told of."""


@contextlib.contextmanager
def shared_fate():
    """A mistake that one process finds in here is raised in all of them.

    Inside, all processes make the same calls of this file's functions.
    """
    try:
        yield
    except _Told:
        raise
    except (InputError, RunError) as error:
        parallel.gather(json.dumps({"error": f"{error} ({_here()})"}))
        raise
    exchange(None)


def check_config(config):
    """InputError for the first field whose value is not the same everywhere.

    config: nested dict of JSON values. `OF_ONE_HOST` may differ.
    """
    fields = traverse_util.flatten_dict(config, sep=".")
    check_same(
        {f"config.{name}": fields[name] for name in fields if name not in OF_ONE_HOST}
    )


def check_model(model):
    """InputError where "auto" means another attention or other kernels elsewhere."""
    kernels = "plain" if model.kernels is None else f"fused for {model.kernels}"
    check_same(
        {
            "config.model.attention, resolved for the devices there,": model.backend,
            "config.model.kernels, resolved for the devices there,": kernels,
        }
    )


def decided(decide):
    """What `decide()` returns in process 0, in every process; a JSON value.

    For all that depends on files that processes share: their views of a network file
    system differ for a while.
    """
    return exchange(decide() if parallel.is_main() else None)[0]


def check_same(values):
    """InputError for the first of {what: JSON value} that processes disagree on."""
    first, *others = exchange(values)
    for process, other in enumerate(others, start=1):
        for name in [*first, *(name for name in other if name not in first)]:
            ours, theirs = first.get(name, "missing"), other.get(name, "missing")
            if ours != theirs:
                raise InputError(
                    f"{name} is {theirs} on process {process}, but {ours} on process "
                    "0: all processes of a run need the same"
                )


def check_workdir(workdir):
    """InputError where not every process sees the folder that process 0 writes to.

    The folder is there on process 0's host. Its file system may take a while to show
    the others what is new.
    """
    if parallel.process_count() == 1:
        return
    token = exchange(secrets.token_hex(8))[0]
    path = pathlib.Path(workdir) / f".seen-{token}"
    if parallel.is_main():
        path.touch()
    exchange("written")
    seen = exchange([appears(path.exists), _here()])
    if parallel.is_main():
        path.unlink()
    for process, (found, where) in enumerate(seen):
        if not found:
            raise InputError(
                f"--workdir {workdir} of process {process} ({where}) is not the folder "
                f"that process 0 ({seen[0][1]}) writes to: choose one on storage that "
                "all hosts share"
            )


def check_start(step, arrays, train, val):
    """InputError unless all start at the same step, with the same arrays and data.

    step: what was restored, or None; arrays: a tree of them; train, val: sources.
    """
    if parallel.process_count() == 1:
        return
    checksum = 0
    for leaf in jax.tree.leaves(arrays):
        data = np.ascontiguousarray(leaf).view(np.uint8).data
        checksum = zlib.crc32(data, checksum)
    check_same(
        {
            "the step to go on from": step,
            "the number of training images": len(train),
            "the number of test images": len(val),
            "the checksum of the first weights": checksum,
        }
    )


def appears(seen):
    """Wait until `seen()`: False where that takes longer than PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not seen():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def exchange(value):
    """The JSON `value` of every process; InputError if one of them tells of an error.

    Tuples come back as lists.
    """
    texts = parallel.gather(json.dumps({"value": value}))
    messages = [json.loads(text) for text in texts]
    for process, message in enumerate(messages):
        if "error" in message:
            raise _Told(f"process {process} stopped: {message['error']}")
    return [message["value"] for message in messages]


def _here():
    return socket.gethostname()
