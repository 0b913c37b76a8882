"""Fault injection: tiny runs are killed, damaged and resumed.

    python -m tools.fault_drill --out faults

writes faults.json and faults.md row by row: about 60 runs, and half an hour on two
cores. It ends with status 1 if one of them did not end as it should.
"""

import collections
import contextlib
import dataclasses
import json
import shutil
import subprocess
import tempfile

import jax
import numpy as np
from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.errors import InputError
from tools import faults, tiny_runs

OUT = flags.DEFINE_string("out", "faults", "files to write, without .json and .md")
KILLS = flags.DEFINE_integer("kills", 20, "SIGKILLs at random moments", 1)
SAVES = flags.DEFINE_integer("saves", 4, "how many of them during a save", 0)
SEED = flags.DEFINE_integer("seed", 0, "of the random moments", 0)
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


def main():
    if SAVES.value > KILLS.value:
        raise InputError(
            f"--saves is {SAVES.value}; allowed are 0 to --kills, here {KILLS.value}"
        )
    if not (tiny_runs.ROOT / "train.py").exists():
        raise InputError(
            f"{tiny_runs.ROOT} has no train.py: the drill starts it, and therefore "
            "needs the repository, not only the installed package"
        )
    jax.config.update("jax_platforms", "cpu")  # the GPU is for the runs
    rng, rows = np.random.default_rng(SEED.value), []
    with tempfile.TemporaryDirectory() as folder:
        runs = tiny_runs.TinyRuns(folder)
        for row in drill(runs, rng, KILLS.value, SAVES.value):
            rows.append(dataclasses.asdict(row))
            print(line(rows[-1]), flush=True)
            replace_file(f"{OUT.value}.json", json.dumps(rows, indent=2) + "\n")
            replace_file(f"{OUT.value}.md", table(rows))
    return 0 if all(row["passed"] for row in rows) else 1


def drill(runs, rng, kills, saves):
    """Yield all rows, each when its run has ended."""

    def somewhere(low=1, high=tiny_runs.STEPS - 2):
        return int(rng.integers(low, high))

    def tried(fault, *args, fields=(), folder=""):
        """A row of `fault`, whose moment is drawn again until it is met."""
        row = None
        while row is None:
            run = runs.run(f"{folder}run", **dict(fields))
            row = fault(run, *(draw() for draw in args))
            if row is None:
                run.remove()
        return resumed(runs, run, row)

    for number in range(kills):
        fault = faults.kill_in_save if number < saves else faults.kill
        yield tried(fault, somewhere, lambda: rng.uniform(0, 0.02))
    yield tried(faults.terminate, somewhere)
    reading = "processes read"
    yield tried(
        faults.terminate, somewhere, lambda: reading, fields={"data.workers": 2}
    )
    yield tried(faults.terminate_in_evaluation)
    yield tried(faults.terminate_in_compile)
    yield from damaged(runs, rng, somewhere(24, 50))
    with small_disk(runs.folder / "disk") as ballast:
        for room in (40_000, 0):  # for lines of metrics but no checkpoint; for nothing
            yield tried(
                faults.fill_disk,
                lambda: somewhere(13, 40),
                lambda: room,  # noqa: B023
                lambda: ballast,
                folder="disk/",
            )
    yield tried(faults.vanish, lambda: somewhere(13, 40))
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
    """Damaged checkpoints: many only read, one of each kind resumed from."""
    run = runs.run("damage")
    faults.terminate(run, step)
    for fault, changes in faults.damages(run, rng, BITS):
        row, example = faults.damage(run, fault, changes)
        yield row
        copy = runs.run("copy")
        shutil.copytree(run.workdir, copy.workdir)
        path, content = example
        copy.path(path.relative_to(run.workdir)).write_bytes(content)
        yield resumed(
            runs, copy, faults.Row(fault, "newest checkpoint", on_disk=row.on_disk)
        )
    run.remove()


@contextlib.contextmanager
def small_disk(folder):
    """A disk of 8 MB at `folder`, in memory: yields the path of a file to fill it with.

    None where this process may not mount one.
    """
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount")
        and not subprocess.run(words, capture_output=True).returncode
    )
    try:
        yield folder / "ballast" if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def other_devices(runs, step, before, after):
    """Started on so many CPU devices, stopped, resumed on others."""
    run = runs.run("devices")
    row = faults.terminate(run, step, devices=before)
    row.fault = f"{before} device(s), then {after}"
    row.resumed_from = run.finish(devices=after)
    apart = run.outcome().losses_apart(runs.expected)
    row.passed = row.passed and row.on_disk == row.resumed_from and apart < LOSSES_APART
    row.result = f"losses differ by at most {apart:.1e}"
    run.remove()
    return row


def line(row):
    """One row of the table."""
    cells = ("-" if row[name] in (None, "") else str(row[name]) for name in HEADINGS)
    return "| " + " | ".join(cells) + " |"


def table(rows):
    """Markdown: how many runs of each fault ended as they should, then all rows."""
    tried = collections.Counter(row["fault"] for row in rows)
    passed = collections.Counter(row["fault"] for row in rows if row["passed"])
    counts = [f"| {fault} | {tried[fault]} | {passed[fault]} |" for fault in tried]
    parts = ["| fault | tried | as it should be |", "|---|---|---|", *counts]
    heads = "| " + " | ".join(HEADINGS.values()) + " |"
    parts += ["", heads, "|---" * len(HEADINGS) + "|", *map(line, rows)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    cli.run(main)
