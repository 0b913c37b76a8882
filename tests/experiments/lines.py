"""Lines of studies, read and written without their code."""

import functools
import json
import pathlib


@functools.cache
def committed(folder):
    """{name: run} of a folder, relative to the repository."""
    root = pathlib.Path(__file__).resolve().parents[2]
    return read(root / folder)


def read(folder):
    """{name: run} of a folder that tests write."""
    text = pathlib.Path(folder, "runs.jsonl").read_text("utf-8")
    runs = [json.loads(line) for line in text.splitlines()]
    return {run["name"]: run for run in runs}


def write(folder, runs):
    """Write {name: run}, in the place of all that is there."""
    lines = [json.dumps({"name": name} | run) + "\n" for name, run in runs.items()]
    pathlib.Path(folder, "runs.jsonl").write_text("".join(lines), "utf-8")
