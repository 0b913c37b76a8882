"""Fault injection of `recover`, and signals at any moment of every command.

    python -m tools.recovery_drill --out drill

writes drill.json and drill.md row by row: what was sent and when, the exit status, and
what stands in the command's folder then, which is loaded. It ends with status 1 where
that is neither nothing nor complete, and where a signal does not end a command in one
line. Every run is a process of its own, of a tiny model and the digits of the package:
some 160 runs, and half an hour on two cores.
"""

import collections
import copy
import dataclasses
import json
import os
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
from PIL import Image

import imagepiece_jax
from imagepiece_jax import cli
from imagepiece_jax.common import signals
from imagepiece_jax.common.files import replace_file, write_json
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.variables import fresh_variables
from tools.tiny_runs import FIELDS, PATIENCE, ROOT, cached

OUT = cli.text("out", None, "files to write, without .json and .md")
EACH = cli.integer("each", 6, "runs of each kind", 1)
SEED = cli.integer("seed", 0, "of the random moments", 0)

STEPS = 40
SIZE = {"image_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3}
SIZE |= {"num_heads": 3, "num_classes": 10}
REDUCTION = "evit:keep_rate=.3:blocks=(0,)"
NAMES = {"weights": "weights", "image": "image.png"}  # in the folder of all runs
DIGITS = "--data=digits"
DENSE = "--weights=WEIGHTS"
REDUCED = f"{DENSE} --reduction={REDUCTION}"
SHORT = FIELDS | {"epochs": 2}
OF_RUN = " ".join([f"--config.{name}={value}" for name, value in SHORT.items()])
OF_TIME = "--batch_size=1 --warmup=2 --repeats=1 --seconds=0"
COMMANDS = {
    "recover": f"{REDUCED} {DIGITS} --limit=96 --steps={STEPS} --batch=8 --out=OUT",
    "train": f"--config=configs/quickstart.py {OF_RUN} --workdir=OUT",
    "compare": f"{DENSE} {DIGITS} --limit=40 --sweep=tome:r=2,4 --out=OUT",
    "evaluate": f"{REDUCED} {DIGITS} --limit=40 --json=OUT.json",
    "export": f"{REDUCED} --out=OUT.onnx",
    "features": f"{REDUCED} --out=OUT IMAGE",
    "predict": f"{REDUCED} --json=OUT.json IMAGE",
    "visualize": f"{REDUCED} --out=OUT IMAGE",
    "benchmark": f"{REDUCED} {OF_TIME} --json=OUT.jsonl",
    "describe": REDUCED,
    "doctor": "",
}
INTERRUPTED = 128 + signal.SIGINT
STEP = 0.1  # seconds between the first signals, from when they are heard
CRASHED = "Traceback|Fatal|ignored in|Segmentation"  # in what no command may say


@dataclasses.dataclass
class Row:
    """One fault, and what it left."""

    fault: str
    moment: str
    status: int
    found: str  # "nothing", "the old one", "complete", or what is wrong with it
    said: str  # the last line
    passed: bool = True


class Run:
    """A process of a command of COMMANDS, in a folder of runs.

    WEIGHTS, IMAGE and OUT in its flags stand for paths.
    """

    def __init__(self, folder, name, command):
        self.folder = pathlib.Path(folder)
        self.out = self.folder / name / "out"
        self.out.parent.mkdir()
        self.log = self.folder / name / "log"
        self.words = [command, *map(self._path, COMMANDS[command].split())]
        self.process = None

    def _path(self, word):
        word = word.replace("OUT", str(self.out))
        for name in ("weights", "image"):
            word = word.replace(name.upper(), str(self.folder / NAMES[name]))
        return word

    def start(self, keeps_programs=True):
        """Start the command; `keeps_programs`: or it compiles all of its own."""
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": ""}
        if keeps_programs:
            environment = cached(self.folder / "cache")
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "imagepiece_jax", *self.words],
                cwd=ROOT,
                env=environment | {"JAX_PLATFORMS": "cpu"},
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
                raise InputError(problem="hangs", place=self.log)
            time.sleep(0.0005)
        return True

    def hears(self):
        """Whether it handles signals, before which Python starts, by Linux's word."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status")
        caught = re.search(r"SigCgt:\s*(\w+)", status.read_text())
        return caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1

    def end(self, *signals):
        """Send the signals; the exit status, 128 and the number where one ended it."""
        for signum in signals:
            self.process.send_signal(signum)
        status = self.process.wait(PATIENCE)
        return 128 - status if status < 0 else status

    def found(self):
        """What is in the folder, in words."""
        files = [path for path in self.out.parent.rglob("*") if path.is_file()]
        files.remove(self.log)
        for path in files:
            if not is_whole(path):
                return f"half-written: {path.relative_to(self.out.parent)}"
        return "complete" if files else "nothing"

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


class Recovery(Run):
    """A run of the command recover."""

    def __init__(self, folder, name):
        super().__init__(folder, name, "recover")

    def step(self):
        """The newest step of a line on stderr."""
        steps = re.findall(r"recover: step (\d+)", self.log.read_text("utf-8"))
        return int(steps[-1]) if steps else 0

    def writes(self):
        """Whether the folder is written, whose name is another until it is whole."""
        return any(self.out.parent.glob(".*.tmp"))

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
        if not vit.recovery:
            return "the old one"
        return "complete" if self.keeps_dense(vit) else "another dense model"

    def keeps_dense(self, vit):
        """Whether a recovered model's dense one is that of the weights, to the bit."""
        before = imagepiece_jax.load(self.folder / NAMES["weights"])
        ours = jax.tree.leaves(vit.with_reduction(None).variables)
        theirs = jax.tree.leaves(before.variables)
        return all(map(np.array_equal, ours, theirs))


def is_whole(path):
    """Whether a file is none that stands for another, and its JSON can be read."""
    if path.name.startswith(".") and path.suffix == ".tmp":
        return False
    text = path.read_text("utf-8", errors="replace")
    texts = {".json": [text], ".jsonl": text.splitlines()}
    try:
        for each in texts.get(path.suffix, []):
            json.loads(each)
    except ValueError:
        return False
    return True


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


def write_image(path):
    """An image of noise, of the model's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def drill(folder, rng, each):
    """Yield all rows, each when its runs have ended."""
    write_weights(folder / NAMES["weights"])
    write_image(folder / NAMES["image"])
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
        row.passed &= row.status in (0, INTERRUPTED) and row.found == "complete"
        yield row
    for _ in range(each):
        run = new()
        shutil.copytree(folder / "weights", run.out)
        yield in_the_save(run, signal.SIGKILL, rng)
    yield full_disk(new())
    yield from two_at_once(new())
    for command in COMMANDS:
        yield from at_any_moment(folder, command, rng, each)


def at_any_moment(folder, command, rng, each):
    """A command that compiles all, ended by signals: early ones, and random ones."""
    if not each:
        return
    began = time.monotonic()
    whole = Run(folder, f"{command}", command).start(keeps_programs=False)
    status = whole.end()
    seconds = time.monotonic() - began
    row = whole.row(f"none, {command}", "", status, ["nothing", "complete"])
    row.passed &= status == 0
    yield row
    early = [STEP * number for number in range(each)]
    moments = [*early, *rng.uniform(early[-1], seconds, each)]
    for number, moment in enumerate(moments):
        for signum in signals.SIGNALS:
            name = f"{command} {number} {signum.name}"
            run = Run(folder, name, command).start(keeps_programs=False)
            run.until(run.hears)
            time.sleep(moment)
            status = run.end(signum)
            fault = f"{signum.name}, {command}"
            when = f"after {moment:.1f} s"
            row = run.row(fault, when, status, ["nothing", "complete"])
            row.passed &= status in (0, 128 + signum)
            row.passed &= not re.search(CRASHED, run.log.read_text("utf-8"))
            yield row
            shutil.rmtree(run.out.parent)


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
    """Markdown: how often a fault ended with a status, and a line for each row."""
    statuses = collections.defaultdict(collections.Counter)
    for row in rows:
        statuses[row.fault][row.status] += 1
    counts = [[fault, in_words(found)] for fault, found in statuses.items()]
    summary = markdown_table(["fault", "statuses"], counts)
    heads = [field.name for field in dataclasses.fields(Row)]
    lines = [dataclasses.astuple(row) for row in rows]
    return f"{summary}\n\n{markdown_table(heads, lines)}\n"


def in_words(counter):
    """Exit statuses and how often each was found, such as "0: 1, 130: 5"."""
    return ", ".join(f"{status}: {count}" for status, count in sorted(counter.items()))


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
