"""The self-test of an exported file: its first outputs for a photograph of ours."""

import jax
import numpy as np

from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.data import pictures
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference import optimize, size_direction
from imagepiece_jax.models.program import ExportedProgram

PHOTOGRAPH = "panda.jpg"
NUM_VALUES = 16
# The largest difference, as a share of the largest value. Measured on DeiT-Ti (dense,
# 0.5) in onnxruntime and LiteRT: float32 up to 2.6e-6, float16 up to 0.0077, int8 up to
# 0.30. GPUs sum in other types, and a near tie moves a token. Swapped colors differ by
# 0.70, and rows in reverse by 0.61.
TOLERANCES = {"float32": 1e-3, "float16": 0.05, "int8": 0.5}


def expected_facts(interface: ProgramInterface, dtype: str) -> dict:
    """Compute the first outputs for the photograph in JAX, in float32, as JSON values.

    dtype: of the file
    """
    pretrained = interface.pretrained
    model = pretrained.with_default_execution().model
    model, variables = optimize.fold_and_cast(model, pretrained.variables)
    pixels = _read_photograph(pretrained.preprocessing)
    images = normalize(pixels, pretrained.config.mean, pretrained.config.std)
    if interface.channels_first:
        images = images.transpose(0, 3, 1, 2)  # [1, 3, H, W]
    # A single image: compiling takes longer than computing, so it is not optimized.
    options = {"xla_backend_optimization_level": 0}
    forward = jax.jit(interface.make_forward_function(model), compiler_options=options)
    with announced_work("computing the self-test's values"):
        first_output, *_ = jax.device_get(forward(variables, images))
    first_values = first_output.ravel()[:NUM_VALUES]
    return {
        "photograph": PHOTOGRAPH,
        "output": interface.output_names[0],
        "first_values": first_values.tolist(),
        "tolerance": TOLERANCES[dtype] * float(np.abs(first_values).max()),
    }


def find_difference(program: ExportedProgram) -> tuple[float, float]:
    """Run a file's self-test: (largest difference from JAX's values, tolerance)."""
    test_facts = program.facts.get("self_test")
    if test_facts is None:
        raise InputError(f"{program.origin.title} has no self-test; export it again")
    pixels = _read_photograph(program.config.preprocessing)
    expected_values = np.asarray(test_facts["first_values"])
    values = program(pixels, test_facts["output"]).ravel()[: len(expected_values)]
    return float(np.abs(values - expected_values).max()), test_facts["tolerance"]


def _read_photograph(preprocessing):
    """Prepared pixels of the photograph, [1, H, W, 3] uint8."""
    if not preprocessing.resizes:  # it would take only images of the model's size
        preprocessing = Preprocessing(preprocessing.image_size, crop=1.0)
    path = size_direction.PHOTOGRAPH_FOLDER / PHOTOGRAPH
    pixels, _ = pictures.read_images(pictures.as_source(path), preprocessing)
    return pixels
