"""What parity tests measured, for the table of docs/tables/parity.md."""

import importlib.metadata
import json
import os
import pathlib

PACKAGES = ("jax", "timm", "torch", "transformers")


def record(**row):
    """Append a row, with versions, to the file that PARITY_RECORD names, if any."""
    if path := os.environ.get("PARITY_RECORD"):
        row |= {package: importlib.metadata.version(package) for package in PACKAGES}
        with pathlib.Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
