"""Training of a model by a config, with its evaluations and checkpoints.

python train.py --config configs/deit_s_imagepiece.py

Any field of the config can be changed: --config.batch_size=256. The same command
resumes a run that was stopped.
"""

import pathlib

from imagepiece_jax import old_cli as cli
from imagepiece_jax.errors import InputError, flags_of

cli.define_config()
WORKDIR = cli.text(
    "workdir", None, "folder of the run; default: runs/NAME for configs/NAME.py"
)
DRY_RUN = cli.switch(
    "dry_run",
    False,
    "compile the training step, print plan, cost and memory, and stop: minutes on CPUs",
)
COORDINATOR = cli.text(
    "coordinator",
    None,
    "several hosts: HOST:PORT of process 0; not needed under SLURM and Open MPI",
)
NUM_PROCESSES = cli.integer("num_processes", None, "number of hosts; 1: only this one")
PROCESS_ID = cli.integer("process_id", None, "number of this host, from 0")
FLAGS = flags_of("workdir", "dry_run", "coordinator", "num_processes", "process_id")


def main():
    name, config = cli.run_config()
    # It imports JAX, which --help and a mistyped flag need not wait for.
    from imagepiece_jax.training import trainer
    from imagepiece_jax.training.cluster.job import find_job, joined

    workdir = WORKDIR.value or pathlib.Path("runs") / name
    try:
        job = find_job(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
        with joined(job):
            trainer.train_and_evaluate(config, workdir, DRY_RUN.value)
    except InputError as error:
        if error.place == str(workdir):
            error = error.with_facts(place=f"--workdir {workdir}")
        raise error.renamed(FLAGS) from error


if __name__ == "__main__":
    cli.run(main)
