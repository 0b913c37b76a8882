"""Join a run's processes, compare their settings, and end them all if one is lost.

The only file that mentions `jax.distributed`. When a process dies, JAX aborts the other
processes or raises an exception in them. Both end here in one sentence, within a
minute.
"""

import atexit
import collections
import contextlib
import ctypes
import glob
import json
import os
import signal
import socket
import sys
import zlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import PyTree

from imagepiece_jax.common import parallel
from imagepiece_jax.common.signals import ending_at_once
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training.cluster.run_dir import flatten_fields
from imagepiece_jax.training.data import RunData

# Both short, so that all processes have stopped within a minute.
HEARTBEAT_SECONDS = 30  # without a heartbeat until a process counts as dead
SHUTDOWN_SECONDS = 15  # an ending process waits for the end of all processes
# Words in JAX, gloo and NCCL errors about a lost process.
LOSS_SIGNS = ("gloo", "nccl", "coordination", "barrier")
LOSS_SIGNS += ("connection", "socket", "deadline")
LOSS_MESSAGE = (
    "error: another process of this run has ended or cannot be reached; start all of "
    "them again with the same command to resume from the newest checkpoint\n"
)
# Fields about reading on one host; they may differ between hosts.
HOST_FIELDS = ("data.dir", "data.workers", "data.threads")


@contextlib.contextmanager
def joined_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Iterator[None]:
    """Context that joins this process to its run's other processes, if there are any.

    Enter it before anything else uses JAX. Without arguments JAX finds the processes
    under SLURM and Open MPI, with one GPU per process. With all three arguments a
    process has all GPUs it sees. num_processes=1 runs this process alone, anywhere.

    coordinator: "host:port" of process 0
    Raises InputError if the processes cannot meet, have different device counts, or
        leave GPUs unused.
    """
    if num_processes == 1 and coordinator is None:
        yield
        return
    with contextlib.ExitStack() as stack:
        # JAX waits in C++ code, where Python's own handlers do not run
        # (test_a_process_waiting_for_others_ends_at_a_signal). Training replaces
        # the handlers by a StopRequest, which saves.
        stack.enter_context(ending_at_once())
        stack.enter_context(_explain_process_loss())
        if _connect_processes(coordinator, num_processes, process_id):
            # JAX aborts from a C++ thread, where Python's handlers do not run either.
            ctypes.CDLL(None).signal(signal.SIGABRT, _end_after_loss)
            check_device_counts()
            check_gpus()
            # CPU devices must connect within 30 seconds. They connect here, before a
            # process compiles.
            parallel.make_max_over_processes()(0)
        else:
            stack.close()
        try:
            yield
        except Stopped:  # all processes raise it at the same step
            parallel.exchange_values("saved")
            raise
        parallel.exchange_values("done")


@contextlib.contextmanager
def _explain_process_loss() -> Iterator[None]:
    """Context in which any error, also a lost process, ends in one sentence."""
    try:
        yield
    except BaseException as error:
        # JAX raises a ValueError if a process is lost during an exchange of values.
        is_jax_error = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        may_be_loss = is_jax_error and not isinstance(error, InputError)
        if may_be_loss and is_process_loss(error):
            print(error, file=sys.stderr, flush=True)
            _end_after_loss(signal.SIGABRT)
        if jax.distributed.is_initialized():
            # While this process ends, JAX waits for all processes, and reports stopped
            # processes at length: stderr goes to the null device. The last registration
            # runs first, so stderr is flushed before.
            atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)
            atexit.register(sys.stderr.flush)
        raise


def _connect_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> bool:
    """Connect to the coordinator; return False without other processes."""
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    has_flags = (coordinator, num_processes, process_id) != (None, None, None)
    if coordinator:
        print(f"waiting for all processes at {coordinator}", file=sys.stderr)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            # The flags decide, not the scheduler, which would give this process a
            # single GPU.
            cluster_detection_method="deactivate" if has_flags else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, IndexError) as error:
        if not has_flags and "coordinator_address" in str(error):  # no scheduler
            return False
        raise InputError(
            f"the processes cannot meet ({error}); coordinator, HOST:PORT of process "
            "0, num_processes and process_id are needed together, or none of them "
            "under srun and mpirun"
        ) from error
    return True


def check_device_counts() -> None:
    """Raise InputError if processes have different device counts."""
    # Every process sees all devices, so nothing is exchanged: an exchange would need
    # equal counts.
    device_counts = collections.Counter(d.process_index for d in jax.devices())
    low_process = min(device_counts, key=lambda process: device_counts[process])
    high_process = max(device_counts, key=lambda process: device_counts[process])
    fewest = device_counts[low_process]
    most = device_counts[high_process]
    if fewest < most:
        raise InputError(
            f"the number of devices is {fewest} on process {low_process}, but {most} "
            f"on process {high_process}; all processes of a run need the same"
        )


def check_gpus() -> None:
    """Raise InputError if a host's processes leave GPUs unused."""
    # JAX gives a scheduler's task one GPU. The only task of a host would train on one
    # of eight GPUs, and only the clock would tell.
    host = socket.gethostname()
    num_tasks = parallel.exchange_values(host).count(host)
    num_used_gpus = num_tasks * jax.local_device_count()
    visible_setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible_gpus = glob.glob("/dev/nvidia[0-9]*")
    if visible_setting is not None:
        visible_gpus = [name for name in visible_setting.split(",") if name]
    with parallel.shared_errors():
        if jax.default_backend() == "gpu" and len(visible_gpus) > num_used_gpus:
            raise InputError(
                f"{host} has {len(visible_gpus)} GPUs, and its tasks use "
                f"{num_used_gpus}; start one task per GPU, or give num_processes=1 for "
                "one process with all GPUs"
            )


def check_same_settings(dry_run: bool, config: dict, model: ViT, data: RunData) -> None:
    """Raise InputError if the processes of a run disagree on their settings."""
    fields = flatten_fields(config)
    shared_fields = {f"config.{n}": fields[n] for n in fields if n not in HOST_FIELDS}
    names_checksum = zlib.crc32(json.dumps(data.train.class_names).encode())
    parallel.check_same_values(
        {
            "dry_run": dry_run,
            **shared_fields,
            # "auto" depends on the devices.
            "config.model.attention as resolved here": model.execution.attention_impl,
            "the count of training and validation images": data.image_counts,
            "the checksum of the names of the classes": names_checksum,
        }
    )


def check_same_start(step: int, arrays: PyTree) -> None:
    """Raise InputError if processes start at different steps or from unequal arrays."""
    checksum = 0
    if jax.process_count() > 1:
        for leaf in jax.tree.leaves(arrays):
            leaf_bytes = np.ascontiguousarray(leaf).view(np.uint8).data
            checksum = zlib.crc32(leaf_bytes, checksum)
    parallel.check_same_values(
        {"the step to resume from": step, "the checksum of the first weights": checksum}
    )


def is_process_loss(error: BaseException) -> bool:
    """Whether a JAX exception reports the loss of a process."""
    message = str(error).lower()
    return any(sign in message for sign in LOSS_SIGNS)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _end_after_loss(signum: int) -> None:
    """End now, without waiting: the run needs the lost process."""
    os.write(2, LOSS_MESSAGE.encode())
    os._exit(1)
