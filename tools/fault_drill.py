"""Fault injection: tiny runs are killed, damaged and resumed.

    python -m tools.fault_drill --out faults

writes faults.json and faults.md row by row: about 60 runs, and half an hour on two
cores. It ends with status 1 if one of them did not end as it should.
"""

import collections
import dataclasses
import shutil
import signal
import tempfile
import time

import jax
import numpy as np

from imagepiece_jax import cli
from imagepiece_jax.common import signals
from imagepiece_jax.common.files import replace_file, write_json
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.errors import InputError
from tools import tiny_runs
from tools.tiny_runs import EPOCH, equal

OUT = cli.text("out", None, "files to write, without .json and .md")
KILLS = cli.integer("kills", 20, "SIGKILLs at random moments", 1)
SAVES = cli.integer("saves", 4, "how many of them during a save", 0)
SEED = cli.integer("seed", 0, "of the random moments", 0)
BITS = 200  # flipped, one at a time
LOSSES_APART = 0.05  # on other devices: sums in another order, over 60 steps
HEADINGS = {
    "fault": "fault",
    "moment": "when",
    "status": "exit status",
    "said": "last line",
    "on_disk": "newest step on disk",
    "resumed_from": "resumed from",
    "result": "result",
}
IN_TIME = 30.0  # seconds that a scheduler gives after SIGTERM


def main():
    if SAVES.value > KILLS.value:
        raise InputError("--saves", SAVES.value, f"0 to --kills, {KILLS.value}")
    if not (tiny_runs.ROOT / "train.py").exists():
        raise InputError(
            allowed="a clone of the repository",
            problem="has no train.py",
            place=tiny_runs.ROOT,
        )
    out = cli.required(OUT)
    jax.config.update("jax_platforms", "cpu")  # the GPU is for the runs
    rng = np.random.default_rng(SEED.value)
    rows = []
    with tempfile.TemporaryDirectory() as folder, signals.unfinished(folder):
        runs = tiny_runs.TinyRuns(folder)
        for row in drill(runs, rng, KILLS.value, SAVES.value):
            rows.append(dataclasses.asdict(row))
            print(*cells(rows[-1]), sep=" | ", flush=True)
            write_json(f"{out}.json", rows)
            replace_file(f"{out}.md", table(rows))
    return 0 if all(row["passed"] for row in rows) else 1


def drill(runs, rng, kills, saves):
    """Yield all rows, each when its run has ended."""

    def somewhere(low=1, high=tiny_runs.STEPS - 2):
        return int(rng.integers(low, high))

    def tried(fault, *draws, fields=()):
        """A row of `fault`, whose moment is drawn again until it is met.

        draws: functions that return its arguments after the run
        fields: of the run's config
        """
        row = None
        while row is None:
            run = runs.run("run", **dict(fields))
            row = fault(run, *(draw() for draw in draws))
            if row is None:
                run.remove()
        return resumed(runs, run, row)

    for number in range(kills):
        fault = kill_in_save if number < saves else kill
        yield tried(fault, somewhere, lambda: rng.uniform(0, 0.02))
    yield tried(terminate, somewhere)
    reading = "processes read"
    yield tried(terminate, somewhere, lambda: reading, fields={"data.workers": 2})
    yield tried(terminate_in_evaluation)
    yield tried(terminate_in_compile)
    yield from damaged(runs, rng, somewhere(24, 50))
    for room in (40_000, 0):  # for lines of metrics but no checkpoint; for nothing
        yield tried(fill_disk, lambda: somewhere(13, 40), lambda room=room: room)
    yield tried(vanish, lambda: somewhere(13, 40))
    for before, after in ((1, 8), (8, 1)):
        yield other_devices(runs, somewhere(13, 40), before, after)


def resumed(runs, run, row):
    """`row`, completed by resuming to the end; the folder is removed."""
    row.resumed_from = run.finish()
    same = run.outcome() == runs.expected
    row.result = "identical" if same else "DIFFERENT"
    row.passed = row.passed and same
    run.remove()
    return row


def damaged(runs, rng, step):
    """Yield the rows of damaged checkpoints: many are read, some resumed from.

    Of each kind of damage one that was noticed is resumed from.
    """
    run = runs.run("damage")
    terminate(run, step)
    for fault, changes in damages(run, rng, BITS):
        row, example = damage(run, fault, changes)
        yield row
        copy = runs.run("copy")
        shutil.copytree(run.workdir, copy.workdir)
        path, content = example
        copy.path(path.relative_to(run.workdir)).write_bytes(content)
        yield resumed(
            runs, copy, Fault(fault, "newest checkpoint", on_disk=row.on_disk)
        )
    run.remove()


def other_devices(runs, step, before, after):
    """A row: started on `before` CPU devices, stopped, resumed on `after` of them."""
    run = runs.run("devices")
    row = terminate(run, step, devices=before)
    row.fault = f"{before} device(s), then {after}"
    row.resumed_from = run.finish(devices=after)
    apart = run.outcome().losses_apart(runs.expected)
    row.passed = row.passed and row.on_disk == row.resumed_from and apart < LOSSES_APART
    row.result = f"losses differ by at most {apart:.1e}"
    run.remove()
    return row


def cells(row):
    """Cells of one row of the table."""
    return ["-" if row[name] in (None, "") else row[name] for name in HEADINGS]


def table(rows):
    """Markdown: how many runs of each fault ended as they should, then all rows."""
    tried = collections.Counter(row["fault"] for row in rows)
    passed = collections.Counter(row["fault"] for row in rows if row["passed"])
    counts = [[fault, tried[fault], passed[fault]] for fault in tried]
    summary = markdown_table(["fault", "tried", "as it should be"], counts)
    return f"{summary}\n\n{markdown_table(HEADINGS.values(), map(cells, rows))}\n"


# Each function takes a `TinyRun`, which may have been started before, injects a fault,
# waits, and returns a row of the table; None where the moment was missed. The run can
# then be resumed, and must end like an undisturbed one.


@dataclasses.dataclass
class Fault:
    """One fault, and its consequences."""

    fault: str
    moment: str
    status: int | None = None  # exit status of the run; 128 + n: by signal n
    said: str = ""  # its last line
    on_disk: int | None = None  # newest step on disk then
    resumed_from: int | None = None
    result: str = ""
    passed: bool = True


def kill(run, step, delay=0.0):
    """SIGKILL `delay` seconds after `step`."""
    run.start()
    run.until_step(step)
    time.sleep(delay)
    return _killed(run)


def kill_in_save(run, step, delay=0.0):
    """SIGKILL in a save after `step`: an unfinished checkpoint must be left."""
    run.start()
    run.until_step(step)
    run.until(run.unfinished, pause=0.001)
    time.sleep(delay)
    row = _killed(run)
    return row if row and run.unfinished() else None


def _killed(run):
    """Send SIGKILL now; return the row, or None where the run had ended."""
    status = run.end(signal.SIGKILL)
    if status == 0:
        return None
    saving = ", during a save" if run.unfinished() else ""
    row = Fault("SIGKILL", f"step {run.step()}{saving}", status)
    row.on_disk = run.on_disk()
    row.passed = status == 128 + signal.SIGKILL
    return row


def terminate(run, step, moment="training", signum=signal.SIGTERM, devices=None):
    """A signal after `step`; the last step must be saved in time."""
    return _signaled(run, lambda: run.step() >= step, moment, signum, devices)


def terminate_in_evaluation(run):
    """SIGTERM in the next evaluation, which must be abandoned."""

    def evaluating():
        step = run.step()
        there = run.begun() and step and step % EPOCH == 0
        return there and not run.evaluated(step)

    row = _signaled(run, evaluating, "evaluation")
    return row if row and evaluating() else None


def terminate_in_compile(run):
    """SIGTERM in the first compile: there is nothing to save, and no time to lose."""
    row = _signaled(run, run.begun, "first compile")
    return row if row and run.on_disk() is None else None


def _signaled(run, ready, moment, signum=signal.SIGTERM, devices=None):
    """Send a signal once `ready()`; return the row, or None where the run ends before.

    moment: what is ready then, in words
    devices: number of CPU devices of the run; None: the default
    """
    run.start(devices)
    run.until(ready)
    began = time.monotonic()
    status = run.end(signum)
    seconds = time.monotonic() - began
    if status == 0:
        return None
    reached = run.step()
    on_disk = run.on_disk()
    where = f"{moment}, step {reached}" if reached else moment
    row = Fault(signum.name, f"{where}; ended after {seconds:.1f} s", status)
    row.said = run.said()
    row.on_disk = on_disk
    in_time = seconds < IN_TIME and status == 128 + signum
    row.passed = in_time and (on_disk or 0) == reached
    return row


def fill_disk(run, step, room):
    """From `step` on only `room` bytes can be written: the run must report it.

    A limit on the size of each file fails in the same places as a full disk.
    """
    import resource  # which Windows does not have

    run.start()
    run.until_step(step)
    limits = (room, resource.RLIM_INFINITY)
    resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limits)
    status = run.end()
    row = Fault("full disk", f"room for {room:,} bytes, after step {step}", status)
    row.said = run.said()
    row.on_disk = run.on_disk()
    row.passed = status == 1
    return row


def vanish(run, step):
    """The run's folder is moved away after `step`, and back when the run has ended.

    A save that has just begun may make the folder anew; the next one notices.
    """
    away = run.workdir.with_name("away")
    run.start()
    run.until_step(step)
    run.workdir.rename(away)
    status = run.end()
    row = Fault("vanished workdir", f"after step {step}", status, run.said())
    row.passed = status == 1
    shutil.rmtree(run.workdir, ignore_errors=True)
    away.rename(run.workdir)
    row.on_disk = run.on_disk()
    return row


def damages(run, rng, bits):
    """Damages of the newest checkpoint: (name, [(file, new content), ...]).

    `bits` single bits flipped, anywhere in its files; every file cut in half.
    """
    newest = run.path("checkpoints", "latest", str(run.on_disk()))
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    contents = {path: path.read_bytes() for path in files if path.stat().st_size}
    sizes = np.array([len(content) for content in contents.values()])
    flipped = []
    for number in rng.choice(len(contents), size=bits, p=sizes / sizes.sum()):
        path = list(contents)[number]
        data = bytearray(contents[path])
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        flipped.append((path, bytes(data)))
    yield "flipped bit", flipped
    yield "file cut in half", [(p, c[: len(c) // 2]) for p, c in contents.items()]


def damage(run, fault, changes):
    """Make each change alone, and read: it must be noticed, or have no effect.

    A change is noticed where an older step is read.

    changes: [(file, its new content)]
    Returns (row, one of the changes that were noticed).
    """
    expected = run.arrays()
    example = None
    counts = {"noticed": 0, "without effect": 0, "read wrong": 0}
    for path, content in changes:
        before = path.read_bytes()
        path.write_bytes(content)
        arrays = run.arrays()
        path.write_bytes(before)
        if arrays["step"] != expected["step"]:
            counts["noticed"] += 1
            example = example or (path, content)
        elif equal(arrays, expected):
            counts["without effect"] += 1
        else:
            counts["read wrong"] += 1
    result = ", ".join(f"{count} {name}" for name, count in counts.items())
    row = Fault(fault, f"{len(changes)}, each alone", on_disk=run.on_disk())
    row.result = result
    row.passed = counts["read wrong"] == 0 and counts["noticed"] > 0
    return row, example


if __name__ == "__main__":
    cli.run(main)
