"""Facts in the JSON beside an exported program: its input, output and model."""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.files import read_json, write_json
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.onnx_graph import stored_dtype
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.models.record import as_json

REQUIRED_FACTS = {"input", "output", "preprocessing"}  # every program has these


def facts_file(graph_file: str | os.PathLike) -> pathlib.Path:
    """Path of the JSON file beside the program in `graph_file`."""
    return pathlib.Path(f"{graph_file}.json")


def read_facts(graph_file: str | os.PathLike) -> dict[str, Any]:
    """Read the facts about the program in `graph_file`.

    Returns {} if they are unreadable, or if export did not write them.
    """
    try:
        facts = read_json(facts_file(graph_file))
    except (InputError, OSError):
        return {}
    return facts if REQUIRED_FACTS <= facts.keys() else {}


def write_program_facts(graph_file: str | os.PathLike, facts: Mapping) -> None:
    """Write the facts about the program in `graph_file`, with its digest."""
    write_json(facts_file(graph_file), {**facts, "digest": graph_digest(graph_file)})


def graph_digest(graph_file: str | os.PathLike) -> str:
    """SHA-256 of a graph's file, which names a second file by its weights' digest."""
    with open(graph_file, "rb") as opened_file:
        return hashlib.file_digest(opened_file, "sha256").hexdigest()


def program_files(graph_file: str | os.PathLike) -> list[pathlib.Path]:
    """The program's file, and the second file of a program with large weights."""
    files = [pathlib.Path(graph_file)]
    if weights_name := read_facts(graph_file).get("external_data"):
        files.append(files[0].with_name(weights_name))
    return files


def output_dtype(dtype: np.dtype) -> np.dtype:
    """Dtype of an output for a JAX dtype: floats are float32, as programs expect."""
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float32)
    return stored_dtype(dtype)


def collect_facts(interface: ProgramInterface) -> dict[str, Any]:
    """Collect facts about an exported program as JSON values."""
    pretrained = interface.pretrained
    config = pretrained.config
    forward = interface.make_forward_function(pretrained.model)
    output_specs = jax.eval_shape(forward, pretrained.variables, interface.input_spec)

    def array_facts(name, spec):
        shape = [side if isinstance(side, int) else str(side) for side in spec.shape]
        return {"name": name, "shape": shape, "dtype": output_dtype(spec.dtype).name}

    facts_of_outputs = [*map(array_facts, interface.output_names, output_specs)]
    if interface.takes_pixels:
        normalization = {"pixels": "0 to 255, normalized by the model"}
    else:
        pixels_text = "0 to 1, of which the input is (pixels - mean) / std"
        normalization = {"pixels": pixels_text, "mean": config.mean, "std": config.std}
    preprocessing = pretrained.preprocessing.as_json
    if pretrained.preprocessing.resizes:
        # (height, width), for readers who do not have our rules
        preprocessing["resized"] = list(pretrained.preprocessing.resized_size)
    gives_classes = "logits" in interface.output_names and config.head.is_classifier
    return {
        "input": array_facts(interface.input_name, interface.input_spec),
        "normalization": normalization,
        # A single output stands without a list.
        "output": facts_of_outputs if facts_of_outputs[1:] else facts_of_outputs[0],
        "classes": config.num_classes,
        "class_names": pretrained.class_names,
        "problem_type": config.problem_type if config.num_classes else None,
        "activation": config.head.activation if gives_classes else None,
        "preprocessing": preprocessing,
        "model": as_json(config),
        # A plan made by hand has no method.
        "method": pretrained.reduction and str(pretrained.reduction),
        "recovered": pretrained.recovered_variant and pretrained.recovered_variant.name,
        "dtype": pretrained.model.execution.dtype.name,
        "gmacs": pretrained.gmacs,
    }
