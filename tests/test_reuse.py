"""Stored results are used again only for equal models, images and options.

A changed setting leaves them as they are: it is refused, or measured anew.
"""

import copy
import dataclasses
import types

import jax
import pytest
from flax import linen as nn

from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.result_cache import MeasuredWeights, ResultCache
from imagepiece_jax.inference.write_features import write_features
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import Execution
from imagepiece_jax.models.record import as_json
from imagepiece_jax.models.rotary import Rotary
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise, write_images

SIDE = 40  # images above 32 pixels are resized
HALF = (0.5, 0.5, 0.5)


def with_config(vit, config):
    return dataclasses.replace(vit, model=vit.model.clone(config=config))


def fused(vit):
    model = vit.model.with_execution(attention_impl="cudnn")
    return dataclasses.replace(vit, model=model)


def other_weights(vit):
    variables = jax.tree.map(lambda leaf: leaf, vit.variables)
    variables["params"]["norm"]["bias"] = variables["params"]["norm"]["bias"] + 1
    return vit.with_variables(variables)


MODELS = {
    "weights": other_weights,
    "mean": lambda vit: with_config(vit, dataclasses.replace(vit.config, mean=HALF)),
    "dtype": lambda vit: vit.with_default_execution("bfloat16"),
    "gelu": lambda vit: with_config(vit, vit.config.with_arch(gelu="tanh")),
    "image_size": lambda vit: vit.with_reduction(None).at_size(36),
    "counts": lambda vit: vit.with_reduction(
        tiny_vit.with_fields(tiny_vit.EVIT, keep_rate=0.61)
    ),
}
OF_DEVICE = {"attention_impl": fused}
IMAGES = {"crop": lambda vit: vit.with_preprocessing(crop=0.8)}
OPTIONS = {"patches": True}


@pytest.fixture(scope="module")
def vit():
    fields = {
        "name": "vit_mini",
        "num_heads": tiny_vit.HEADS,
        "patch_size": tiny_vit.PATCH,
    }
    fields |= {"embed_dim": tiny_vit.WIDTH, "depth": tiny_vit.DEPTH, "image_size": SIDE}
    fields |= {"num_classes": tiny_vit.CLASSES, "mlp_ratio": 4.0}
    loaded = tiny_vit.loaded_model("tiny.npz", tiny_vit.EVIT, **fields)
    return loaded.with_variables(tiny_vit.variables(loaded.model))


MODEL = tiny_vit.model(tiny_vit.EVIT)
LAYER = MODEL.plan[1]
PARTS = [LAYER, LAYER.step, LAYER.step.reducer, LAYER.counts]
PARTS += [MODEL, MODEL.config, Execution(), Architecture(), Rotary()]


@pytest.mark.parametrize("whole", PARTS, ids=lambda whole: type(whole).__name__)
def test_every_field_is_in_a_record(whole):
    record = as_json(whole)
    of_flax = ("parent", "name") if isinstance(whole, nn.Module) else ()
    for field in dataclasses.fields(whole):
        changed = copy.copy(whole)
        object.__setattr__(changed, field.name, "another")
        decides = field.compare and field.name not in of_flax
        assert (as_json(changed) != record) == decides, field.name


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    return [*map(str, write_images(folder, noise(3, 50, 44)))]


@pytest.fixture(scope="module")
def vectors(vit, photographs, tmp_path_factory):
    file = tmp_path_factory.mktemp("features") / "vectors.sqlite"
    write_features(vit, photographs, file)
    return file


@pytest.mark.parametrize("name", ["weights", "mean", "counts", *IMAGES, *OPTIONS])
def test_changed_settings_refuse_a_features_file(vit, photographs, vectors, name):
    changed = (MODELS | IMAGES).get(name, lambda vit: vit)(vit)
    options = {name: OPTIONS[name]} if name in OPTIONS else {}
    before = vectors.read_bytes()
    with pytest.raises(InputError, match="was made with") as error:
        write_features(changed, photographs, vectors, **options)
    if name != "counts":
        assert name in str(error.value)
    assert vectors.read_bytes() == before


SETTING = {"data": "digits", "digest": "one", "images": 8, "limit": None, "crop": 0.9}
OF_IMAGES = {"digest": "other", "limit": 5}


@pytest.fixture
def measured(vit, tmp_path):
    """MeasuredWeights with a measured accuracy of the unchanged model."""
    images = types.SimpleNamespace(facts=SETTING)
    new = MeasuredWeights(vit, images, ResultCache(tmp_path))
    new.cache.measure_once(new.make_result_key("accuracy", vit.reduction), dict)
    return new


def is_measured(weights):
    calls = []
    key = weights.make_result_key("accuracy", weights.vit.reduction)
    weights.cache.measure_once(key, lambda: calls.append(1) or {})
    return not calls


OF_SEED = ("drawn", "reducers")


@pytest.mark.parametrize(
    "name", ["weights", "counts", *OF_DEVICE, *OF_IMAGES, *OF_SEED]
)
def test_changed_settings_are_measured_anew(vit, measured, name):
    changes = {}
    if name in MODELS | OF_DEVICE:
        changes["vit"] = (MODELS | OF_DEVICE)[name](vit)
    elif name in OF_IMAGES:
        facts = SETTING | {name: OF_IMAGES[name]}
        changes["images"] = types.SimpleNamespace(facts=facts)
    elif name == "reducers":
        changes["seed"] = 1
    else:
        origin = dataclasses.replace(vit.origin, run={"seed": 1})
        changes["vit"] = dataclasses.replace(vit, origin=origin)
    changed = dataclasses.replace(measured, **changes)
    assert is_measured(measured)
    assert not is_measured(changed)
