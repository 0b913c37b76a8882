"""The files of a weights folder and of a run's folder: names, and small ones read."""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from imagepiece_jax.common.files import read_json
from imagepiece_jax.data.class_names import ClassNames, checked_names
from imagepiece_jax.data.sources import registry
from imagepiece_jax.errors import InputError, earlier_revision, titled_errors

JsonFields = Mapping[str, Any]  # of a JSON file
# Errors of parsers for content of an unknown form.
PARSER_ERRORS = (ArithmeticError, AttributeError, IndexError, TypeError, ValueError)
# Files that tell which model the weights are.
CONFIG_FILE = "config.json"  # of timm, transformers, `save` and runs
OWN_KEY = "imagepiece_jax"  # key of this package's own part in CONFIG_FILE
OPEN_CLIP_FILE = "open_clip_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"  # for images and text, since transformers 5
INDEX_ENDING = ".index.json"  # ending of the file that lists a sharded file's parts
# Weights files in order of preference. OpenCLIP's come last, because its repositories
# often hold transformers' weights too.
WEIGHTS_FILES = """
    model.safetensors model.safetensors.index.json pytorch_model.bin
    pytorch_model.bin.index.json model.npz model.pth pytorch_model.pth
    open_clip_model.safetensors open_clip_pytorch_model.bin
""".split()
# Names of files that tell something about the weights, beside them.
FACT_FILES = (CONFIG_FILE, OPEN_CLIP_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE)
FACT_FILES += tuple(name for name in WEIGHTS_FILES if name.endswith(INDEX_ENDING))
# Endings of weights files with any other name.
WEIGHTS_ENDINGS = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")
# Files beside a saved model's weights.
SELECTORS_FILE = "selectors.safetensors"  # learned by a reduction
RECOVERED_FILE = "recovered.safetensors"  # parameters of recovered variants
LEARNED_FILES = (SELECTORS_FILE, RECOVERED_FILE)
# Files in a run's folder.
RUN_FORMAT = 2  # of a run's config.json and checkpoints
CLASS_NAMES_FILE = "classes.json"  # class names by label, if the data have names
CHECKPOINTS_FOLDER = "checkpoints"  # the folder of weights
CHECKPOINT_KINDS = ("latest", "best")  # kinds of checkpoints
LOG_FILES = ("run.json", "metrics.jsonl")  # files that only a run writes


@contextlib.contextmanager
def content_errors(file: str | os.PathLike) -> Iterator[None]:
    """Name a file in the errors of parsing its content."""
    with titled_errors(file):
        try:
            yield
        except InputError:
            raise
        except KeyError as error:
            raise InputError(f"it has no {error.args[0]}") from error
        except PARSER_ERRORS as error:
            raise InputError(f"it has an unknown field: {error}") from error


def read_run_file(file: pathlib.Path) -> dict[str, Any]:
    """Read the config of a run."""
    config_fields = read_json(file)
    with titled_errors(file):
        check_run_format(config_fields)
    return config_fields


def check_run_format(config_fields: Mapping[str, Any]) -> None:
    """Refuse a run's config in another format."""
    if config_fields.get("format") != RUN_FORMAT:
        raise earlier_revision("the run")


def read_class_names(folder: pathlib.Path, num_classes: int) -> ClassNames | None:
    """Read a run's `num_classes` names by label; None if the run has no names."""
    path = folder / CLASS_NAMES_FILE
    if not path.exists():
        return None
    try:
        return checked_names(json.loads(path.read_text("utf-8")), num_classes)
    except (ValueError, TypeError) as error:  # InputError, too
        raise InputError(f"{path}: {error}") from error


def complete_steps(folder: pathlib.Path) -> list[int]:
    """List the completely written steps in a folder of checkpoints, in order."""
    # An unfinished step has a longer name. `glob` allows a missing folder.
    names = [path.name for path in folder.glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def list_input_files(*inputs: str | os.PathLike) -> list[pathlib.Path]:
    """List the files of a command's inputs, which its outputs may not overwrite.

    inputs: paths of weights, and names of data such as csv:FILE; files that belong to
        them are listed whether they exist or not
    """
    files = []
    for path_or_name in inputs:
        path_text = os.fspath(path_or_name)
        if registry.find_form(path_text).endswith(":FILE"):
            _, _, path_text = path_text.partition(":")  # without "csv:"
        path = pathlib.Path(path_text).expanduser()
        files += [path, path.with_name(f"{path.name}.json")]  # it describes an .onnx
        files += [path / name for name in (CLASS_NAMES_FILE, *LOG_FILES, *FACT_FILES)]
    return files
