"""Runs of train.py that are small enough for a test, here or in new processes."""

import dataclasses
import os
import pathlib
import uuid

import numpy as np
from flax import traverse_util

from configs import quickstart
from imagepiece_jax.common import checkpoints, parallel
from imagepiece_jax.common.files import read_json_lines
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.recovery import recovery_step
from imagepiece_jax.training import trainer
from imagepiece_jax.training.config import InitConfig, RunConfig
from imagepiece_jax.training.logging import CLOCKED_METRICS, METRICS_FILE
from tests.helpers import compiling, forked_processes

ROOT = forked_processes.ROOT

# A quickstart that takes seconds: two narrow blocks, few images a step.
SMALL = {
    "model.depth": 2,
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "reduction": "imagepiece:merge_blocks=(0,):prune_blocks=(1,)",
    "warmup_epochs": 1.0,
    "batch_size": 32,
    "eval_batch_size": 120,
    "log_every_steps": 1,
    "progress": False,
}
# Without reduction a quarter of the patches will do.
DENSE = SMALL | {
    "model.patch_size": 4,
    "reduction": "imagepiece:merge_blocks=():prune_blocks=()",
}


def quickstart_config(*groups, **fields):
    """The quickstart's config with changed fields; `fields` win over `groups`."""
    config = quickstart.get_config()
    for group in (*groups, fields):
        config.update_from_flattened_dict(group)
    return config


def train(config, workdir, **options):
    """Train by a ConfigDict, with options of `trainer.train_and_evaluate`."""
    run = RunConfig.from_config(config)
    return trainer.train_and_evaluate(run, workdir, **options)


def lines(workdir, kind):
    return [line for line in read_metrics(workdir) if line["kind"] == kind]


def read_metrics(workdir):
    return read_json_lines(pathlib.Path(workdir, METRICS_FILE))


def unclocked_lines(workdir):
    lines = read_metrics(workdir)
    for line in lines:
        for name in CLOCKED_METRICS:
            line.pop(name, None)
    return lines


def arrays(workdir, kind):
    """Arrays of the newest undamaged "latest" or "best" checkpoint, as nested dicts."""
    folder = pathlib.Path(workdir, "checkpoints", kind)
    arrays, _, _ = checkpoints.read_newest_step(folder, lambda stored: stored)
    return arrays


def draw_untrained(model, seed, parts=None):
    """Like `draw_variables`, but NumPy draws, so nothing is compiled."""
    rng = np.random.default_rng(seed)
    leaves = traverse_util.flatten_dict(variable_shapes(model))
    for path, leaf in sorted(leaves.items()):
        is_one = path[-1] in ("scale", "var")
        spread = 0.0 if is_one or path[-1] in ("bias", "mean") else 0.02
        leaves[path] = rng.normal(float(is_one), spread, leaf.shape).astype(leaf.dtype)
    if parts is not None:  # path[0] is the collection
        leaves = {path: leaf for path, leaf in leaves.items() if path[1] in parts}
    return traverse_util.unflatten_dict(leaves)


def compile_once(patch):
    """Let runs of one config in this process compile once, a resumed run included."""
    steps = {}
    compiled = trainer.Run.compile_step

    def step(run, epoch):
        setup = run.setup
        programs = setup.config.create_train_model(epoch), setup.loss.__qualname__
        options = dataclasses.replace(setup.config, init=InitConfig())
        key = repr((options, setup.data.length, programs, run.teacher))
        if key not in steps:
            steps[key] = compiled(run, epoch)
        return steps[key]

    patch.setattr(trainer.Run, "compile_step", step)


def compile_recoveries_once(patch):
    """Let recoveries of one model in this process compile once, for any steps."""
    programs = {}
    pmap = parallel.pmap

    def compiled(fn, **options):
        owner = getattr(fn, "__self__", None)
        if type(owner) is recovery_step.StudentFit:
            key = owner.model, dataclasses.replace(owner.recipe, steps=1)
            dense = owner.student.with_reduction(None).model
        elif type(owner) is recovery_step.DenseTeacher:
            key = ()
            dense = owner.model
        else:
            return pmap(fn, **options)
        key += options["program_name"], dense, owner.comparison.output_kind
        if key not in programs:
            programs[key] = pmap(fn, **options)
        return programs[key]

    patch.setattr(parallel, "pmap", compiled)


def environment(devices=1):
    """A run's environment: CPU devices, and the tests' compiled programs."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {count}",
        "JAX_COMPILATION_CACHE_DIR": str(compiling.PROGRAMS),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(workdir, fields, devices=1, log="", **variables):
    """Start a run of the quickstart's config with changed fields.

    log: its output goes to WORKDIR.log, or to WORKDIR.LOG.log
    variables: added to its environment
    """
    words = ["train.py", "--config=configs/quickstart.py"]
    words += [f"--config.{name}={value}" for name, value in fields.items()]
    words.append(f"--workdir={workdir}")
    env = environment(devices) | variables
    name = ".".join(filter(None, (str(workdir), log, "log")))
    with open(name, "a", encoding="utf-8") as out:
        return forked_processes.fork(words, env=env, stdout=out, stderr=out)


def start_two(workdir, fields, **second_fields):
    """Start two processes of one run, with two devices each, like SLURM's srun.

    Their outputs go to WORKDIR.0.log and WORKDIR.1.log. `second_fields` are fields of
    the second process alone.
    """
    job = {"SLURM_JOB_ID": str(uuid.uuid4().int)}  # chooses the port
    job |= {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2"}
    processes = []
    for number, extra in (("0", {}), ("1", second_fields)):
        job |= {"SLURM_PROCID": number, "SLURM_LOCALID": number}
        fields = fields | extra
        processes.append(start(workdir, fields, devices=2, log=number, **job))
    return processes
