"""Joining the processes of a run, the facts they must agree on, and the loss of one.

The project's only mention of `jax.distributed`. A process is one task of SLURM or Open
MPI, usually one for each host with all of its GPUs. JAX finds the coordinator's host in
the scheduler's variables; its detection (0.10.2 and 0.12.0.1 asked) does not decide the
rest, for these reasons, and tests/training/test_job.py has a test of each:

- Number and count of tasks are those of the `srun` step. JAX takes the job's count, and
  an interactive shell in a job of four tasks waits for three that nobody started
  (test_slurm_gives_number_count_and_port); under Open MPI 5 within SLURM, JAX 0.10
  takes SLURM's numbers, and 0.12 asks for mpi4py (test_open_mpi_gives_number_and_count,
  test_open_mpi_5_needs_an_address_on_several_hosts).
- Tasks get equal shares of a host's GPUs. JAX gives every task one: the only task of a
  host would use one GPU of eight, and a task that SLURM has bound to one finds none
  (test_gpus_are_shared_by_the_tasks_of_a_host).
- The port follows from the step. JAX's follows from the job, and two steps of one job
  on one host would open the same (test_slurm_gives_number_count_and_port).
- A single process joins nothing (the same test): JAX would give it one GPU of eight.

When a process dies, the coordinator's connections close, heartbeats stay away, or an
exchange between devices fails. JAX then aborts the others with a long report, or raises
an exception. Here both end in one sentence, within a minute.
"""

import atexit
import collections
import contextlib
import ctypes
import dataclasses
import json
import os
import re
import signal
import sys
import zlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from imagepiece_jax.common import parallel
from imagepiece_jax.errors import InputError, Stopped
from imagepiece_jax.training.cluster.preemption import StopRequest
from imagepiece_jax.training.cluster.run_dir import flat_fields

# The coordinator's port is one of these: above what Linux assigns by itself.
FIRST_PORT = 61440
PORTS = 4096
# Seconds without a heartbeat until a process counts as dead, and that a process which
# ends waits for the others to end too: all have stopped within a minute.
MAX_PORT = 2**16 - 1
HEARTBEAT = 30
SHUTDOWN = 15
LOST = 1  # exit status of a process that cannot continue without another
# Words of JAX, gloo and NCCL for the loss of a peer.
SIGNS = ("gloo", "nccl", "coordination", "barrier", "connection", "socket")

# Fields that say how one host reads, and may differ from host to host.
OF_ONE_HOST = ("data.dir", "data.workers", "data.threads")

ADDRESS = "HOST:PORT of process 0"

_handlers = []  # C code calls them: they must not be freed


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes of one run, and which of them this one is."""

    coordinator: str | None  # "host:port" of process 0; None: found by JAX
    num_processes: int
    process_id: int  # 0 .. num_processes - 1
    local_devices: tuple[int, ...] = ()  # GPUs of this process; empty: all it sees
    port: int | None = None  # where the coordinator's host is found by JAX

    @property
    def address(self):
        """The meeting place of the processes, for a sentence."""
        return self.coordinator or f"port {self.port} of the first host"


def find_job(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment=os.environ,
) -> Job | None:
    """The `Job` of this process, from arguments and environment; None: the only one.

    coordinator: "host:port" of process 0; None or "auto": from SLURM or Open MPI, which
        also give the two numbers where they are None
    num_processes: 1: a run of this process alone, even under a scheduler. Any other
        number needs `coordinator`
    Raises InputError for arguments that contradict each other.
    """
    if num_processes == 1 and coordinator is None and process_id in (None, 0):
        return None
    named = coordinator not in (None, "auto")
    numbers = {"num_processes": num_processes, "process_id": process_id}
    typed = [f"{name}={n}" for name, n in numbers.items() if n is not None]
    if typed and not named:
        raise InputError(
            f"coordinator is {coordinator}; with {' and '.join(typed)} it must be "
            f"{ADDRESS}"
        )
    # JAX would wait for a port that there is not.
    port = re.fullmatch(".+:([0-9]+)", coordinator) if named else None
    if named and (port is None or int(port[1]) > MAX_PORT):
        raise InputError(
            f"coordinator is {coordinator!r}; it must be {ADDRESS}, or auto under "
            "SLURM and Open MPI"
        )
    if not typed:
        job = _open_mpi(environment) or _slurm(environment)
        if job is not None:
            if named:
                job = dataclasses.replace(job, coordinator=coordinator)
            return job if job.num_processes > 1 else None
    if coordinator == "auto":
        raise InputError(
            "coordinator is auto, but neither SLURM nor Open MPI is found; it must be "
            f"{ADDRESS}, with num_processes and process_id"
        )
    if coordinator is None:
        return None
    if num_processes is None or process_id not in range(num_processes):
        raise InputError(
            f"process_id is {process_id} and num_processes is {num_processes}; with a "
            "coordinator both are needed, the first below the second"
        )
    return Job(coordinator, num_processes, process_id)


def _job(environment, count, number, count_here, number_here, step, host=None):
    """The `Job` of task `number` of `count`, which a scheduler started together.

    Without a list of visible GPUs every task of a host has one. A list with fewer GPUs
    than the host has tasks was split by the scheduler. The port follows from `step`.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    devices = ()
    if count_here > 1 and visible is None:
        devices = (number_here,)
    elif count_here > 1:
        share = len(visible.split(",")) // count_here
        devices = tuple(range(number_here * share, (number_here + 1) * share))
    port = FIRST_PORT + zlib.crc32(step.encode()) % PORTS
    return Job(host and f"{host}:{port}", count, number, devices, port)


def _slurm(environment):
    """The `Job` of this `srun`, or None outside one.

    A batch script and an interactive shell have variables of the job, but only what
    `srun` starts has those of a step.
    """
    if "SLURM_STEP_NUM_TASKS" not in environment or "SLURM_PROCID" not in environment:
        return None
    per_node = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.rstrip(")").partition("(x")  # "2(x3),1": 2 2 2 1
        per_node += [int(count)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    return _job(
        environment,
        count=int(environment["SLURM_STEP_NUM_TASKS"]),
        number=int(environment["SLURM_PROCID"]),
        count_here=per_node[min(node, len(per_node) - 1)],
        number_here=int(environment.get("SLURM_LOCALID", 0)),
        step=f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}",
    )


def _open_mpi(environment):
    """The `Job` of this `mpirun`, or None outside one.

    Processes of a single host meet at 127.0.0.1, because Open MPI 5 does not say where
    process 0 is.
    """
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    count = int(environment["OMPI_COMM_WORLD_SIZE"])
    count_here = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")  # of version 4
    return _job(
        environment,
        count=count,
        number=int(environment["OMPI_COMM_WORLD_RANK"]),
        count_here=count_here,
        number_here=int(environment.get("OMPI_COMM_WORLD_LOCAL_RANK", 0)),
        step=environment.get("PMIX_NAMESPACE", uri.split(";")[0]),
        host="127.0.0.1" if count_here == count else None,
    )


@contextlib.contextmanager
def joined(job: Job | None):
    """While entered, this process is one of those of `job`.

    Enter it before anything else uses JAX. A process that can no longer reach the
    others ends with one sentence and status 1; at Ctrl-C and SIGTERM it ends at once,
    unless they are caught inside. An exception that leaves this block ends the others
    in the same way.

    job: None for a single process: nothing happens
    Raises InputError where the processes cannot meet or have unequal numbers of
        devices.
    """
    if job is None:
        yield
        return
    lost = (
        f"error: process {job.process_id} of {job.num_processes} stops: another one "
        f"has ended or cannot be reached at {job.address}; start all of them again "
        "with the same command to resume from the newest checkpoint, if there is one"
    )
    where = f"process {job.process_id} of {job.num_processes}: waiting for the others"
    end_at_abort(lost)
    # Waiting is C++ code, in which Python's own handlers do not run
    # (test_a_process_that_waits_for_the_others_ends_at_a_signal). Training has a
    # request of its own, which saves.
    with StopRequest() as request, request.ending_at_once():
        print(f"{where} at {job.address}, for up to 5 minutes", file=sys.stderr)
        _initialize(job)
        try:
            check_devices(jax.devices())
            _connect_devices()
            yield
            _wait_for_all()
        except Stopped:  # raised by all of them at the same step
            _wait_for_all()
            raise
        except (jax.errors.JaxRuntimeError, ValueError) as error:
            # JAX reports the loss in an exchange of values by a ValueError.
            if not isinstance(error, InputError) and is_loss(error):
                _end(f"{error}\n{lost}")
            leave_quietly()
            raise
        except BaseException:
            leave_quietly()
            raise


def _initialize(job):
    """Connect to the coordinator, whose host JAX finds where `job` names none."""
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM
    if job.coordinator is None:
        os.environ["JAX_COORDINATOR_PORT"] = str(job.port)
    try:
        jax.distributed.initialize(
            job.coordinator,
            job.num_processes,
            job.process_id,
            local_device_ids=job.local_devices,  # empty: JAX chooses none and sees all
            cluster_detection_method="deactivate" if job.coordinator else None,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=SHUTDOWN,
        )
    except jax.errors.JaxRuntimeError:
        raise
    except (ValueError, RuntimeError) as error:  # no detection: it connected to nobody
        raise InputError(
            f"process 0 of {job.num_processes} is not found ({error}); coordinator is "
            f"{ADDRESS}, or num_processes=1 makes a run of each process"
        ) from error


def check_devices(devices):
    """Raise InputError where processes have unequal numbers of `devices`."""
    counts = collections.Counter(device.process_index for device in devices)
    for process, count in counts.items():
        if count != counts[0]:
            raise InputError(
                f"process {process} has {count} devices, but process 0 has {counts[0]}"
            )


def check_same_settings(dry_run: bool, config: dict, model, data):
    """Raise InputError where the processes of a run disagree on their settings.

    config: nested dict of JSON values, of which `OF_ONE_HOST` may differ
    model: whose attention depends on the devices where it is "auto"
    """
    fields = flat_fields(config)
    names = json.dumps(data.train.class_names)
    parallel.check_same(
        {
            "dry_run": dry_run,
            **{f"config.{n}": fields[n] for n in fields if n not in OF_ONE_HOST},
            "config.model.attention as resolved here": model.execution.backend,
            "the count of training and test images": data.image_counts,
            "the checksum of the names of the classes": zlib.crc32(names.encode()),
        }
    )


def check_same_start(step: int, arrays):
    """Raise InputError where processes start at other steps, or from other arrays."""
    checksum = 0
    if jax.process_count() > 1:
        for leaf in jax.tree.leaves(arrays):
            content = np.ascontiguousarray(leaf).view(np.uint8).data
            checksum = zlib.crc32(content, checksum)
    parallel.check_same(
        {"the step to resume from": step, "the checksum of the first weights": checksum}
    )


def _connect_devices():
    """Make the first exchange now, while no process is busy compiling.

    It connects all devices, and on CPUs gives up after 30 seconds.
    """
    _wait_for_all()
    highest = parallel.max_over_processes()
    for _ in range(2):  # the second call waits for the first one's answer
        highest(0)


def _wait_for_all():
    multihost_utils.sync_global_devices("all processes")


def end_at_abort(text):
    """From now on an abort of this process ends with `text` on stderr and status 1.

    JAX aborts from a C++ thread, where Python's signal handlers do not run: the C
    library gets this one (test_an_abort_in_a_thread_ends_with_the_sentence, and the
    lost process of `tools.drill`).
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda signum: _end(text))
    _handlers.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))


def leave_quietly():
    """Let this process report its own error and nothing after it.

    While it ends, the others are stopped, and JAX reports on them at length
    (test_a_process_that_fails_reports_only_its_own_error).
    """
    end_at_abort("")
    # atexit calls the last registered function first, and JAX's own after both.
    atexit.register(os.dup2, os.open(os.devnull, os.O_WRONLY), 2)
    atexit.register(sys.stderr.flush)


def _end(text):
    """Print `text` and end now, waiting for nobody."""
    if text:
        os.write(2, f"{text}\n".encode())
    os._exit(LOST)


def is_loss(error):
    """Whether an exception of JAX reports that another process cannot be reached."""
    text = str(error).lower()
    return any(sign in text for sign in SIGNS)
