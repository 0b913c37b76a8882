"""Lines of studies, read and written without their code."""

import json
import pathlib


def read(folder):
    """{name: run} of a folder."""
    text = pathlib.Path(folder, "runs.jsonl").read_text("utf-8")
    runs = [json.loads(line) for line in text.splitlines()]
    return {run["name"]: run for run in runs}


def write(folder, runs):
    """Write {name: run}, in the place of all that is there."""
    lines = [json.dumps({"name": name} | run) + "\n" for name, run in runs.items()]
    pathlib.Path(folder, "runs.jsonl").write_text("".join(lines), "utf-8")
