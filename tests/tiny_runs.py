"""A run of train.py in a process of its own that a signal ends.

Some seconds on the digits of the package: two epochs of 12 steps, an evaluation after
each, and a checkpoint at least every 5 steps.
"""

import time

from imagepiece_jax.training.cluster.checkpoint import Checkpoints
from tests import runs
from tools.drill import FIELDS, PATIENCE

TINY = FIELDS | {"model.stem": "patch"}  # the drill's has a conv stem's statistics


class TinyRun:
    """One run in its folder: started, waited for, and ended."""

    def __init__(self, workdir, cache):
        self.workdir = workdir
        self.log = workdir.with_name(f"{workdir.name}.log")
        self._cache = cache
        self._process = None

    def start(self):
        self._process = runs.start(self.workdir, TINY, self._cache, quick=True)

    def until(self, condition):
        """Wait for it, or for the end of the run."""
        deadline = time.monotonic() + PATIENCE
        while not condition() and self._process.poll() is None:
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.001)

    def end(self, signum):
        """Exit status of the run, to which `signum` is sent first; 128 + n: by n."""
        self._process.send_signal(signum)
        status = self._process.wait(PATIENCE)
        return 128 - status if status < 0 else status

    def begun(self):
        """Whether the process has opened its files."""
        return (self.workdir / "metrics.jsonl").exists()

    def on_disk(self):
        return Checkpoints(self.workdir).latest_step()
