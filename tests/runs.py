"""Real runs of train.py in processes of their own, small enough for a test."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A quickstart that takes seconds: two narrow blocks, few images a step.
SMALL = {
    "model.depth": 2,
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "reduction.merge_blocks": (0,),
    "reduction.prune_blocks": (1,),
    "warmup_epochs": 1.0,
    "batch_size": 32,
    "eval_batch_size": 120,
    "log_every_steps": 1,
    "pictures": 0,
    "progress": False,
}
DENSE = {
    name: value for name, value in SMALL.items() if not name.startswith("reduction")
} | {"reduction.merge_blocks": (), "reduction.prune_blocks": ()}


def command(workdir, fields):
    """train.py with the quickstart config and these fields of it changed."""
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    words = [sys.executable, "train.py", "--config=configs/quickstart.py"]
    return [*words, f"--workdir={workdir}", *overrides]


def environment(cache, devices=1):
    """Environment of a run: so many CPU devices, compiled programs kept in `cache`."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start(workdir, fields, cache, devices=1):
    """The running process, its output in workdir.log beside the workdir."""
    log = open(f"{workdir}.log", "a", encoding="utf-8")
    with log:
        return subprocess.Popen(
            command(workdir, fields),
            cwd=ROOT,
            env=environment(cache, devices),
            stdout=log,
            stderr=log,
        )


def finish(workdir, fields, cache, devices=1):
    """Run to the end; the output is shown where it fails."""
    status = start(workdir, fields, cache, devices).wait(timeout=300)
    assert status == 0, pathlib.Path(f"{workdir}.log").read_text()[-3000:]
