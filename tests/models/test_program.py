import imagepiece_jax
from imagepiece_jax.models import program
from tests.helpers.refused_calls import refused


def test_another_ending_is_refused(tmp_path):
    assert program.is_exported("m.ONNX") and not program.is_exported("model.npz")
    for use in (program.open_program, imagepiece_jax.evaluate):
        with refused("m.engine", "does not end in .onnx"):
            use(tmp_path / "m.engine")
