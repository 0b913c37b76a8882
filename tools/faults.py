"""What may happen to a run? One function a fault: start it, hurt it, wait for its end.

Each takes a trial, which may have gone on for a while already, and returns a row of the
table; None where the moment was missed. What is wrong with the disk is mended again, so
that the run can go on: it must then end as one that nothing happened to.
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
    """One fault, and what came of it."""

    fault: str
    moment: str
    status: int | None = None  # exit status of the hurt run; 128 + n: by signal n
    said: str = ""  # its last words
    on_disk: int | None = None  # newest step on disk then
    resumed_from: int | None = None
    result: str = ""
    passed: bool = True


def kill(trial, step, delay=0.0):
    """SIGKILL `delay` seconds after `step`."""
    trial.start()
    trial.until_step(step)
    time.sleep(delay)
    return _killed(trial)


def kill_in_save(trial, step, delay=0.0):
    """SIGKILL in a save after `step`: an unfinished checkpoint must be left."""
    trial.start()
    trial.until_step(step)
    trial.until(trial.unfinished, pause=0)
    time.sleep(delay)
    row = _killed(trial)
    return row if row and trial.unfinished() else None


def _killed(trial):
    status = trial.end(signal.SIGKILL)
    if status == 0:
        return None
    saving = ", during a save" if trial.unfinished() else ""
    row = Row("SIGKILL", f"step {trial.step()}{saving}", status)
    row.on_disk, row.passed = trial.on_disk(), status == 128 + signal.SIGKILL
    return row


def terminate(trial, step, moment="training", signum=signal.SIGTERM, devices=None):
    """A signal after `step`; what was done must be saved in time."""
    return _asked(trial, lambda: trial.step() >= step, moment, signum, devices)


def terminate_in_evaluation(trial):
    """SIGTERM in the next evaluation, which must not be finished first."""

    def evaluating():
        step = trial.step()
        there = trial.begun() and step and step % EPOCH == 0
        return there and not trial.evaluated(step)

    row = _asked(trial, evaluating, "evaluation")
    return row if row and evaluating() else None


def terminate_in_compile(trial):
    """SIGTERM in the first compile: there is nothing to save, and no time to lose."""
    row = _asked(trial, trial.begun, "first compile")
    return row if row and trial.on_disk() is None else None


def _asked(trial, ready, moment, signum=signal.SIGTERM, devices=None):
    trial.start(devices)
    trial.until(ready)
    began = time.monotonic()
    status = trial.end(signum)
    seconds = time.monotonic() - began
    if status == 0:
        return None
    reached, on_disk = trial.step(), trial.on_disk()
    where = f"{moment}, step {reached}" if reached else moment
    row = Row(signum.name, f"{where}; ended after {seconds:.1f} s", status)
    row.said, row.on_disk = trial.said(), on_disk
    in_time = seconds < IN_TIME and status == 128 + signum
    row.passed = in_time and (on_disk or 0) == reached
    return row


def fill_disk(trial, step, room, ballast=None):
    """From `step` on nothing can be written but `room` bytes: the run must say so.

    `ballast`: a file to fill the disk of the run with. None: a limit on the size of
    each file, which fails in the same places.
    """
    trial.start()
    trial.until_step(step)
    if ballast is None:
        limits = (room, resource.RLIM_INFINITY)
        resource.prlimit(trial.process.pid, resource.RLIMIT_FSIZE, limits)
    else:
        _fill(ballast, room)
    status = trial.end()
    row = Row("full disk", f"room for {room:,} bytes, after step {step}", status)
    row.said, row.on_disk, row.passed = trial.said(), trial.on_disk(), status == 1
    if ballast is not None:
        ballast.unlink()
    return row


def vanish(trial, step):
    """The run's folder is moved away after `step`, and back when the run has ended.

    A save that has just begun may make the folder anew; the next one notices.
    """
    away = trial.workdir.with_name("away")
    trial.start()
    trial.until_step(step)
    trial.workdir.rename(away)
    status = trial.end()
    row = Row("vanished workdir", f"after step {step}", status, trial.said())
    row.passed = status == 1
    shutil.rmtree(trial.workdir, ignore_errors=True)
    away.rename(trial.workdir)
    row.on_disk = trial.on_disk()
    return row


def damages(trial, rng, bits):
    """What is done to the newest checkpoint: (name, [(file, new content), ...]).

    `bits` single bits flipped, anywhere in its files; every file cut in half.
    """
    newest = trial.path("checkpoints", "latest", str(trial.on_disk()))
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


def damage(trial, fault, changes):
    """Each of the `changes` alone: noticed, or without effect on what is read.

    Returns (row, one that was noticed). Noticed means that an older step is read.
    """
    whole, example = trial.arrays(), None
    counts = {"noticed": 0, "without effect": 0, "read wrong": 0}
    for path, content in changes:
        before = path.read_bytes()
        path.write_bytes(content)
        found = trial.arrays()
        path.write_bytes(before)
        if found["step"] != whole["step"]:
            counts["noticed"] += 1
            example = example or (path, content)
        else:
            counts["without effect" if equal(found, whole) else "read wrong"] += 1
    told = ", ".join(f"{count} {name}" for name, count in counts.items())
    row = Row(fault, f"{len(changes)}, each alone", on_disk=trial.on_disk())
    row.result, row.passed = told, counts["read wrong"] == 0 and counts["noticed"] > 0
    return row, example


def _fill(path, room):
    """Fill the disk of `path` up with it, but for `room` bytes."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        file.truncate(max(file.tell() - room, 0))
