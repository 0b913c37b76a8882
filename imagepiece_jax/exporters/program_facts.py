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
from imagepiece_jax.exporters.program_outputs import ProgramOutputs
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import as_json

REQUIRED_FACTS = {"input", "output", "preprocessing"}  # every program has these


def facts_file(out: str | os.PathLike) -> pathlib.Path:
    """Path of the JSON file beside the program in file `out`."""
    return pathlib.Path(f"{out}.json")


def read_facts(out: str | os.PathLike) -> dict[str, Any]:
    """Read the facts about the program in file `out`; {} if they are unreadable."""
    try:
        return read_json(facts_file(out))
    except (InputError, OSError):
        return {}


def is_export(out: str | os.PathLike) -> bool:
    """Whether the JSON beside file `out` is a program's."""
    return REQUIRED_FACTS <= {*read_facts(out)}


def read_program_facts(out: str | os.PathLike, kind: str) -> dict[str, Any]:
    """Read the facts about the program in file `out`, which export wrote with it.

    kind: of the file, for messages
    Raises InputError for a file without such facts, or with another program's.
    """
    file = facts_file(out)
    facts = read_json(file) if file.exists() else {}
    if not REQUIRED_FACTS <= {*facts}:
        raise InputError(
            f"{kind} {out} lacks the {file.name} that export writes beside it"
        )
    if facts.get("digest") != graph_digest(out):
        raise InputError(
            f"{kind} {out} and {file.name} are not from the same export, or from an "
            "earlier version; export the model again"
        )
    return facts


def write_program_facts(out: str | os.PathLike, facts: Mapping[str, Any]) -> None:
    """Write the facts about the program in file `out`, with its digest."""
    write_json(facts_file(out), {**facts, "digest": graph_digest(out)})


def graph_digest(out: str | os.PathLike) -> str:
    """SHA-256 of a graph, by which its JSON knows it; it names its weights by one."""
    with open(out, "rb") as graph:
        return hashlib.file_digest(graph, "sha256").hexdigest()


def program_files(out: str | os.PathLike) -> list[pathlib.Path]:
    """The program's file, and the second file of a program with large weights."""
    out = pathlib.Path(out)
    files = [out]
    if weights := read_facts(out).get("external_data"):
        files.append(out.with_name(weights))
    return files


def output_dtype(dtype: np.dtype) -> np.dtype:
    """Dtype of an output for a JAX dtype: floats are float32, as programs expect."""
    if jnp.issubdtype(dtype, jnp.floating):
        return np.dtype(np.float32)
    return stored_dtype(dtype)


def collect_facts(
    vit: Pretrained,
    outputs: ProgramOutputs | None = None,
    batch_size: int | None = None,
    pixels: bool = False,
) -> dict[str, Any]:
    """Collect facts about an exported program as JSON values.

    outputs: the program's outputs; None: logits
    batch_size, pixels: as for `ProgramOutputs.input_images`
    """
    outputs = outputs or ProgramOutputs(vit)
    images = outputs.input_images(batch_size, pixels)
    model = outputs.model
    config = model.config
    output_arrays = jax.eval_shape(
        outputs.forward_function(model), vit.variables, images
    )

    def array_facts(name: str, array: jax.ShapeDtypeStruct) -> dict[str, Any]:
        shape = [side if isinstance(side, int) else str(side) for side in array.shape]
        return {"name": name, "shape": shape, "dtype": output_dtype(array.dtype).name}

    output_facts = [*map(array_facts, outputs.output_names, output_arrays)]
    if len(output_facts) == 1:
        output_facts = output_facts[0]
    if pixels:
        normalization = {"pixels": "0 to 255, normalized by the model"}
    else:
        normalization = {
            "pixels": "0 to 1, of which the input is (pixels - mean) / std",
            "mean": config.mean,
            "std": config.std,
        }
    preprocessing = vit.preprocessing.as_json
    if vit.preprocessing.resizes:
        preprocessing["resized"] = list(vit.preprocessing.resized_size)
    has_classes = "logits" in outputs.output_names and vit.config.head.is_classifier
    method = None  # a plan made by hand has no method
    if vit.reduction is not None:
        method = str(vit.reduction)
    return {
        "input": array_facts(outputs.input_name, images),
        "normalization": normalization,
        "output": output_facts,
        "classes": config.num_classes,
        "class_names": vit.class_names,
        "problem_type": config.problem_type if config.num_classes else None,
        "activation": config.head.activation if has_classes else None,
        "preprocessing": preprocessing,
        "model": as_json(config),
        "method": method,
        "recovered": vit.recovered_variant and vit.recovered_variant.name,
        "dtype": model.execution.dtype.name,
        "gmacs": model_macs(model) / 1e9,
    }
