"""Flags and schedulers say who takes part; the environments are what they really set.

SLURM's variables as in the manual of srun ("OUTPUT ENVIRONMENT VARIABLES"), Open MPI's
as in its FAQ on running jobs.
"""

import pytest

from imagepiece_jax.errors import InputError
from imagepiece_jax.training.distributed import FIRST_PORT, PORTS, Job, find

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-09,12],login",
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


def scheduled(environment=SLURM, **variables):
    return find(environment=environment | variables)


def test_alone_without_flags_or_scheduler():
    assert find(environment={}) is None


def test_flags_name_the_job():
    job = find("gpu1:1234", 3, 2, environment={})
    assert job == Job("gpu1:1234", 3, 2, None)
    assert find("gpu1:1234", 3, 2, environment=SLURM) == job


def test_slurm_gives_address_number_and_count():
    job = scheduled()
    host, port = job.coordinator.split(":")
    assert (host, job.num_processes, job.process_id) == ("gpu07", 4, 2)
    assert FIRST_PORT <= int(port) < FIRST_PORT + PORTS <= 65536
    assert job.local_devices is None
    assert find("auto", environment=SLURM) == job
    # The other tasks of the step meet at the same place, those of another job do not.
    assert scheduled(SLURM_PROCID="0", SLURM_NODEID="0").coordinator == job.coordinator
    assert scheduled(SLURM_JOB_ID="4712").coordinator != job.coordinator


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[3,5-8]", "gpu3"),
        ("r[1-2]n[04-09]x", "r1n04x"),
    ],
)
def test_first_node_of_slurms_list(nodes, first):
    assert scheduled(SLURM_STEP_NODELIST=nodes).coordinator.split(":")[0] == first


def test_a_task_alone_and_a_batch_script_are_single_processes():
    assert scheduled(SLURM_STEP_NUM_TASKS="1") is None
    script = {k: v for k, v in SLURM.items() if "STEP" not in k} | {"SLURM_NTASKS": "4"}
    assert find(environment=script) is None
    assert find(num_processes=1, environment=SLURM) is None


@pytest.mark.parametrize(
    "tasks, number, visible, mine",
    [
        ("8(x4)", "5", "0,1,2,3,4,5,6,7", (5,)),
        ("2,4(x2),1", "1", "0,1,2,3,4,5,6,7", (2, 3)),  # node 2 has four tasks
        ("8(x4)", "5", None, (5,)),
        ("8(x4)", "5", "0", None),  # bound by SLURM: each sees only its own
        ("1(x4)", "0", None, None),
    ],
)
def test_gpus_are_shared_by_the_tasks_of_a_host(tasks, number, visible, mine):
    environment = SLURM | {"SLURM_LOCALID": number, "SLURM_STEP_TASKS_PER_NODE": tasks}
    del environment["CUDA_VISIBLE_DEVICES"]
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    assert find(environment=environment).local_devices == mine


def test_open_mpi_gives_address_number_and_count():
    job = scheduled(OPEN_MPI)
    assert job.coordinator.split(":")[0] == "10.96.0.1"
    assert (job.num_processes, job.process_id, job.local_devices) == (2, 1, None)
    assert scheduled(SLURM | OPEN_MPI) == job  # mpirun inside of a SLURM job
    assert scheduled(OPEN_MPI, OMPI_COMM_WORLD_SIZE="1") is None
    here = scheduled(OPEN_MPI, OMPI_COMM_WORLD_LOCAL_SIZE="2")
    assert here.coordinator.split(":")[0] == "127.0.0.1"


def test_open_mpi_5_needs_an_address_on_several_hosts():
    version_5 = {k: v for k, v in OPEN_MPI.items() if "MCA" not in k}
    version_5["PMIX_NAMESPACE"] = "prterun-gpu1-1234@1"
    with pytest.raises(InputError, match="Open MPI started 2 processes on several"):
        find(environment=version_5)
    assert find("gpu1:9", environment=version_5) == Job("gpu1:9", 2, 1)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((None, 2, 0), "--coordinator is missing although --num_processes is 2"),
        (("auto", 2, 0), "--coordinator is missing although --num_processes is 2"),
        (("auto", None, None), "neither SLURM nor Open MPI is found here"),
        (("gpu1", 2, 0), "--coordinator is gpu1: allowed are HOST:PORT"),
        (("gpu1:99999", 2, 0), "--coordinator is gpu1:99999: allowed are HOST:PORT"),
        (("host:1", None, None), "needs --num_processes, found None"),
        (("host:1", 2, 2), "process_id from 0 to num_processes - 1, found 2"),
        (("host:1", 2, None), "process_id from 0 .*, found None"),
    ],
)
def test_what_does_not_fit_together_is_named(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        find(*arguments, environment={})
