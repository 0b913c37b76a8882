"""Exported files in place of weights."""

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.export.onnx_program import KIND, OnnxProgram
from imagepiece_jax.models.pretrained import WeightsSource
from tests.models import tiny

PIXELS = np.zeros((24, tiny.SIDE, tiny.SIDE, 3), np.uint8)
USES = {
    "export": lambda program, out: imagepiece_jax.export(program, out / "a.onnx"),
    "features": lambda program, out: imagepiece_jax.features(program, PIXELS[:1]),
    "optimize": lambda program, out: imagepiece_jax.optimize(program, batch_size=1),
    "Predictor": lambda program, out: imagepiece_jax.Predictor(program),
    "recover": lambda program, out: imagepiece_jax.recover(program, PIXELS),
}


@pytest.mark.parametrize("use", USES)
def test_what_needs_weights_refuses_an_exported_file(use, tmp_path):
    program = OnnxProgram(
        model=tiny.model("tome:r=3"),
        dense_variables={"params": {}},
        class_names=tuple("abcdefg")[: tiny.CLASSES],
        source=WeightsSource(path=tmp_path / "a.onnx", kind=KIND, name="a.onnx"),
        session=None,
        input_name="images",
        input_dtype="float32",
        batch_size=None,
        channels_first=False,
        recovered_name=None,
    )
    with pytest.raises(InputError, match=r"a\.onnx is an exported program"):
        USES[use](program, tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_last_part_is_filled_up_with_its_last_image():
    """Black images would extend the ranges that calibrate int8."""
    vit = tiny.pretrained()
    program = OnnxProgram(
        model=vit.model,
        dense_variables={"params": {}},
        session=None,
        input_name="images",
        input_dtype="uint8",
        batch_size=2,
        channels_first=False,
        recovered_name=None,
    )
    pixels = np.arange(1, 4, dtype=np.uint8).reshape(3, 1, 1, 1)
    parts = [part.ravel().tolist() for part in program.parts(pixels)]
    assert parts == [[1, 2], [3, 3]]
