"""Stored results are used again only for equal models, images and options.

A changed setting leaves them as they are: it is refused, or measured anew.
"""

import copy
import dataclasses
import types

import jax
import numpy as np
import pytest
from flax import linen as nn

from imagepiece_jax.evaluation.result_cache import MeasuredWeights
from imagepiece_jax.inference.write_features import write_features
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import Execution
from imagepiece_jax.models.record import as_json
from imagepiece_jax.models.rotary import Rotary
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise, write_images
from tests.helpers.refused_calls import refused

SIDE = 40  # images above 32 pixels are resized


def changed_models(vit):
    """{setting: the model with another value of it}."""
    config = dataclasses.replace(vit.config, mean=(0.5, 0.5, 0.5))
    fused = vit.model.with_execution(attention_impl="cudnn")
    other_seed = dataclasses.replace(vit.origin, run={"seed": 1})
    counts = tiny_vit.with_fields(tiny_vit.EVIT, keep_rate=0.61)
    return {
        "weights": vit.with_variables(jax.tree.map(np.negative, vit.variables)),
        "mean": dataclasses.replace(vit, model=vit.model.clone(config=config)),
        "reduction": vit.with_reduction(counts),
        "crop": vit.with_preprocessing(crop=0.8),
        "attention": dataclasses.replace(vit, model=fused),
        "drawn": dataclasses.replace(vit, origin=other_seed),
    }


@pytest.fixture(scope="module")
def vit():
    fields = {"name": "vit_mini", "image_size": SIDE, "patch_size": 4, "depth": 3}
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


def test_changed_settings_refuse_a_features_file(vit, tmp_path):
    photographs = write_images(tmp_path / "photographs", noise(3, 50, 44))
    file = tmp_path / "vectors.sqlite"
    write_features(vit, photographs, file)
    before = file.read_bytes()
    models = changed_models(vit)
    for name in ("weights", "mean", "crop", "reduction"):
        with refused("was made with", name):
            write_features(models[name], photographs, file)
    with refused("was made with", "patches"):
        write_features(vit, photographs, file, patches=True)
    assert file.read_bytes() == before


SETTING = {"data": "digits", "digest": "one", "images": 8, "limit": None, "crop": 0.9}
OTHERS = {
    "digest": {"images": types.SimpleNamespace(facts=SETTING | {"digest": "other"})},
    "limit": {"images": types.SimpleNamespace(facts=SETTING | {"limit": 5})},
    "reducers": {"seed": 1},
}


@pytest.mark.parametrize(
    "name", ["weights", "reduction", "attention", "drawn", *OTHERS]
)
def test_changed_settings_are_measured_anew(vit, name):
    measured = MeasuredWeights(vit, types.SimpleNamespace(facts=SETTING))
    changes = OTHERS.get(name) or {"pretrained": changed_models(vit)[name]}
    changed = dataclasses.replace(measured, **changes)
    key = measured.make_result_key("accuracy", vit.reduction)
    assert changed.make_result_key("accuracy", changed.pretrained.reduction) != key
