"""A run's folder: its config, its starts and its class names.

`config.json` is the full config. A folder belongs to one config; a resume may change
only `MAY_CHANGE`. `run.json` has an entry per start. `classes.json` has the class names
by label, if the data has names.
"""

import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time

from flax import traverse_util

from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.version import KEY_LIBRARIES
from imagepiece_jax.data.class_names import ClassNames
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.record import list_differences
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.weights import folder_files
from imagepiece_jax.weights.folder_files import CONFIG_FILE

RUN_FILE = "run.json"
# Fields that a resumed run may change. Its images may have moved, because their digest
# is in the checkpoint.
MAY_CHANGE = (
    *("data.name", "data.dir", "data.workers", "data.threads"),
    *("checkpoint_every_steps", "keep_every_steps", "log_every_steps"),
    *("max_skipped_steps", "progress", "profile"),
)
CHOOSE_OTHER_WORKDIR = "choose another workdir"
NO_FIELD = "not a field"


def has_steps(workdir: str | os.PathLike) -> bool:
    """Whether a run in `workdir` has a checkpoint."""
    checkpoints = pathlib.Path(workdir) / folder_files.CHECKPOINTS_FOLDER
    return bool(folder_files.complete_steps(checkpoints / "latest"))


def read_earlier_model(workdir: str | os.PathLike) -> ViTConfig | None:
    """Read the model of the run in `workdir`; None before its first checkpoint."""
    config_file = pathlib.Path(workdir) / CONFIG_FILE
    if not (has_steps(workdir) and config_file.is_file()):
        return None
    return RunConfig.from_config(folder_files.read_run_file(config_file)).vit_config


def check_config(workdir: str | os.PathLike, config: dict) -> None:
    """Check that `workdir` holds no steps of another config, and no saved model.

    All fields except `MAY_CHANGE` must be equal; 1, 1.0 and True differ.
    """
    config_path = pathlib.Path(workdir) / CONFIG_FILE
    if not has_steps(workdir):  # another config can start here
        is_run = config_path.with_name(RUN_FILE).exists()
        if config_path.exists() and not is_run:
            raise InputError(f"{config_path} is not a run's; {CHOOSE_OTHER_WORKDIR}")
        return
    old_fields = encode_fields(folder_files.read_run_file(config_path))
    differences = list_differences(encode_fields(config), old_fields)
    for name, value, old_value in differences:  # a value is None on one side at most
        if name not in MAY_CHANGE:
            raise InputError(
                f"config.{name} is {value or NO_FIELD}, but {old_value or NO_FIELD} in "
                f"the run in {workdir}; change it back, or {CHOOSE_OTHER_WORKDIR}, "
                f"which may start with --config.init.weights={workdir}"
            )


def record_start(
    workdir: str | os.PathLike, config: dict, class_names: ClassNames | None = None
) -> None:
    """Write `config.json` and `classes.json`, and add this start to `run.json`.

    class_names: of the training data; None: names in the folder stay
    """
    workdir = pathlib.Path(workdir)
    check_config(workdir, config)
    starts = []
    if (workdir / RUN_FILE).exists():
        starts = files.read_json(workdir / RUN_FILE).get("starts", [])
    start = {
        "git": files.git_revision(),  # null if git does not track the code
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": sys.argv,
        "python": platform.python_version(),
        "devices": [device.device_kind for device in parallel.local_devices()],
        "libraries": {name: importlib.metadata.version(name) for name in KEY_LIBRARIES},
    }
    starts.append(start)
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / RUN_FILE, {"starts": starts})
    files.write_json(workdir / CONFIG_FILE, config)
    if class_names is not None:
        names_json = json.dumps(class_names, indent=0, ensure_ascii=False)
        files.replace_file(workdir / folder_files.CLASS_NAMES_FILE, names_json + "\n")


def encode_fields(config: dict) -> dict[str, str]:
    """Flatten a config to {"a.b": "1"}: as JSON text, 1, 1.0 and true differ."""
    fields = traverse_util.flatten_dict(config, keep_empty_nodes=True, sep=".")
    # An empty group, the only value that JSON does not have, becomes {}.
    encode = functools.partial(json.dumps, default=lambda _: {})
    return {name: encode(value) for name, value in fields.items()}
