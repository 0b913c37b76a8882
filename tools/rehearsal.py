"""Rehearsal of a run on two hosts, compared with one process.

    python -m tools.rehearsal

starts two processes of four CPU devices each, as `srun` would, compiled with options as
on GPUs: dry run, training, a host that is killed, the rest on one process of eight
devices. It prints each comparison with an undisturbed run and the largest difference,
and ends with status 1 where a promise is not kept.
"""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid

import jax
import numpy as np

from imagepiece_jax import cli
from imagepiece_jax.common import signals
from imagepiece_jax.common.files import make_folder
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.training.cluster.checkpoint import KINDS
from tools import tiny_runs
from tools.rehearsal_config import EPOCH

SHORT = cli.switch("short", False, "one scenario, without its slow parts")
FOLDER = cli.text("folder", None, "keep the runs and their output there")
PLATFORM = cli.choice("platform", "cpu", ["cpu", "gpu"], "what the runs use")
DEVICES = cli.integer("devices", 8, "of all processes together", 2)

LOSSES = 5e-4  # largest difference between two layouts
# The same of arrays: the learning rate. Where a gradient is nearly zero, its rounding
# decides which way AdamW goes, and a step is as long as ever.
ARRAYS = 1e-3
IMAGES = 1e-3  # share of the test images that two layouts may judge differently
IN_TIME = 60.0  # seconds for a process to end after another one was killed
HEADINGS = ("run", "promise", "found", "allowed", "kept")
# A command as `python -m` runs it. On GPUs models are compiled with options, on CPUs
# without: this one changes how long that takes, and takes the code path of GPUs.
CONFIG = "tools/rehearsal_config.py"
COMMAND = """
import runpy, sys
from imagepiece_jax.common import xla_options
xla_options.OPTIONS.setdefault("cpu", {"xla_backend_optimization_level": 0})
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""

Row = collections.namedtuple("Row", HEADINGS)


def main():
    if DEVICES.value % 2:
        raise InputError("--devices", DEVICES.value, "even numbers")
    if PLATFORM.value == "gpu" and (gpus_here := gpus()) < DEVICES.value:
        raise InputError("--devices", DEVICES.value, f"the GPUs here, {gpus_here}")
    jax.config.update("jax_platforms", "cpu")  # the GPUs are for the runs
    with contextlib.ExitStack() as stack:
        folder = FOLDER.value
        if not folder:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            stack.enter_context(signals.unfinished(folder))
        stage = stack.enter_context(HostRuns(folder, PLATFORM.value, DEVICES.value))
        print(line(HEADINGS), line(["---"] * len(HEADINGS)), sep="\n", flush=True)
        kept = []
        for row in rehearse(stage, SHORT.value):
            print(line(row._replace(kept="yes" if row.kept else "NO")), flush=True)
            kept.append(row.kept)
    return 0 if all(kept) else 1


def gpus():
    """Number of GPUs that JAX finds, asked in a process that frees them again."""
    code = "import jax; print(len(jax.devices('gpu')))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return 0 if ended.returncode else int(ended.stdout)


def line(cells):
    """One row of the table."""
    return f"| {' | '.join(map(str, cells))} |"


def rehearse(stage, short):
    """Yield all rows; a scenario that cannot continue does not end the others."""
    for scenario in (shortened,) if short else (evit, masked):
        try:
            yield from scenario(stage)
        except RunError as error:
            yield Row(scenario.__name__, "runs end as they should", error, "", False)


def shortened(stage):
    """EViT on two hosts: killed, resumed, stopped; and the rest on one."""
    fields = {"epochs": 2, "eval_batch_size": 360, "model.depth": 1}
    fields |= {"model.embed_dim": 8, "model.patch_size": 4, "reduction.blocks": (0,)}
    fields["reduction.rate_warmup_epochs"] = 0  # one program
    fields |= {"batch_size": 192, "checkpoint_every_steps": 3}  # 7 steps an epoch
    run = stage.run("evit", "two", **fields)
    one = stage.run("evit", "one", **fields)
    yield killed(run, 0, 5)
    yield stopped(run, 1, 8)
    yield resumed(run, 1)
    one.finish(1)
    yield from layouts_agree(run, one)
    yield evaluated(run)


def evit(stage):
    """The program changes twice, and a host dies between the changes."""
    weights = _trained(stage)
    yield from _scenario(stage, "evit", 1, EPOCH + 5, **{"init.weights": weights})


def masked(stage):
    """Masks, a teacher, and parts that are missing from the weights."""
    weights = _trained(stage)
    fields = {"teacher.weights": weights, "init.weights": weights}
    yield from _scenario(stage, "imagepiece_dynamicvit", 0, 2 * EPOCH + 3, **fields)


def _trained(stage):
    """Folder of a dense run whose predictions differ from image to image."""
    run = stage.run("dense", "teacher")
    if not run.workdir.exists():
        run.finish(1)
    return run.workdir


def _scenario(stage, method, host, step, **fields):
    """`host` is killed after `step`; the rest on one host, and again on two."""
    names = ("dry", "one", "two", "killed", "killed_alone")
    dry, one, two, broken, single = (stage.run(method, n, **fields) for n in names)
    yield dry_run(dry)
    yield killed(broken, host, step)
    moved = broken.copied("moved")
    yield resumed(moved, 1)
    one.finish(1)
    yield from layouts_agree(moved, one)
    two.finish(2)
    yield from layouts_agree(two, one)
    yield resumed(broken, 2)
    yield identical(broken, two)
    yield killed(single, 0, step, processes=1)
    yield resumed(single, 1)
    yield identical(single, one)
    yield evaluated(two)


def dry_run(run):
    """A row: `--dry_run` of two processes succeeds and leaves nothing behind."""
    statuses = run.start(2, "--dry_run").ended()
    outcome = f"statuses {statuses}"
    if run.workdir.exists():
        outcome += ", a folder"
    kept = outcome == "statuses [0, 0]"
    return Row(run.name, "dry run of two processes", outcome, "statuses [0, 0]", kept)


def killed(run, host, step, processes=2):
    """A row: one of the processes is killed after `step`, and the others notice."""
    run.start(processes).reach(step)
    run.processes[host].send_signal(signal.SIGKILL)
    began = time.monotonic()
    statuses = run.ended()
    in_time = time.monotonic() - began < IN_TIME
    wanted = [137 if number == host else 1 for number in range(processes)]
    what = f"process {host} of {processes} killed after step {step}"
    outcome = f"statuses {statuses}"
    if not in_time:
        outcome += ", but late"
    return Row(run.name, what, outcome, f"{wanted}", in_time and statuses == wanted)


def stopped(run, host, step):
    """A row: SIGTERM at one of two processes; both save the same step and end."""
    run.start(2).reach(step)
    run.processes[host].send_signal(signal.SIGTERM)
    statuses = run.ended()
    same = run.on_disk() == run.step()
    outcome = f"statuses {statuses}, step {run.on_disk()} saved of {run.step()}"
    what = f"process {host} of 2 asked to stop after step {step}"
    kept = statuses == [143, 143] and same
    return Row(run.name, what, outcome, "[143, 143], the newest step", kept)


def resumed(run, processes):
    """A row: the run resumes from the newest checkpoint, and reaches its end."""
    newest = run.on_disk()
    step = run.finish(processes)
    promise = f"resumes from the newest checkpoint, processes: {processes}"
    return Row(run.name, promise, f"step {step}", f"step {newest}", step == newest)


def layouts_agree(ours, theirs):
    """Rows: losses, arrays and accuracies of two layouts, up to rounding."""
    name = f"{ours.name} against {theirs.name}"
    for kind, key in (("train", "loss"), ("eval", "loss"), ("eval", "ema_loss")):
        mine = ours.values(kind, key)
        others = theirs.values(kind, key)
        what = f"{len(mine)} of {len(others)} {kind} {key}"
        apart = _apart(mine, others)
        yield Row(name, what, f"{apart:.1e}", f"{LOSSES:g}", bool(apart <= LOSSES))
    for kind in KINDS:
        mine = jax.tree.leaves(ours.arrays(kind))
        others = jax.tree.leaves(theirs.arrays(kind))
        what = f"{len(mine)} of {len(others)} arrays, {kind} checkpoint"
        apart = max(map(_apart, mine, others))
        kept = apart <= ARRAYS and len(mine) == len(others)
        yield Row(name, what, f"{apart:.1e}", f"{ARRAYS:g}", bool(kept))
    images = max(ours.values("eval", "images"))
    for key in ("acc1", "ema_acc1"):
        apart = _apart(ours.right(key), theirs.right(key))
        what = f"images right by {key}, of {images:g}"
        allowed = IMAGES * images // 1
        yield Row(name, what, f"{apart:g}", f"{allowed:g}", bool(apart <= allowed))


def _apart(a, b):
    """Largest difference of two arrays; infinite for NaN and different shapes."""
    if a.shape != b.shape:
        return np.inf
    apart = np.abs(np.float64(a) - np.float64(b)).max(initial=0)
    return np.inf if np.isnan(apart) else apart


def identical(ours, theirs):
    """A row: two runs of one layout, equal to the last bit except for times."""
    mine = ours.outcome()
    others = theirs.outcome()
    count = len(jax.tree.leaves(mine.arrays))
    differ = "the same" if mine == others else "NOT the same"
    outcome = f"{differ}: {count} arrays, {len(mine.lines)} lines"
    name = f"{ours.name} against {theirs.name}"
    return Row(name, "same layout, bit for bit", outcome, "the same", mine == others)


def evaluated(run):
    """A row: the best checkpoint is as accurate in `evaluate` as in the run."""
    path = run.log.with_suffix(".json")
    result = json.loads(path.read_text()) if run.evaluate(path) == 0 else {}
    right = np.rint(result.get("acc1", np.nan) * result.get("images", 0) / 100)
    wanted = max(run.right("acc1"))
    what = "images right by evaluate, best checkpoint"
    return Row(run.name, what, f"{right:g}", f"{wanted:g}", bool(right == wanted))


class HostRuns:
    """A folder of runs that share compiled programs; at exit all are killed."""

    def __init__(self, folder, platform, devices):
        self.folder = pathlib.Path(folder).resolve()
        self._platform = platform
        self._devices = devices
        self._runs = []

    def __enter__(self):
        make_folder("--folder", self.folder)
        return self

    def __exit__(self, *error):
        for run in self._runs:
            for process in run.processes:
                process.kill()
                process.wait()

    def run(self, method, name, **fields):
        """Add a run of a method of CONFIG; fields: changes of its config."""
        words = [f"--config.{field}={value}" for field, value in fields.items()]
        config = f"--config={CONFIG}:{method}"
        return self.add(HostRun(self, f"{method}_{name}", [config, *words]))

    def add(self, run):
        self._runs.append(run)
        return run

    def environments(self, count):
        """Environments of `count` tasks, as one `srun` starts them on this host.

        Tasks find their own GPUs among all that they see; CPU devices are created.
        """
        shared = tiny_runs.cached(self.folder / "cache") | {
            "SLURM_JOB_ID": str(uuid.uuid4().int),  # chooses the port
            "SLURM_STEP_ID": "0",
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_STEP_TASKS_PER_NODE": str(count),
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_NTASKS": str(count),
            "SLURM_NODEID": "0",
        }
        xla = [os.environ.get("XLA_FLAGS", "")]
        if self._platform == "cpu":
            each = self._devices // count
            xla.append(f"--xla_force_host_platform_device_count={each}")
            shared["JAX_PLATFORMS"] = "cpu"
        else:
            xla.append("--xla_gpu_deterministic_ops=true")  # adds in the same order
            shared["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(self._devices)))
        shared["XLA_FLAGS"] = " ".join(xla)
        ranks = [str(number) for number in range(count)]
        return [shared | {"SLURM_PROCID": r, "SLURM_LOCALID": r} for r in ranks]


class HostRun(tiny_runs.TinyRun):
    """One run in its folder: started on one or two processes, and resumed."""

    def __init__(self, stage, name, words):
        super().__init__(stage.folder / name, stage.folder / "cache", {})
        self.name = name
        self._stage = stage
        self._words = words
        self.processes = []

    def start(self, processes, *words):
        """Start or resume; process 0 prints to NAME.log, process 1 to NAME.1.log."""
        self._left = self._inodes()
        words = ["train", f"--workdir={self.workdir}", *words, *self._words]
        environments = self._stage.environments(processes)
        self.processes = []
        for number, variables in enumerate(environments):
            suffix = f".{number}" if number > 0 else ""
            self.processes.append(self._started(words, variables, suffix))
        self.process = self.processes[0]
        return self

    def evaluate(self, path):
        """Exit status of `evaluate` of the best checkpoint, which writes `path`."""
        words = ["imagepiece_jax", "evaluate", f"--weights={self.workdir}"]
        (variables,) = self._stage.environments(1)
        self.processes = [
            self._started([*words, f"--json={path}"], variables, ".evaluate")
        ]
        return self.ended()[0]

    def _started(self, words, variables, suffix):
        with open(self.log.with_suffix(f"{suffix}.log"), "a", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-c", COMMAND, *words],
                cwd=tiny_runs.ROOT,
                env=variables,
                stdout=log,
                stderr=log,
            )

    def reach(self, step):
        """Wait until `step` is done; RunError if the run ends before."""
        self.until_step(step)
        if any(process.poll() is not None for process in self.processes):
            raise RunError(f"a run ended before step {step}: see {self.log}")

    def ended(self):
        """Exit statuses when all processes have ended; 128 + n: by signal n."""
        try:
            statuses = [process.wait(tiny_runs.PATIENCE) for process in self.processes]
        except subprocess.TimeoutExpired as error:
            raise RunError(f"a run hangs: see {self.log}") from error
        return [128 - status if status < 0 else status for status in statuses]

    def finish(self, processes):
        """Run to the end: the step that it resumed from, 0 where it started anew."""
        logged = self.log.stat().st_size if self.log.exists() else 0
        return self.resumed_at(any(self.start(processes).ended()), logged)

    def copied(self, name):
        """A copy of the run as it is now, in another folder."""
        copy = self._stage.add(HostRun(self._stage, f"{self.name}_{name}", self._words))
        shutil.copytree(self.workdir, copy.workdir)
        return copy

    def values(self, kind, key):
        """Values of `key` in the metrics of a kind, float64 [lines]."""
        lines = tiny_runs.read_metrics(self.workdir)
        return np.array([x[key] for x in lines if x["kind"] == kind], np.float64)

    def right(self, key):
        """Number of images right in each evaluation, by the accuracy `key`."""
        return np.rint(self.values("eval", key) * self.values("eval", "images") / 100)


if __name__ == "__main__":
    cli.run(main)
