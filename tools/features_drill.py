"""The command features that is killed again and again, and its memory.

    python -m tools.features_drill --report drill

writes drill.json: moments at which processes were killed, whether the folder that the
last one completed has the bits of an uninterrupted one, and the highest memory of runs
over few files and many. It ends with status 1 where the bits differ. A tiny model and
files of noise: some minutes on two cores.
"""

import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from imagepiece_jax import cli
from imagepiece_jax.common import signals
from imagepiece_jax.common.files import write_json
from imagepiece_jax.errors import RunError
from tools.recovery_drill import SIZE, write_weights
from tools.tiny_runs import PATIENCE, ROOT, cached

REPORT = cli.text("report", None, "the file to write, without .json")
ENDS = cli.integer("ends", 5, "that a process is killed", 1)
PHOTOGRAPHS = cli.integer("photographs", 2000, "over which they are killed", 64)
FILES = cli.listed("files", ["1000", "20000"], "of the runs whose memory is read")
SEED = cli.integer("seed", 0, "of the moments", 0)

WORDS = ["--reduction=evit:keep_rate=.5:blocks=(0,1)", "--patches"]
WORDS += ["--batch=8", "--threads=2"]
DAMAGED = 3  # files


class Killed(NamedTuple):
    """A process that was killed."""

    rows: int  # that its folder was to have before
    found: int  # that it had
    seconds: float  # since the start


def write_photographs(folder, count, damaged=0):
    """Images of noise in a new folder, of which some hold something else."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    side = SIZE["image_size"]
    for number in range(count):
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06}.png")
    for number in np.linspace(5, count - 2, damaged).astype(int):
        (folder / f"{number:06}.png").write_bytes(b"no image")


def start(folder, photographs, out):
    """The process of a command that writes features of a folder of photographs."""
    words = ["features", f"--weights={folder}/weights", f"--data={photographs}"]
    with open(folder / "log", "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "imagepiece_jax", *words, f"--out={out}", *WORDS],
            cwd=ROOT,
            env=cached(folder / "cache") | {"JAX_PLATFORMS": "cpu"},
            stdout=log,
            stderr=log,
        )


def rows(out):
    """How many rows of pooled vectors a folder has, by the size of the file."""
    for name in ("pooled.npy", "pooled.npy.unfinished"):
        file = out / name
        if file.exists():
            return max(0, file.stat().st_size - 128) // (2 * SIZE["embed_dim"])
    return 0


def killed(folder, photographs, out, wanted):
    """The Killed of a process that ends where its folder has the wanted rows."""
    began = time.monotonic()
    process = start(folder, photographs, out)
    while rows(out) < wanted or not out.exists():
        if process.poll() is not None or time.monotonic() - began > PATIENCE:
            raise RunError(f"it did not reach row {wanted}: see {folder}/log")
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return Killed(wanted, rows(out), round(time.monotonic() - began, 2))


def completed(folder, photographs, out):
    """The highest memory, in MB, of a process that completes a folder; Linux's word."""
    process = start(folder, photographs, out)
    highest = 0
    while process.poll() is None:
        with contextlib.suppress(OSError):  # it has just ended
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"VmHWM:\s*(\d+) kB", status):
                highest = int(found[1])
        time.sleep(0.02)
    if process.returncode:
        raise RunError(f"it ended with {process.returncode}: see {folder}/log")
    return round(highest / 1e3, 1)


def content(out):
    """The bytes of every file of a folder."""
    return {file.name: file.read_bytes() for file in sorted(out.iterdir())}


def drill(folder, kills, photographs, files, rng):
    """All that was found, as JSON values."""
    write_weights(folder / "weights")
    images = folder / "photographs"
    write_photographs(images, photographs, DAMAGED)
    whole = folder / "whole"
    completed(folder, images, whole)
    out = folder / "killed"
    moments = [0, *np.sort(rng.integers(0, photographs - 32, kills - 1)).tolist()]
    found = [killed(folder, images, out, wanted) for wanted in moments]
    completed(folder, images, out)
    info = json.loads((out / "info.json").read_text("utf-8"))
    memory = {}
    for count in files:
        many = folder / f"{count}"
        write_photographs(many, count)
        memory[f"{count}"] = completed(folder, many, folder / f"of {count}")
    return {
        "photographs": photographs,
        "damaged": DAMAGED,
        "complete": info["complete"],
        "killed": [kill._asdict() for kill in found],
        "same": content(whole) == content(out),
        "memory": memory,
    }


def main():
    out = cli.required(REPORT)
    jax.config.update("jax_platforms", "cpu")
    rng = np.random.default_rng(SEED.value)
    files = [int(count) for count in FILES.value]
    with tempfile.TemporaryDirectory() as folder, signals.unfinished(folder):
        folder = pathlib.Path(folder)
        found = drill(folder, ENDS.value, PHOTOGRAPHS.value, files, rng)
    write_json(f"{out}.json", found)
    print(json.dumps(found, indent=2))
    return 0 if found["same"] else 1


if __name__ == "__main__":
    cli.run(main)
