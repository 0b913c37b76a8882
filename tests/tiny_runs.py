"""A run of train.py in a process of its own that meets a fault, and is resumed.

Some seconds on the digits of the package: two epochs of 12 steps, an evaluation after
each, and a checkpoint at least every 5 steps.
"""

import contextlib
import re
import signal
import time

from imagepiece_jax.config.run_files import KINDS
from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from imagepiece_jax.training.logging import read_metrics
from tests import runs
from tools.drill import FIELDS, PATIENCE

EPOCH = 12
STEPS = 2 * EPOCH
TINY = FIELDS | {"model.stem": "patch"}  # the drill's has a conv stem's statistics
UNFINISHED = "checkpoints/*/*.orbax-checkpoint-tmp*"


class TinyRun:
    """One run in its folder: started, waited for, ended, and resumed."""

    def __init__(self, workdir, cache):
        self.workdir = workdir
        self.log = workdir.with_name(f"{workdir.name}.log")
        self._cache = cache
        self._left = set()  # inodes of what earlier processes have left
        self._process = None

    def start(self):
        """Start or resume it."""
        self._left = self._inodes("metrics.jsonl") | self._inodes(UNFINISHED)
        self._process = runs.start(self.workdir, TINY, self._cache, quick=True)

    def finish(self):
        """Run to the end: the step that it resumed from, 0 where it started anew."""
        self.start()
        assert self.end() == 0, self.log.read_text()[-3000:]
        found = re.findall(r"resuming from step (\d+)", self.log.read_text())
        return int(found[-1]) if found else 0

    def until(self, condition):
        """Wait for it, or for the end of the run."""
        deadline = time.monotonic() + PATIENCE
        while not condition() and self._process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.001)

    def until_step(self, step):
        self.until(lambda: self.begun() and self.step() >= step)

    def end(self, signum=None):
        """Exit status of the run, to which `signum` is sent first; 128 + n: by n."""
        if signum is not None:
            self._process.send_signal(signum)
        status = self._process.wait(PATIENCE)
        return 128 - status if status < 0 else status

    def begun(self):
        """Whether this process has opened its files; earlier ones leave lines too."""
        return bool(self._inodes("metrics.jsonl") - self._left)

    def step(self):
        """The newest step with a line of metrics."""
        lines = read_metrics(self.workdir)
        return lines[-1]["step"] if lines else 0

    def on_disk(self):
        return Checkpoints(self.workdir).latest_step()

    def unfinished(self):
        """Whether this process left an unfinished checkpoint."""
        return bool(self._inodes(UNFINISHED) - self._left)

    def evaluating(self):
        """Whether the evaluation after an epoch is not there yet."""
        lines = read_metrics(self.workdir)
        if not lines or not self.begun():
            return False
        return lines[-1]["kind"] == "train" and lines[-1]["step"] % EPOCH == 0

    def said(self):
        """The sentence that the run ended with."""
        ends = r"^(?:error: |(?=stopped ))(.*)"
        sentences = re.findall(ends, self.log.read_text(), re.MULTILINE)
        return sentences[-1].replace(f"{self.workdir}", "WORKDIR")

    def outcome(self):
        """Lines and checkpoints, without times."""
        checkpoints = [runs.stored(self.workdir, kind) for kind in KINDS]
        return runs.computed(self.workdir), checkpoints

    def _inodes(self, pattern):
        """Inodes of files and folders in the run's folder, which tell old from new."""
        inodes = set()
        for path in self.workdir.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                inodes.add(path.stat().st_ino)
        return inodes


# Each starts or resumes a run, injects a fault and waits for its end: the exit status,
# or None where the moment was missed.


def kill_in_save(run, delay):
    """SIGKILL in a save after the first step: it leaves an unfinished checkpoint."""
    run.start()
    run.until_step(1)
    run.until(run.unfinished)
    time.sleep(delay)
    status = run.end(signal.SIGKILL)
    return status if run.unfinished() else None


def terminate_in_evaluation(run):
    """SIGTERM in the next evaluation, which must be abandoned."""
    run.start()
    run.until(run.evaluating)
    status = run.end(signal.SIGTERM)
    return status if run.evaluating() else None
