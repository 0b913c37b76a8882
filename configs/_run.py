"""An existing run's config, to resume it by its folder.

python train.py --workdir runs/quickstart
"""

import json
import pathlib

from configs import base


def get_config(workdir):
    """Read the fields of `workdir`/config.json."""
    fields = json.loads(pathlib.Path(workdir, "config.json").read_text("utf-8"))
    fields.pop("format")
    config = base.get_config()
    with config.ignore_type():
        update(config, fields)
    return config


def update(config, fields):
    """Set the fields of a config and its groups; tuples are lists in JSON."""
    for name, value in fields.items():
        if isinstance(value, dict):
            update(config[name], value)
        else:
            config[name] = tuple(value) if isinstance(value, list) else value
