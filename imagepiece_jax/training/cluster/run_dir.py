"""A run's folder: its config, its starts and its class names.

`config.json` is the full config. A folder belongs to one config; a resume may change
only `MAY_CHANGE`. `run.json` has an entry per start. `classes.json` has the class names
by label, if the data has names.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from flax import traverse_util

from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.version import KEY_LIBRARIES
from imagepiece_jax.data.decode import image_extensions
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.record import list_differences
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import read_metrics
from imagepiece_jax.weights.run_files import (
    CHECKPOINTS_FOLDER,
    CLASS_NAMES_FILE,
    CONFIG_FILE,
    check_run_format,
    read_class_names,
)

RUN_FILE = "run.json"
TIME_FORMAT = "%Y-%m-%d %H:%M:%S %z"  # time format in run.json
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
    """Whether a run in `workdir` has a checkpoint, or metrics of a step."""
    # Unfinished checkpoints have names that are not decimal.
    checkpoints = (pathlib.Path(workdir) / CHECKPOINTS_FOLDER).glob("*/*")
    if any(folder.name.isdecimal() for folder in checkpoints):
        return True
    return any(line["step"] > 0 for line in read_metrics(workdir))


class EarlierRun(NamedTuple):
    """Facts in a run's folder about its earlier steps."""

    model: ViTConfig
    class_names: tuple[str | None, ...] | None


def read_earlier_run(workdir: str | os.PathLike) -> EarlierRun | None:
    """Read the EarlierRun in `workdir`; None before its first step."""
    folder = pathlib.Path(workdir)
    config_file = folder / CONFIG_FILE
    if not (has_steps(folder) and config_file.is_file()):
        return None
    config = _read_run_config(config_file)
    try:
        run_config = RunConfig.from_config(config)
    except InputError as error:
        raise InputError(f"{config_file}: {error}; {CHOOSE_OTHER_WORKDIR}") from error
    class_names = read_class_names(folder, run_config.num_classes)
    return EarlierRun(run_config.vit_config, class_names)


def _read_run_config(path: pathlib.Path) -> dict:
    config = files.read_json(path)
    try:
        check_run_format(config)
    except InputError as error:
        raise InputError(f"{path}: {error}; {CHOOSE_OTHER_WORKDIR}") from error
    return config


def check_workdir_place(workdir: str | os.PathLike, data_name: str) -> None:
    """Raise InputError for a new run inside its data, or among images.

    data_name: config.data.name, with a path after a ":", such as "folder:/data/birds"
    """
    folder = pathlib.Path(workdir).resolve()
    if (folder / CONFIG_FILE).exists():  # not a new run
        return
    _, _, data_path = data_name.partition(":")
    data_folder = pathlib.Path(data_path).expanduser().resolve()
    if data_path and data_folder.is_dir() and folder.is_relative_to(data_folder):
        raise InputError(
            f"workdir {workdir} is inside the data, {data_folder}; "
            f"{CHOOSE_OTHER_WORKDIR}"
        )
    for glob_pattern in ("*", "*/*", "*/*/*"):  # images, classes and splits
        for file in folder.glob(glob_pattern):
            if file.suffix.lower() in image_extensions():
                raise InputError(
                    f"workdir {workdir} holds images; {CHOOSE_OTHER_WORKDIR}"
                )


def check_config(workdir: str | os.PathLike, config: dict) -> None:
    """Check that `workdir` holds no steps of another config.

    All fields except `MAY_CHANGE` must be equal; 1, 1.0 and True differ.

    config: nested dict of JSON values (tuples count as lists)
    Raises InputError for the first field that differs, a run without its config.json,
        and a config.json of anything else than a run.
    """
    config_path = pathlib.Path(workdir) / CONFIG_FILE
    has_begun = has_steps(workdir)
    # Another config.json, such as a saved model's, would be replaced.
    if config_path.exists() and not (
        config_path.with_name(RUN_FILE).exists() or has_begun
    ):
        raise InputError(f"{config_path} is not a run's config; {CHOOSE_OTHER_WORKDIR}")
    if has_begun and not config_path.exists():
        raise InputError(
            f"{workdir} holds a run without {CONFIG_FILE}; {CHOOSE_OTHER_WORKDIR}"
        )
    if not has_begun:  # another config can start here without spoiling anything
        return
    old_fields = _encode_fields(_read_run_config(config_path))
    # Through JSON, so that tuples are lists.
    new_fields = _encode_fields(json.loads(json.dumps(config)))
    for name, value, old_value in list_differences(new_fields, old_fields):
        if name not in MAY_CHANGE:
            raise InputError(
                f"config.{name} is {value or NO_FIELD}, but {old_value or NO_FIELD} in "
                f"the run in {workdir}; change it back, or {CHOOSE_OTHER_WORKDIR}, "
                "which may start from this one's weights: --config.init.weights="
                f"{workdir}"
            )


def record_start(
    workdir: str | os.PathLike,
    config: dict,
    class_names: Sequence[str | None] | None = None,
) -> None:
    """Write `config.json` and `classes.json`, and add this start to `run.json`.

    class_names: of the training data; None: names in the folder stay
    """
    workdir = pathlib.Path(workdir)
    check_config(workdir, config)
    starts = []
    if (workdir / RUN_FILE).exists():
        starts = files.read_json(workdir / RUN_FILE).get("starts", [])
    starts.append(describe_start())
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / RUN_FILE, {"starts": starts})
    files.write_json(workdir / CONFIG_FILE, config)
    if class_names is not None:
        names_json = json.dumps(class_names, indent=0, ensure_ascii=False)
        files.replace_file(workdir / CLASS_NAMES_FILE, names_json + "\n")


def describe_start() -> dict[str, Any]:
    """Code, time, command and machine of a start, as JSON values."""
    return {
        "git": files.git_revision(),  # null if git does not track the code
        "time": time.strftime(TIME_FORMAT),
        "command": sys.argv,
        "python": platform.python_version(),
        "devices": [str(d.device_kind) for d in parallel.local_devices()],
        "libraries": {name: importlib.metadata.version(name) for name in KEY_LIBRARIES},
    }


def flatten_fields(config: dict) -> dict[str, Any]:
    """Flatten a config to {"a.b": 1}; an empty group is a field {}."""
    fields = traverse_util.flatten_dict(config, keep_empty_nodes=True, sep=".")
    empty_group = traverse_util.empty_node
    return {n: {} if value is empty_group else value for n, value in fields.items()}


def _encode_fields(config: dict) -> dict[str, str]:
    """`flatten_fields` with values as JSON text, in which 1, 1.0 and true differ."""
    return {name: json.dumps(value) for name, value in flatten_fields(config).items()}
