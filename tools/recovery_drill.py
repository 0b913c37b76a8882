"""Fault injection of `recover`: killed, interrupted, and two at once.

    python -m tools.recovery_drill --out drill

writes drill.json and drill.md row by row: what was sent and when, the exit status, and
what stands in the command's folder then, which is loaded. It ends with status 1 where
that is neither nothing nor complete. Every run is a process of its own, of a tiny model
and the digits of the package: some 40 runs, and a quarter of an hour on two cores.
"""

import copy
import dataclasses
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np

import imagepiece_jax
from imagepiece_jax import cli
from imagepiece_jax.common import signals
from imagepiece_jax.common.files import replace_file, write_json
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.variables import fresh_variables
from tools.tiny_runs import PATIENCE, ROOT, cached

OUT = cli.text("out", None, "files to write, without .json and .md")
EACH = cli.integer("each", 6, "runs of each kind", 1)
SEED = cli.integer("seed", 0, "of the random moments", 0)

STEPS = 40
SIZE = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3}
SIZE |= {"num_heads": 3, "num_classes": 10}
REDUCTION = {"name": "evit", "keep_rate": 0.3, "blocks": "(0,)"}
INTERRUPTED = 128 + signal.SIGINT


@dataclasses.dataclass
class Row:
    """One fault, and what it left."""

    fault: str
    moment: str
    status: int
    found: str  # "nothing", "the old one", "complete", or what is wrong with it
    said: str  # the last line
    passed: bool = True


class Recovery:
    """A process of the command, in a folder that has the weights, too."""

    def __init__(self, folder, name):
        self.folder = pathlib.Path(folder)
        self.out = self.folder / name / "out"
        self.out.parent.mkdir()
        self.log = self.folder / name / "log"
        self.process = None

    def start(self):
        """Start the command."""
        words = [sys.executable, "-m", "imagepiece_jax", "recover", "--data=digits"]
        words += [f"--weights={self.folder / 'weights'}", f"--out={self.out}"]
        words += [f"--steps={STEPS}", "--batch=8", "--limit=96"]
        words += [f"--config.reduction.{k}={v}" for k, v in REDUCTION.items()]
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=cached(self.folder / "cache") | {"JAX_PLATFORMS": "cpu"},
                stdout=log,
                stderr=log,
            )
        return self

    def until(self, condition):
        """Wait for it; False where the process ends first."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise InputError("hangs", place=self.log)
            time.sleep(0.0005)
        return True

    def step(self):
        """The newest step of a line on stderr."""
        steps = re.findall(r"recover: step (\d+)", self.log.read_text("utf-8"))
        return int(steps[-1]) if steps else 0

    def writes(self):
        """Whether the folder is written, whose name is another until it is whole."""
        return any(self.out.parent.glob(".*.tmp"))

    def end(self, *signals):
        """Send the signals; the exit status, 128 and the number where one ended it."""
        for signum in signals:
            self.process.send_signal(signum)
        status = self.process.wait(PATIENCE)
        return 128 - status if status < 0 else status

    def found(self):
        """What is in the folder, in words."""
        if not self.out.exists():
            return "nothing"
        try:
            vit = imagepiece_jax.load(self.out)
        except InputError as error:
            return f"damaged: {error}"
        leaves = jax.tree.leaves(vit.variables)
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            return "numbers that are not finite"
        return "complete" if vit.recovery else "the old one"

    def said(self):
        """The last line of the log, if there is one."""
        if not self.log.exists():
            return ""
        lines = self.log.read_text("utf-8").strip().splitlines()
        return lines[-1].replace(str(self.out), "OUT") if lines else ""

    def row(self, fault, moment, status, allowed):
        """The Row of an ended run; allowed: what `found` may return."""
        found = self.found()
        passed = found in allowed
        return Row(fault, moment, status, found, self.said(), passed)


def write_weights(folder):
    """A folder of a tiny dense model with random weights."""
    model = imagepiece_jax.create_model("vit_mini", **SIZE)
    variables = fresh_variables(model, SIZE["image_size"], seed=0)
    rng = np.random.default_rng(0)
    # Weights so large that dropping tokens changes the answers.
    variables = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), variables
    )
    imagepiece_jax.save(folder, imagepiece_jax.Pretrained(model, variables))


def drill(folder, rng, each):
    """Yield all rows, each when its runs have ended."""
    write_weights(folder / "weights")
    began = time.monotonic()
    whole = Recovery(folder, "whole").start()
    status = whole.end()
    seconds = time.monotonic() - began
    yield whole.row("none", "", status, ["complete"])
    number = 0

    def new():
        nonlocal number
        number += 1
        return Recovery(folder, f"{number}")

    for _ in range(each):
        run = new().start()
        delay = rng.uniform(0, seconds)
        time.sleep(delay)
        status = run.end(signal.SIGKILL)
        yield run.row(
            "SIGKILL", f"after {delay:.1f} s", status, ["nothing", "complete"]
        )
    for _ in range(each):
        yield in_the_save(new(), signal.SIGKILL, rng)
    for _ in range(each):
        step = int(rng.integers(0, STEPS))
        run = new().start()
        run.until(lambda run=run, step=step: run.step() >= step)
        presses = [signal.SIGINT] * int(rng.integers(1, 4))
        status = run.end(*presses)
        row = run.row(
            f"Ctrl-C, {len(presses)} times",
            f"after step {step}",
            status,
            ["nothing", "complete"],
        )
        row.passed &= status in (0, INTERRUPTED)
        if "the best weights so far are kept" in run.log.read_text("utf-8"):
            row.passed &= row.found == "complete"
        yield row
    for _ in range(each):
        row = in_the_save(new(), signal.SIGINT, rng)
        row.passed &= (row.status, row.found) == (0, "complete")
        yield row
    for _ in range(each):
        run = new()
        shutil.copytree(folder / "weights", run.out)
        yield in_the_save(run, signal.SIGKILL, rng)
    yield full_disk(new())
    yield from two_at_once(new())


def in_the_save(run, signum, rng):
    """A signal while the folder is written, some time after that has begun."""
    run.start()
    run.until(run.writes)
    time.sleep(rng.uniform(0, 0.01))
    there = run.out.exists()
    status = run.end(signum)
    allowed = ["nothing", "complete", "the old one"]
    # Between two renames an old folder has a name in the same place with a dot.
    row = run.row(signum.name, "in the save", status, allowed)
    if there and row.found == "nothing":
        hidden = [path for path in run.out.parent.glob(".*.tmp") if path.is_dir()]
        row.passed = any((path / "config.json").exists() for path in hidden)
    return row


def full_disk(run):
    """No file may grow beyond some bytes, which fails as on a full disk."""
    import resource  # which Windows does not have

    run.start()
    limits = (20_000, resource.RLIM_INFINITY)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limits)
    status = run.end()
    row = run.row("full disk", "in the save", status, ["nothing"])
    row.passed &= status == 1 and row.said.startswith("error: ")
    return row


def two_at_once(run):
    """Two processes write the same folder: it is complete, of one of them."""
    other = copy.copy(run)
    for each in (run, other):
        each.start()
    for each in (run, other):
        status = each.end()
        yield each.row("two at once", "", status, ["complete"])


def table(rows):
    """Markdown: a line for each row."""
    heads = [field.name for field in dataclasses.fields(Row)]
    lines = [dataclasses.astuple(row) for row in rows]
    return markdown_table(heads, lines) + "\n"


def main():
    out = cli.required(OUT)
    jax.config.update("jax_platforms", "cpu")
    rng = np.random.default_rng(SEED.value)
    rows = []
    with tempfile.TemporaryDirectory() as folder, signals.unfinished(folder):
        for row in drill(pathlib.Path(folder), rng, EACH.value):
            rows.append(row)
            print(*dataclasses.astuple(row), sep=" | ", flush=True)
            write_json(f"{out}.json", [dataclasses.asdict(each) for each in rows])
            replace_file(f"{out}.md", table(rows))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    cli.run(main)
