"""Faults for tiny runs: each function starts a run, injects a fault and waits.

Each takes a `TinyRun`, which may have been started before, and returns a row of the
table; None where the moment was missed. Faults of the disk are undone, so that the run
can be resumed: it must then end like an undisturbed one.
"""

import dataclasses
import errno
import resource
import shutil
import signal
import time

import numpy as np

from tools.tiny_runs import EPOCH, equal

IN_TIME = 30.0  # seconds that a scheduler gives after SIGTERM


@dataclasses.dataclass
class Row:
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
    run.until(run.unfinished, pause=0)
    time.sleep(delay)
    row = _killed(run)
    return row if row and run.unfinished() else None


def _killed(run):
    status = run.end(signal.SIGKILL)
    if status == 0:
        return None
    saving = ", during a save" if run.unfinished() else ""
    row = Row("SIGKILL", f"step {run.step()}{saving}", status)
    row.on_disk, row.passed = run.on_disk(), status == 128 + signal.SIGKILL
    return row


def terminate(run, step, moment="training", signum=signal.SIGTERM, devices=None):
    """A signal after `step`; the last step must be saved in time."""
    return _asked(run, lambda: run.step() >= step, moment, signum, devices)


def terminate_in_evaluation(run):
    """SIGTERM in the next evaluation, which must be abandoned."""

    def evaluating():
        step = run.step()
        there = run.begun() and step and step % EPOCH == 0
        return there and not run.evaluated(step)

    row = _asked(run, evaluating, "evaluation")
    return row if row and evaluating() else None


def terminate_in_compile(run):
    """SIGTERM in the first compile: there is nothing to save, and no time to lose."""
    row = _asked(run, run.begun, "first compile")
    return row if row and run.on_disk() is None else None


def _asked(run, ready, moment, signum=signal.SIGTERM, devices=None):
    run.start(devices)
    run.until(ready)
    began = time.monotonic()
    status = run.end(signum)
    seconds = time.monotonic() - began
    if status == 0:
        return None
    reached, on_disk = run.step(), run.on_disk()
    where = f"{moment}, step {reached}" if reached else moment
    row = Row(signum.name, f"{where}; ended after {seconds:.1f} s", status)
    row.said, row.on_disk = run.said(), on_disk
    in_time = seconds < IN_TIME and status == 128 + signum
    row.passed = in_time and (on_disk or 0) == reached
    return row


def fill_disk(run, step, room, ballast=None):
    """From `step` on only `room` bytes can be written: the run must report it.

    `ballast`: a file to fill the disk of the run with. None: a limit on the size of
    each file, which fails in the same places.
    """
    run.start()
    run.until_step(step)
    if ballast is None:
        limits = (room, resource.RLIM_INFINITY)
        resource.prlimit(run.process.pid, resource.RLIMIT_FSIZE, limits)
    else:
        _fill(ballast, room)
    status = run.end()
    row = Row("full disk", f"room for {room:,} bytes, after step {step}", status)
    row.said, row.on_disk, row.passed = run.said(), run.on_disk(), status == 1
    if ballast is not None:
        ballast.unlink()
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
    row = Row("vanished workdir", f"after step {step}", status, run.said())
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
    """Each of the `changes` alone: noticed, or without effect on what is read.

    Returns (row, one that was noticed). Noticed means that an older step is read.
    """
    whole, example = run.arrays(), None
    counts = {"noticed": 0, "without effect": 0, "read wrong": 0}
    for path, content in changes:
        before = path.read_bytes()
        path.write_bytes(content)
        found = run.arrays()
        path.write_bytes(before)
        if found["step"] != whole["step"]:
            counts["noticed"] += 1
            example = example or (path, content)
        else:
            counts["without effect" if equal(found, whole) else "read wrong"] += 1
    result = ", ".join(f"{count} {name}" for name, count in counts.items())
    row = Row(fault, f"{len(changes)}, each alone", on_disk=run.on_disk())
    row.result, row.passed = result, counts["read wrong"] == 0 and counts["noticed"] > 0
    return row, example


def _fill(path, room):
    """Fill the disk of `path` with it, except for `room` bytes."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(max(file.tell() - room, 0))
