"""Checks, before the first step, that all processes of a run train the same run.

Hosts that differ in a field, in the data or in the folder would wait for each other
forever, or train something that nobody asked for. Two hashes are compared: of what is
configured and read, before anything is written, and of the first state. What one
process refuses is refused by all.
"""

import contextlib
import hashlib
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


class _ReportedError(InputError):
    """A mistake that another process has found and reported."""


@contextlib.contextmanager
def shared_errors():
    """A mistake that one process finds in here is raised in all of them.

    Inside, all processes make the same calls of this file's functions.
    """
    try:
        yield
    except _ReportedError:
        raise
    except (InputError, RunError) as error:
        parallel.gather(json.dumps({"error": f"{error} ({_here()})"}))
        raise
    exchange(None)


def check_same(values: dict):
    """InputError for the first of {what: JSON value} that processes disagree on.

    A hash of all values is compared; only where it differs do the values travel.
    """
    text = json.dumps(values)
    if len(set(exchange(hashlib.sha256(text.encode()).hexdigest()))) == 1:
        return
    first, *others = exchange(values)
    for process, other in enumerate(others, start=1):
        for name in [*first, *(name for name in other if name not in first)]:
            ours, theirs = first.get(name, "missing"), other.get(name, "missing")
            if ours != theirs:
                raise InputError(
                    f"{name} is {theirs} on process {process}, but {ours} on process "
                    "0: all processes of a run need the same"
                )


def of_run(config, model, names, train_images, test_images):
    """What must be the same before anything is written, for `check_same`.

    config: nested dict of JSON values, of which `OF_ONE_HOST` may differ; names: of the
    classes. With "auto" the model's attention and kernels depend on the devices.
    """
    fields = traverse_util.flatten_dict(config, sep=".")
    kernels = "plain" if model.kernels is None else f"fused for {model.kernels}"
    checksum = zlib.crc32(json.dumps(names).encode())
    return {
        **{f"config.{n}": fields[n] for n in fields if n not in OF_ONE_HOST},
        "config.model.attention, resolved for the devices there,": model.backend,
        "config.model.kernels, resolved for the devices there,": kernels,
        "the number of training images": train_images,
        "the number of test images": test_images,
        "the checksum of the names of the classes": checksum,
    }


def of_start(step, arrays):
    """What must be the same of the restored step (or None) and a tree of arrays."""
    checksum = 0
    if parallel.process_count() > 1:
        for leaf in jax.tree.leaves(arrays):
            data = np.ascontiguousarray(leaf).view(np.uint8).data
            checksum = zlib.crc32(data, checksum)
    return {
        "the step to resume from": step,
        "the checksum of the first weights": checksum,
    }


def decided(decide):
    """Return in every process what `decide()` returns in process 0, a JSON value.

    For all that depends on files that processes share: their views of a network file
    system differ for a while.
    """
    return exchange(decide() if parallel.is_main() else None)[0]


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


def appears(seen):
    """Wait until `seen()`: False where that takes longer than PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not seen():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def exchange(value):
    """The JSON `value` of every process; InputError if one of them reports an error.

    Tuples come back as lists.
    """
    texts = parallel.gather(json.dumps({"value": value}))
    messages = [json.loads(text) for text in texts]
    for process, message in enumerate(messages):
        if "error" in message:
            raise _ReportedError(f"process {process} stopped: {message['error']}")
    return [message["value"] for message in messages]


def _here():
    return socket.gethostname()
