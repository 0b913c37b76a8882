"""Who takes part in a run, by flags or scheduler; joining; and the loss of a peer.

SLURM's variables as in the manual of srun ("OUTPUT ENVIRONMENT VARIABLES"), Open MPI's
as in its FAQ on running jobs.
"""

import os
import signal
import socket
import sys
import time
import types

import jax
import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.training.cluster import job as job_module
from imagepiece_jax.training.cluster.job import (
    FIRST_PORT,
    LOST,
    PORTS,
    Job,
    check_devices,
    find_job,
    is_loss,
    joined,
)
from tests import forked
from tests.command import start
from tests.refused import refused

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "2",
    "SLURM_LOCALID": "0",
    "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
HEAD = """\
import atexit, os, threading
from imagepiece_jax.training.cluster import job
"""


def run(script, **variables):
    """`script` in a process of its own, whose environment has these variables too."""
    return start("-c", HEAD + script, imported=True, **variables)


def scheduled(environment=SLURM, **variables):
    return find_job(environment=environment | variables)


def test_arguments_name_the_job():
    assert find_job(environment={}) is None
    with joined(None):
        assert not jax.distributed.is_initialized()
    job = find_job("gpu1:1234", 3, 2, environment={})
    assert job == Job("gpu1:1234", 3, 2)
    assert find_job("gpu1:1234", 3, 2, environment=SLURM) == job


def test_slurm_gives_number_count_and_port():
    job = scheduled()
    assert (job.coordinator, job.num_processes, job.process_id) == (None, 4, 2)
    assert FIRST_PORT <= job.port < FIRST_PORT + PORTS <= 65536
    assert job.local_devices == ()
    assert find_job("auto", environment=SLURM) == job
    assert find_job("gpu1:9", environment=SLURM).coordinator == "gpu1:9"
    # The other tasks of the step meet at the same port, those of another step do not.
    assert scheduled(SLURM_PROCID="0", SLURM_NODEID="0").port == job.port
    assert scheduled(SLURM_STEP_ID="1").port != job.port
    assert scheduled(SLURM_STEP_NUM_TASKS="1") is None
    script = {k: v for k, v in SLURM.items() if "STEP" not in k} | {"SLURM_NTASKS": "4"}
    assert find_job(environment=script) is None
    shell = SLURM | {"SLURM_STEP_NUM_TASKS": "1"}  # interactive, in a job of four tasks
    assert find_job(environment=shell) is None
    assert find_job(num_processes=1, environment=SLURM) is None


@pytest.mark.parametrize(
    "tasks, number, visible, mine",
    [
        ("8(x4)", "5", "0,1,2,3,4,5,6,7", (5,)),
        ("2,4(x2),1", "1", "0,1,2,3,4,5,6,7", (2, 3)),  # node 2 has four tasks
        ("8(x4)", "5", None, (5,)),
        ("8(x4)", "5", "0", ()),  # bound by SLURM: each sees only its own
        ("1(x4)", "0", None, ()),
    ],
)
def test_gpus_are_shared_by_the_tasks_of_a_host(tasks, number, visible, mine):
    environment = SLURM | {"SLURM_LOCALID": number, "SLURM_STEP_TASKS_PER_NODE": tasks}
    environment["CUDA_VISIBLE_DEVICES"] = visible
    found = {name: value for name, value in environment.items() if value is not None}
    assert find_job(environment=found).local_devices == mine


def test_open_mpi_gives_number_and_count():
    job = scheduled(OPEN_MPI)
    assert (job.coordinator, job.num_processes, job.process_id) == (None, 2, 1)
    assert job.local_devices == ()
    assert scheduled(SLURM | OPEN_MPI) == job  # mpirun inside of a SLURM job
    assert scheduled(OPEN_MPI, OMPI_COMM_WORLD_SIZE="1") is None
    here = scheduled(OPEN_MPI, OMPI_COMM_WORLD_LOCAL_SIZE="2")
    assert here.coordinator == f"127.0.0.1:{here.port}"


def test_open_mpi_5_needs_an_address_on_several_hosts():
    """JAX finds none, or asks for mpi4py; the sentence comes before any waiting."""
    version_5 = {k: v for k, v in OPEN_MPI.items() if "MCA" not in k}
    version_5["PMIX_NAMESPACE"] = "prterun-gpu1-1234@1"
    job = find_job("gpu1:9", environment=version_5)
    assert (job.coordinator, job.num_processes, job.process_id) == ("gpu1:9", 2, 1)
    done = run(
        "try:\n    with job.joined(job.find_job()): pass\n"
        "except job.InputError as error: print(error)",
        **version_5,
    )
    assert done.out.startswith("process 0 of 2 is not found (")
    assert "coordinator is HOST:PORT of process 0, or num_processes=1" in done.out


@pytest.mark.parametrize(
    "arguments, name, value",
    [
        ((None, 2, 0), "coordinator", None),
        (("auto", 2, 0), "coordinator", "auto"),
        (("gpu1", 2, 0), "coordinator", "gpu1"),
        (("host:1", None, None), "process_id", None),
        (("host:1", 2, 2), "process_id", 2),
    ],
)
def test_arguments_that_do_not_fit_together_are_named(arguments, name, value):
    with refused(name):
        find_job(*arguments, environment={})


@pytest.mark.parametrize("mine, visible", [((), "all"), ((4, 5), "4,5")])
def test_jax_finds_the_host_and_takes_the_rest_from_the_job(mine, visible):
    """A job of one process that meets itself: its number, its GPUs and its port."""
    job = f"job.Job(None, 1, 0, {mine}, {forked.free_port()})"
    done = run(
        f"import jax\nwith job.joined({job}):\n"
        "  print(jax.process_count(), jax.config.read('jax_cuda_visible_devices'))",
        **SLURM | {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_LOCALID": "3"},
    )
    assert done.out.split() == ["1", visible], done.err


def test_unequal_devices_are_refused():
    devices = [types.SimpleNamespace(process_index=i) for i in (0, 0, 1, 1, 2)]
    check_devices(devices[:4])
    message = "process 2 has 1 devices, but process 0 has 2"
    with pytest.raises(InputError, match=message):
        check_devices(devices)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_waits_for_the_others_ends_at_a_signal(process, signum):
    """JAX waits in C++, where Python's own handlers do not run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    job = f"job.Job({address!r}, 2, {process})"
    reader, writer = map(open, os.pipe(), "rw")
    with reader:
        with writer:
            waiting = forked.Process(
                [sys.executable, "-c", f"{HEAD}with job.joined({job}): pass"],
                env=os.environ | {"JAX_PLATFORMS": "cpu"},
                stderr=writer,
            )
        try:
            assert "waiting for the others" in reader.readline()
            time.sleep(1)  # until it does
            waiting.send_signal(signum)
            status = waiting.wait(timeout=20)
        finally:
            waiting.kill()
        err = reader.read()
    assert status == 128 + signum
    assert err.startswith("stopped with nothing to save; the same command")
    assert err.count("\n") == 1


def test_an_abort_in_a_thread_ends_with_the_sentence():
    done = run(
        "job.end_at_abort('error: gone')\n"
        "print('begin', flush=True)\n"
        "thread = threading.Thread(target=os.abort); thread.start(); thread.join()"
    )
    assert done == (LOST, "begin\n", "error: gone\n")


def test_a_process_that_fails_reports_only_its_own_error():
    """What is registered first runs last: JAX, which aborts when others are lost."""
    done = run(
        "atexit.register(os.abort)\n"
        "atexit.register(os.write, 2, b'a long report')\n"
        "job.end_at_abort('error: gone')\n"
        "job.leave_quietly()\n"
        "raise SystemExit('error: disk is full')"
    )
    assert (done.status, done.err) == (LOST, "error: disk is full\n")


@pytest.mark.parametrize(
    "message, lost",
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer", True),
        ("INTERNAL: NCCL operation ncclAllReduce failed: remote error", True),
        ("DEADLINE_EXCEEDED: Barrier timed out", True),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes", False),
        ("INVALID_ARGUMENT: shapes do not match", False),
    ],
)
def test_the_loss_of_a_process_is_distinguished_from_other_errors(message, lost):
    assert is_loss(RuntimeError(message)) == lost


def test_a_loss_in_an_exchange_ends_with_the_sentence(monkeypatch):
    """JAX raises a ValueError there, which an InputError is, too."""
    for name in ("_initialize", "check_devices", "_connect_devices"):
        monkeypatch.setattr(job_module, name, lambda *_: None)
    for name in ("end_at_abort", "leave_quietly"):
        monkeypatch.setattr(job_module, name, lambda *_: None)
    said = []
    monkeypatch.setattr(job_module, "_end", said.append)
    job = Job("host:1", num_processes=2, process_id=1)
    with pytest.raises(InputError), joined(job):
        raise InputError("no connection")
    assert said == []
    with pytest.raises(ValueError, match="Gloo"), joined(job):
        raise ValueError("UNKNOWN: Gloo AllGather failed")
    (text,) = said
    assert "error: process 1 of 2 stops: another one has ended" in text
