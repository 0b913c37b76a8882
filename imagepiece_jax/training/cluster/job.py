"""Join a run's processes, compare their settings, and stop them together."""

import collections
import contextlib
import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from imagepiece_jax.common import parallel, signals
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.training.cluster.run_dir import encode_fields
from imagepiece_jax.training.data import RunData

# Both short, so that all processes have stopped within a minute.
HEARTBEAT_SECONDS = 30  # without a heartbeat until a process counts as dead
SHUTDOWN_SECONDS = 15  # an ending process waits for the end of all processes
# Words in JAX, gloo and NCCL errors about a lost process.
LOSS_SIGNS = ("gloo", "nccl", "coordination", "barrier")
LOSS_SIGNS += ("connection", "socket", "deadline")
LOSS_MESSAGE = (
    "error: another process of this run has ended or cannot be reached; start all of "
    "them again with the same command to resume from the newest checkpoint"
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
    Raises InputError if the processes cannot meet, or have different device counts.
    """
    is_alone = num_processes == 1 and coordinator is None
    if is_alone or not _connect_processes(coordinator, num_processes, process_id):
        yield
        return
    try:
        check_device_counts()
        # CPU devices must connect within 30 seconds. They connect here, before a
        # process compiles.
        parallel.exchange_values(None)
        yield
        parallel.exchange_values("done")
    except Stopped:  # all processes raise it after the same step
        parallel.exchange_values("saved")
        raise
    except InputError:
        raise
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # JAX raises a ValueError if a process is lost during an exchange of values.
        if not any(sign in str(error).lower() for sign in LOSS_SIGNS):
            raise
        print(f"{error}\n{LOSS_MESSAGE}", file=sys.stderr, flush=True)
        os._exit(1)  # at once: JAX would wait for the lost process


def _connect_processes(coordinator, num_processes, process_id):
    """Connect to the coordinator; return False without other processes."""
    has_flags = (coordinator, num_processes, process_id) != (None, None, None)
    if coordinator:
        print(f"waiting for all processes at {coordinator}", file=sys.stderr)
    # JAX waits in C++ code, where Python's handler of Ctrl-C does not run. JAX itself
    # handles SIGTERM from here on (`stop_signals`).
    with signals.handled_signals(signal.SIG_DFL, [signal.SIGINT]):
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
                f"the processes cannot meet ({error}); give coordinator (HOST:PORT), "
                "num_processes and process_id, or none of them under srun and mpirun"
            ) from error
    return True


def check_device_counts() -> None:
    """Raise InputError if processes have different device counts."""
    # Nothing is exchanged: an exchange would need equal counts.
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        raise InputError(f"device counts differ by process: {sorted(counts.items())}")


def check_same_settings(dry_run: bool, config: dict, model: ViT, data: RunData) -> None:
    """Raise InputError if the processes of a run disagree on their settings."""
    fields = encode_fields(config)
    for name in HOST_FIELDS:
        del fields[name]
    class_names = json.dumps(data.train_source.class_names).encode()
    parallel.check_same_values(
        {
            "dry_run": dry_run,
            **{f"config.{name}": value for name, value in fields.items()},
            # "auto" depends on the devices.
            "config.model.attention as resolved here": model.execution.attention_impl,
            "the count of training images": len(data.train_source),
            "the count of validation images": len(data.val_source),
            "the checksum of the names of the classes": zlib.crc32(class_names),
        }
    )


def check_same_start(step: int, arrays: PyTree) -> None:
    """Raise InputError if processes start at different steps or from unequal arrays."""
    checksum = 0
    if jax.process_count() > 1:
        for leaf in jax.tree.leaves(arrays):
            # Contiguous arrays have an axis, which `view` needs: a number has none.
            leaf_bytes = np.ascontiguousarray(leaf).view(np.uint8).data
            checksum = zlib.crc32(leaf_bytes, checksum)
    parallel.check_same_values(
        {"the step to resume from": step, "the checksum of the first weights": checksum}
    )


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], int]]:
    """Yield a function from a step to the signal that stops the run after it, or 0.

    All processes call it after every step, and stop after the same step.
    """
    if jax.process_count() == 1:
        with signals.noted_signals() as received_signals:
            yield lambda step: received_signals[0] if received_signals else 0
        return

    # JAX handles SIGTERM itself, and tells the other processes.
    def raise_sigterm(signum, frame):
        signal.raise_signal(signal.SIGTERM)

    other_signals = {*signals.STOP_SIGNALS} - {signal.SIGTERM}
    with signals.handled_signals(raise_sigterm, other_signals):
        reaches_stop = multihost_utils.reached_preemption_sync_point
        yield lambda step: signal.SIGTERM if reaches_stop(step) else 0
