"""LiteRT files have JAX's outputs, and only what a phone's GPU takes."""

import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.commands.benchmark import main as benchmark
from imagepiece_jax.commands.evaluate import main as evaluate
from imagepiece_jax.common.files import read_json, write_json
from imagepiece_jax.exporters import litert_format
from imagepiece_jax.exporters.program_facts import facts_file
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference.features import features
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import open_program
from tests.helpers import tiny_vit
from tests.helpers.litert_runs import count_operators, run_litert
from tests.helpers.picture_files import noise
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close
from tests.helpers.run_command import call
from tests.helpers.small_architectures import (
    ARCHITECTURES,
    covering_architectures,
    narrow_model,
    short_model,
)
from tests.models.test_vit_families import FAMILIES


def check_flatbuffer(model):
    """Return the operators of `model` after comparing its logits with JAX's."""
    variables = tiny_vit.variables(model)
    images = tiny_vit.images(2)
    expected = tiny_vit.logits(model)(variables, images)
    interface = ProgramInterface(Pretrained(model, variables), batch_size=2)
    flatbuffer = litert_format.build_graph(interface)
    operators = count_operators(flatbuffer)
    (logits,) = run_litert(flatbuffer, images)
    assert_close(logits, expected, units=256)
    return operators


# Merges in the middle of a block, merged attention, mean queries, tokens that leave
# before a block; tests/test_targets.py has every method's step.
@pytest.mark.parametrize("name", ["imagepiece", "mctf", "peaks", "spvit"])
def test_models_have_jaxs_logits(name):
    check_flatbuffer(short_model(name))


@pytest.mark.parametrize("name", covering_architectures(FAMILIES | ARCHITECTURES))
def test_architecture_fields_have_jaxs_logits(name):
    check_flatbuffer(narrow_model(name, "tome:r=2:inflection=-1.0"))


@pytest.mark.parametrize("gelu", ["exact", "tanh"])
def test_gelu_is_one_operator(gelu):
    """Its polynomial takes longer than the products around it."""
    model = tiny_vit.model()
    model = model.clone(config=model.config.with_arch(gelu=gelu))
    assert check_flatbuffer(model)["GELU"] == tiny_vit.DEPTH


def test_features_of_pixels_in_both_types(tmp_path):
    """A float16 file has half the weights, and the same tokens leave."""
    vit = tiny_vit.pretrained("evit:keep_rate=0.6:blocks=(1,2)", embed_dim=60)
    pixels = noise(3, tiny_vit.SIDE, tiny_vit.SIDE)
    expected = features(vit, pixels)
    assert expected.dropped.any()
    options = {"batch_size": 2, "output": "features", "pixels": True}
    sizes = []
    for dtype, tolerance in (("float32", 1e-4), ("float16", 0.02)):
        file = tmp_path / f"{dtype}.tflite"
        imagepiece_jax.export(vit, file, dtype=dtype, **options)
        sizes.append(file.stat().st_size)
        program = open_program(file)
        assert program.model.execution.dtype == dtype
        close = {"rtol": tolerance, "atol": tolerance}
        for name in ProgramInterface(vit, "features").output_names:
            values = getattr(expected, name)
            np.testing.assert_allclose(program(pixels, name), values, **close)
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("ending", [".onnx", ".tflite"])
def test_commands_run_a_file_and_its_self_test(tmp_path, ending):
    pytest.importorskip("onnxruntime")
    vit = tiny_vit.pretrained("tome:r=4")
    file = imagepiece_jax.export(vit, tmp_path / f"a{ending}", batch_size=1)
    ended = call(benchmark, str(file), "--seconds", "0", "--repeats", "1").ok()
    assert file.name in ended.out
    call(evaluate, str(file), "--self-test").ok()
    facts = read_json(facts_file(file))
    facts["self_test"]["first_values"][3] += 2 * facts["self_test"]["tolerance"]
    write_json(facts_file(file), facts)
    assert call(evaluate, str(file), "--self-test").status == 1


def test_what_a_litert_file_cannot_have_is_refused(tmp_path):
    vit = tiny_vit.pretrained()
    with refused("batch_size", "--batch-size 1"):
        imagepiece_jax.export(vit, tmp_path / "a.tflite")
    with refused("reduction", "draws random numbers"):
        vit = vit.with_reduction("random:blocks=(1,)")
        imagepiece_jax.export(vit, tmp_path / "a.tflite", batch_size=1)
    assert not [*tmp_path.iterdir()]
