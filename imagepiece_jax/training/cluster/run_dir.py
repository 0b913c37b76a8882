"""The folder of a run: its config, its starts and its classes.

`config.json` is the full config. A folder belongs to one config; only some fields may
change when a run is resumed. `run.json` has an entry for each start. `classes.json` has
the names of the classes by label, if there are any.
"""

import importlib.metadata
import json
import pathlib
import platform
import sys
import time
from typing import NamedTuple

from flax import traverse_util

from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.version import LIBRARIES
from imagepiece_jax.data.decode import EXTENSIONS
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.record import differences
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.logging import read_metrics
from imagepiece_jax.weights.run_files import (
    CHECKPOINTS,
    CLASSES,
    CONFIG,
    check_format,
    read_class_names,
)

RUN = "run.json"
CLOCK = "%Y-%m-%d %H:%M:%S %z"  # form of times in run.json
# Fields that may change when a run is resumed. Its images may have moved: a checkpoint
# has their digest.
MAY_CHANGE = (
    *("data.name", "data.dir", "data.workers", "data.threads"),
    *("checkpoint_every_steps", "keep_every_steps", "log_every_steps"),
    *("max_skipped_steps", "progress", "profile"),
)
OTHER = "choose another workdir"
NO_FIELD = "not a field"


def took_steps(workdir):
    """Whether a run in `workdir` has a checkpoint, or metrics of a step.

    If not, another config can start there without spoiling anything.
    """
    checkpoints = (pathlib.Path(workdir) / CHECKPOINTS).glob("*/*")
    if any(folder.name.isdecimal() for folder in checkpoints):
        return True
    return any(line["step"] > 0 for line in read_metrics(workdir))


class Earlier(NamedTuple):
    """What the folder of a run says of its earlier steps."""

    model: ViTConfig
    class_names: tuple[str | None, ...] | None


def read_earlier(workdir) -> Earlier | None:
    """The Earlier of the run in `workdir`; None where no step was taken there."""
    folder = pathlib.Path(workdir)
    path = folder / CONFIG
    if not (took_steps(folder) and path.is_file()):
        return None
    config = _read_config(path)
    try:
        run = RunConfig.from_config(config)
    except InputError as error:
        raise InputError(f"{path}: {error}; {OTHER}") from error
    return Earlier(run.model, read_class_names(folder, run.num_classes))


def _read_config(path):
    """The config of a run, at the path of its CONFIG."""
    config = files.read_json(path)
    try:
        check_format(config)
    except InputError as error:
        raise InputError(f"{path}: {error}; {OTHER}") from error
    return config


def check_place(workdir, data: str):
    """Check that a new run would not be written among images.

    data: its config.data.name
    Raises InputError for a folder inside the data, or with images in it.
    """
    folder = pathlib.Path(workdir).resolve()
    if (folder / CONFIG).exists():
        return
    _, _, path = data.partition(":")
    images = pathlib.Path(path).expanduser().resolve()
    if path and images.is_dir() and folder.is_relative_to(images):
        raise InputError(f"workdir {workdir} is in {images}, the data; {OTHER}")
    for level in ("*", "*/*", "*/*/*"):  # images, classes and splits
        for file in folder.glob(level):
            if file.suffix.lower() in EXTENSIONS:
                raise InputError(f"workdir {workdir} holds images; {OTHER}")


def check_config(workdir, config: dict):
    """Check that `workdir` holds no run that took a step with another config.

    Every field must be equal but `MAY_CHANGE`; 1, 1.0 and True are three values.

    config: nested dict of JSON values (tuples count as lists)
    Raises InputError for the first field that differs, with the ways out, for a run
        that has lost its config.json, and for a config.json of anything else, such as a
        saved model, which would be replaced.
    """
    path = pathlib.Path(workdir) / CONFIG
    begun = took_steps(workdir)
    if path.exists() and not (path.with_name(RUN).exists() or begun):
        raise InputError(f"{path} is not of a run; {OTHER}")
    if begun and not path.exists():
        raise InputError(f"{workdir} holds a run without {CONFIG}; {OTHER}")
    if not begun:
        return
    old = _flat(_read_config(path))
    new = _flat(json.loads(json.dumps(config)))
    for name, now, before in differences(new, old):
        if name not in MAY_CHANGE:
            raise InputError(
                f"config.{name} is {now or NO_FIELD}, but {before or NO_FIELD} in the "
                f"run in {workdir}; change it back, or {OTHER}, which may start from "
                f"this one's weights: --config.init.weights={workdir}"
            )


def record_start(workdir, config: dict):
    """Write `config.json` and add this start to `run.json`, with versions and devices.

    The git revision is null outside a git repository.
    Raises InputError as `check_config` does.
    """
    workdir = pathlib.Path(workdir)
    check_config(workdir, config)
    starts = []
    if (workdir / RUN).exists():
        starts = files.read_json(workdir / RUN).get("starts", [])
    starts.append(
        {
            "git": files.git_revision(),
            "time": time.strftime(CLOCK),
            "command": sys.argv,
            "python": platform.python_version(),
            "devices": [str(d.device_kind) for d in parallel.local_devices()],
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        }
    )
    workdir.mkdir(parents=True, exist_ok=True)
    files.write_json(workdir / RUN, {"starts": starts})
    files.write_json(workdir / CONFIG, config)


def record_classes(workdir, names):
    """Write the names of the classes that a run is trained on; None writes nothing."""
    if names is not None:
        text = json.dumps(names, indent=0, ensure_ascii=False)
        files.replace_file(pathlib.Path(workdir) / CLASSES, text + "\n")


def flat_fields(config):
    """Fields of a config as {"a.b": 1}; an empty group is a field {}."""
    fields = traverse_util.flatten_dict(config, keep_empty_nodes=True, sep=".")
    for name, value in fields.items():
        if value is traverse_util.empty_node:
            fields[name] = {}
    return fields


def _flat(config):
    """`flat_fields` with values as JSON text, in which 1, 1.0 and true differ."""
    return {name: json.dumps(value) for name, value in flat_fields(config).items()}
