"""Who takes part in this run? What the flags say, else SLURM or Open MPI.

Reads flags and environment only; `parallel.joined` acts on the answer. A process is one
task of the scheduler: usually one for each host, with all of its GPUs.
"""

import dataclasses
import os
import re
import zlib

from imagepiece_jax.errors import InputError

# The coordinator's port is drawn from these: above what Linux gives out by itself.
FIRST_PORT, PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True)
class Job:
    """The processes of one run, and which of them this one is."""

    coordinator: str  # "host:port" of process 0
    num_processes: int
    process_id: int  # 0 .. num_processes - 1
    local_devices: tuple[int, ...] | None = None  # GPUs of this process; None: all


@dataclasses.dataclass(frozen=True)
class _Tasks:
    """What a scheduler says of the tasks that it started together."""

    scheduler: str
    count: int
    number: int
    count_here: int  # on this host
    number_here: int
    coordinator: str | None  # None: it does not say


def find(coordinator=None, num_processes=None, process_id=None, environment=os.environ):
    """The `Job` that this process belongs to, or None where it is alone.

    `coordinator` "host:port" is that of process 0; how many processes there are and
    which one this is comes from SLURM or Open MPI where it is not given. None or
    "auto": they say everything; "auto" without them is a mistake. `num_processes` 1:
    alone, whatever they say. InputError for what does not fit together.
    """
    if num_processes == 1 and coordinator is None and process_id in (None, 0):
        return None
    tasks = _open_mpi(environment) or _slurm(environment)
    given = coordinator not in (None, "auto")
    if not given and (num_processes is not None or process_id is not None):
        raise InputError(
            f"--coordinator is missing although --num_processes is {num_processes} and "
            f"--process_id {process_id}: give HOST:PORT of process 0"
        )
    host, _, port = (coordinator or "").rpartition(":")
    if given and not (host and re.fullmatch("[0-9]{1,5}", port) and int(port) < 2**16):
        raise InputError(
            f"--coordinator is {coordinator}: allowed are HOST:PORT of process 0, and "
            "auto under SLURM and Open MPI"
        )
    if num_processes is None and process_id is None and tasks is not None:
        return _scheduled(tasks, coordinator if given else None, environment)
    if coordinator == "auto":
        raise InputError(
            "--coordinator is auto, but neither SLURM nor Open MPI is found here: "
            "give HOST:PORT of process 0, --num_processes and --process_id"
        )
    if coordinator is None:
        return None
    if num_processes is None or process_id not in range(num_processes):
        raise InputError(
            f"--coordinator {coordinator} needs --num_processes, found "
            f"{num_processes}, and a --process_id from 0 to num_processes - 1, found "
            f"{process_id}"
        )
    return Job(coordinator, num_processes, process_id)


def _scheduled(tasks, coordinator, environment):
    """The Job of a scheduler's tasks, at `coordinator` where that was given."""
    if tasks.count == 1:
        return None
    coordinator = coordinator or tasks.coordinator
    if coordinator is None:
        raise InputError(
            f"{tasks.scheduler} started {tasks.count} processes on several hosts, but "
            "does not say where process 0 is: give --coordinator HOST:PORT, or "
            "--num_processes 1 if each of them is a run of its own"
        )
    devices = _share_of_devices(tasks, environment.get("CUDA_VISIBLE_DEVICES"))
    return Job(coordinator, tasks.count, tasks.number, devices)


def _share_of_devices(tasks, visible):
    """Which of the GPUs that this task sees are its own; None: all of them.

    `visible` is CUDA_VISIBLE_DEVICES. Several tasks on a host get equal shares of the
    GPUs listed there, or one each; a list too short for that has been dealt out by the
    scheduler.
    """
    if tasks.count_here == 1:
        return None
    if visible is None:
        return (tasks.number_here,)
    share = len(visible.split(",")) // tasks.count_here
    if share == 0:
        return None
    return tuple(range(tasks.number_here * share, (tasks.number_here + 1) * share))


def _slurm(environment):
    """The tasks of this `srun`, or None outside of one.

    A batch script and an interactive shell know how many tasks their job may start, but
    are none of them: only what `srun` starts has the variables of a step.
    """
    if "SLURM_STEP_NUM_TASKS" not in environment or "SLURM_PROCID" not in environment:
        return None
    per_node = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, _, times = part.rstrip(")").partition("(x")  # "2(x3),1": 2 2 2 1
        per_node += [int(count)] * int(times or 1)
    node = int(environment.get("SLURM_NODEID", 0))
    job = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    nodes = environment.get("SLURM_STEP_NODELIST")
    return _Tasks(
        scheduler="SLURM",
        count=int(environment["SLURM_STEP_NUM_TASKS"]),
        number=int(environment["SLURM_PROCID"]),
        count_here=per_node[min(node, len(per_node) - 1)],
        number_here=int(environment.get("SLURM_LOCALID", 0)),
        coordinator=f"{_first_node(nodes)}:{_port(job)}" if nodes else None,
    )


def _first_node(nodes):
    """ "gpu[07-09,12],login" -> "gpu07"."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes).group()
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def _open_mpi(environment):
    """The processes of this `mpirun`, or None outside of one.

    Where they are on one host they meet there. Else version 4 gives the address of
    mpirun itself, which usually runs beside process 0; version 5 gives none.
    """
    if "OMPI_COMM_WORLD_SIZE" not in environment:
        return None
    count = int(environment["OMPI_COMM_WORLD_SIZE"])
    count_here = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    found = re.search(r"tcp://([^,:]+)", uri)
    host = "127.0.0.1" if count_here == count else found and found.group(1)
    port = _port(environment.get("PMIX_NAMESPACE", uri.split(";")[0]))
    return _Tasks(
        scheduler="Open MPI",
        count=count,
        number=int(environment["OMPI_COMM_WORLD_RANK"]),
        count_here=count_here,
        number_here=int(environment.get("OMPI_COMM_WORLD_LOCAL_RANK", 0)),
        coordinator=f"{host}:{port}" if host else None,
    )


def _port(name):
    """The same port for every process of a job, seldom that of another job."""
    return FIRST_PORT + zlib.crc32(name.encode()) % PORTS
