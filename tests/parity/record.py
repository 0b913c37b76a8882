"""What parity tests measured, for the table of docs/models.md."""

import json
import os
import pathlib


def record(**row):
    """Append a row to the file that PARITY_RECORD names; nothing without one."""
    if path := os.environ.get("PARITY_RECORD"):
        with pathlib.Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
