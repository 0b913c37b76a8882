"""The config of a run that there is, by its folder, to resume it.

python train.py --workdir runs/quickstart
"""

import json
import pathlib

from configs import base


def get_config(workdir):
    """The fields of `workdir`/config.json."""
    fields = json.loads(pathlib.Path(workdir, "config.json").read_text("utf-8"))
    fields.pop("format")
    config = base.get_config()
    with config.ignore_type():
        update(config, fields)
    return config


def update(config, fields):
    """Set the fields of a config and of its groups; JSON has lists for tuples."""
    for name, value in fields.items():
        if isinstance(value, dict):
            update(config[name], value)
        else:
            config[name] = tuple(value) if isinstance(value, list) else value
