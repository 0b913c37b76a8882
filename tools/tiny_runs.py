"""Tiny runs of train.py for tests and drills: started, observed, ended and resumed.

Every run is a process of its own: 60 steps on the digits of the package,
an evaluation every 12 steps and a checkpoint at least every 5.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
from flax import traverse_util

from imagepiece_jax.common import checksums
from imagepiece_jax.errors import RunError
from imagepiece_jax.training.cluster.checkpoint import KINDS, Checkpoints
from imagepiece_jax.training.logging import MEASURED, read_metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 60
EPOCH = 12
FIELDS = {
    "model.depth": 2,
    "model.embed_dim": 16,
    "model.num_heads": 2,
    "model.drop_path_rate": 0.1,
    "reduction.merge_blocks": (0,),
    "reduction.prune_blocks": (1,),
    "mixup": 0.8,
    "cutmix": 1.0,
    "epochs": STEPS // EPOCH,
    "batch_size": 112,  # of 1,438 training images: 12 steps an epoch
    "eval_batch_size": 24,  # many, so that a signal can arrive between two
    "warmup_epochs": 1.0,
    "eval_every_epochs": 1,
    "checkpoint_every_steps": 5,
    "log_every_steps": 1,
    "progress": False,
}
UNFINISHED = "*.orbax-checkpoint-tmp*"
PATIENCE = 300.0  # seconds for anything that a run should do


def cached(folder):
    """Variables of a process that shares all compiled programs in `folder`."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def stored(workdir, kind):
    """All arrays of the newest undamaged "latest" or "best", as nested dicts."""
    folder = pathlib.Path(workdir, "checkpoints", kind)
    arrays, _, _ = checksums.read_newest(folder, lambda _, table: table)
    return traverse_util.unflatten_dict(arrays, sep="/")


class TinyRuns:
    """A folder of runs that share compiled programs; `undisturbed` ends by itself.

    `fields` differ from `FIELDS` in all of them.
    """

    def __init__(self, folder, **fields):
        self.folder = pathlib.Path(folder)
        self._fields = fields
        self.undisturbed = self.run("undisturbed")
        self.undisturbed.finish()
        self.expected = self.undisturbed.outcome()

    def run(self, name, **fields):
        return TinyRun(self.folder / name, self.folder / "cache", self._fields | fields)


class TinyRun:
    """One run in its folder: started, waited for, ended, and resumed."""

    def __init__(self, workdir, cache, fields):
        self.workdir = workdir
        self._cache = cache
        self._fields = fields
        self.process = None
        self._left = set()  # inodes of what earlier processes have left

    def start(self, devices=None):
        """Start or resume. `devices`: on so many CPU devices instead of the default.

        The XLA flag makes a GPU add in the same order every time.
        """
        environment = cached(self._cache)
        xla = [os.environ.get("XLA_FLAGS", ""), "--xla_gpu_deterministic_ops=true"]
        if devices is not None:
            environment["JAX_PLATFORMS"] = "cpu"
            xla.append(f"--xla_force_host_platform_device_count={devices}")
        environment["XLA_FLAGS"] = " ".join(xla)
        words = [sys.executable, "train.py", "--config=configs/quickstart.py"]
        fields = FIELDS | self._fields
        words += [f"--config.{name}={value}" for name, value in fields.items()]
        self._left = self._inodes()
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*words, f"--workdir={self.workdir}"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )

    def finish(self, devices=None):
        """Run to the end: the step that it resumed from, 0 where it started anew."""
        self.start(devices)
        return self.resumed_at(self.end() != 0)

    def resumed_at(self, failed, logged=0):
        """The step that a run has resumed from, by its log; 0 where it started anew.

        failed: whether it has ended with an error, which raises RunError
        logged: byte of the log from which on it is read
        """
        if failed:
            raise RunError(f"a run failed: see {self.log}")
        text = self.log.read_text()[logged:]
        found = re.search(r"resuming from step (\d+)", text)
        return int(found[1]) if found else 0

    def until(self, condition, pause=0.01):
        """Wait for it, or for the end of the run."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                return
            if time.monotonic() > deadline:
                raise RunError(f"a run hangs: see {self.log}")
            time.sleep(pause)

    def until_step(self, step):
        self.until(lambda: self.begun() and self.step() >= step)

    def begun(self):
        """Whether this process has opened its files; earlier ones leave lines too."""
        return bool(self._inodes("metrics.jsonl") - self._left)

    def end(self, signum=None):
        """Exit status of the run, to which `signum` is sent first."""
        if signum is not None:
            self.process.send_signal(signum)
        status = self.process.wait(PATIENCE)
        return 128 - status if status < 0 else status

    def step(self):
        """The newest step with a line of metrics."""
        lines = read_metrics(self.workdir)
        return lines[-1]["step"] if lines else 0

    def on_disk(self):
        return Checkpoints(self.workdir).latest_step()

    def unfinished(self):
        """Whether this process left an unfinished checkpoint."""
        return bool(self._inodes(f"checkpoints/*/{UNFINISHED}") - self._left)

    def _inodes(self, *patterns):
        """Inodes of files and folders in the run's folder, which tell old from new."""
        patterns = patterns or ("metrics.jsonl", f"checkpoints/*/{UNFINISHED}")
        paths = []
        for pattern in patterns:
            paths += self.workdir.glob(pattern)
        inodes = set()
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                inodes.add(path.stat().st_ino)
        return inodes

    def said(self):
        """The sentence that the run ended with."""
        ends = r"^(?:error: |(?=stopped ))(.*)"
        sentences = re.findall(ends, self.log.read_text(), re.MULTILINE)
        return sentences[-1].replace(f"{self.workdir}", "WORKDIR") if sentences else ""

    def path(self, *parts):
        """A file or folder in the run's folder."""
        return self.workdir.joinpath(*parts)

    def evaluated(self, step):
        """Whether the evaluation after `step` has a result."""
        lines = read_metrics(self.workdir)
        return any((x["kind"], x["step"]) == ("eval", step) for x in lines)

    def remove(self):
        shutil.rmtree(self.workdir)

    @property
    def log(self):
        return pathlib.Path(f"{self.workdir}.log")

    def arrays(self, kind="latest"):
        """All arrays of the newest undamaged checkpoint, as nested dicts."""
        return stored(self.workdir, kind)

    def outcome(self):
        """The `Outcome` of the run so far."""
        lines = [
            {name: value for name, value in line.items() if name not in MEASURED}
            for line in read_metrics(self.workdir)
        ]
        return Outcome({kind: self.arrays(kind) for kind in KINDS}, lines)


@dataclasses.dataclass(eq=False)
class Outcome:
    """Checkpoints and metrics of a run; two are equal if they are to the last bit."""

    arrays: dict  # by checkpoint and name
    lines: list  # of metrics, without times and rates

    def __eq__(self, other):
        return equal(self.arrays, other.arrays) and self.lines == other.lines

    def losses_apart(self, other):
        """The largest difference of two losses at the same step."""
        pairs = zip(self.lines, other.lines, strict=True)
        return max(abs(ours["loss"] - theirs["loss"]) for ours, theirs in pairs)


def equal(ours, theirs):
    """Whether two trees of arrays are the same to the last bit."""
    if jax.tree.structure(ours) != jax.tree.structure(theirs):
        return False
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
