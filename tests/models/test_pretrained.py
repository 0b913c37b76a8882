"""A trained model as one object: defaults, other reductions, and its former form."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax import Preprocessing, Pretrained
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import convert
from tests.models import tiny

DENSE = {"name": "none"}
TOME = {"name": "tome", "r": 4}
DYNAMICVIT = {"name": "dynamicvit", "blocks": (1,), "keep_rate": 0.6}
GIVEN = {"name": "vit_mini", "num_heads": tiny.HEADS}


def same(one, other):
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


@pytest.fixture(scope="module")
def dense():
    model = tiny.model()
    return Pretrained(model, tiny.variables(model))


def test_a_model_that_someone_made_has_defaults(dense):
    assert dense.reduction == {"name": "none"} and dense.label == "dense"
    assert dense.preprocessing == Preprocessing(tiny.SIDE) == Preprocessing(20)
    for size in (0, (20, -4), (20, 20, 3), 20.0):
        with pytest.raises(InputError, match="^image_size is .*; allowed: pixels a"):
            Preprocessing(size)
    assert (dense.class_names, dense.name, dense.origin) == (None, None, None)
    early = tiny.model({"name": "token_learner", "block": 0})
    vit = Pretrained(early, tiny.variables(early))
    assert vit.image_size == tiny.SIDE and vit.reduction is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, {}), "model and variables are of types NoneType and dict; allowed"),
        (({}, tiny.model()), "model and variables are of types dict and ViT; allowed"),
        ((tiny.model(), {}), 'allowed: a ViT, .* and a dict with "params"'),
        (
            (tiny.model(image_size=(12, 20)), {"params": {}}),
            "the model's 15 patches are no square; allowed: Preprocessing",
        ),
        (
            (tiny.model(), {"params": {}}, {"r": 4}),
            "reduction is {'r': 4}, which has no name",
        ),
        (
            (tiny.model(TOME), {"params": {}}, TOME | {"r": 5}),
            "reduction is {'name': 'tome', 'r': 5}, but model.plan is another for ima",
        ),
        ((tiny.model(TOME), {"params": {}}, DENSE), "model.plan is another"),
        ((tiny.model(), {"params": {}}, TOME), "model.plan is another"),
        (
            (tiny.model(TOME), {"params": {}}, TOME | {"prop_attn": False}),
            "prop_attn of reduction is False, but model.prop_attn is True; allowed:",
        ),
        (
            (tiny.model(), {"params": {}}, {"name": "evit", "blocks": (5,)}),
            "^reduction has a step at block 5; allowed: the model's blocks 0 to 2",
        ),
        (
            (tiny.model(DYNAMICVIT, masked=True), {"params": {}}, DYNAMICVIT),
            "model.plan is another for images of 20x20; .* with masked=False",
        ),
        ((tiny.model(), {"params": {}}, {"name": "tom"}), "did you mean tome"),
        (
            (tiny.model(), {"params": {}}, None, {"crop": 0.9}),
            "preprocessing is {'crop': 0.9}; allowed: a Preprocessing",
        ),
        (
            (tiny.model(), {"params": {}}, None, None, ["a"]),
            "class_names has length 1; allowed: .* 7 classes",
        ),
        (
            (tiny.model(), {"params": {}}, None, None, "abcdefg"),
            "class_names is 'abcdefg'; allowed: a name, or None, for each of the",
        ),
        (
            (tiny.model(), {"params": {}}, None, None, 7),
            "class_names is 7; allowed: a name",
        ),
        (
            (tiny.model(), {"params": {}}, None, None, ["a"] * 3 + [b"b"] * 4),
            "class_names has b'b' for class 3; allowed: strings, and None",
        ),
    ],
)
def test_what_is_no_trained_model(arguments, message):
    with pytest.raises(InputError, match=message):
        Pretrained(*arguments)


def test_the_same_weights_with_another_reduction(dense):
    tome = dense.with_reduction(TOME)
    assert tome.model == tiny.model(TOME) and tome.model.prop_attn
    assert same(tome.variables, dense.variables) and tome.reduction == TOME
    assert tome.label == "tome r=4" and tome.gmacs < dense.gmacs
    assert dense.reduction == {"name": "none"}  # which is not changed
    plain = dense.with_reduction(TOME | {"prop_attn": False})
    assert not plain.model.prop_attn and plain.reduction == TOME | {"prop_attn": False}
    again = dense.with_reduction(plain.reduction)  # as it was, whoever set it
    assert again.model == plain.model and again.reduction == plain.reduction
    assert tome.with_reduction(None).model == dense.model
    with pytest.raises(InputError, match="^reduction has a step at block 5; allowed"):
        dense.with_reduction({"name": "evit", "blocks": (5,)})


def test_learned_selectors_stay_with_the_weights(tmp_path, dense):
    """Fresh ones are asked for by a seed, and said to be untrained."""
    with pytest.raises(InputError, match="the model has no reducer_1, a selector that"):
        dense.with_reduction(DYNAMICVIT)
    fresh = dense.with_reduction(DYNAMICVIT, seed=1)
    assert fresh.untrained and fresh.label.endswith("(untrained selectors)")
    assert not fresh.with_reduction(TOME).untrained
    model = tiny.model(DYNAMICVIT)
    learned = Pretrained(model, tiny.variables(model), DYNAMICVIT)
    np.savez(tmp_path / "w.npz", **convert.to_timm(learned.variables))
    loaded = imagepiece_jax.load(tmp_path / "w.npz", reduction=DYNAMICVIT, **GIVEN)
    for vit in (learned, loaded):
        slower = vit.with_reduction(DYNAMICVIT | {"keep_rate": 0.8})
        assert not slower.untrained and same(slower.variables, vit.variables)
    # A reduction without selectors loses none of a file's.
    again = loaded.with_reduction(TOME)
    assert "reducer_1" not in again.variables["params"]
    assert same(again.with_reduction(DYNAMICVIT).variables, learned.variables)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reduction": 3}, "reduction is 3; allowed: a dict with a name and fields"),
        (
            {"preprocessing": 0.9},
            "preprocessing is 0.9; allowed: a dict of crop, crop_mode",
        ),
        ({"class_names": ["a"]}, "class_names has length 1; allowed: .* 7 classes"),
        ({"num_classes": 3, "seed": "a"}, "seed is 'a'; allowed: whole numbers"),
        ({"num_classes": "x"}, "num_classes is 'x'; allowed: whole numbers from 0"),
    ],
)
def test_what_load_refuses(tmp_path, dense, changes, message):
    np.savez(tmp_path / "w.npz", **convert.to_timm(dense.variables))
    with pytest.raises(InputError, match=message):
        imagepiece_jax.load(tmp_path / "w.npz", **changes, **GIVEN)


def test_selectors_are_those_of_the_variables(tmp_path, dense):
    """Drawn ones stay untrained; ones trained after loading replace the file's."""
    fresh = dense.with_reduction(DYNAMICVIT, seed=1)
    with pytest.raises(InputError, match="the model has no reducer_1, a selector that"):
        fresh.with_reduction(DYNAMICVIT | {"keep_rate": 0.8})
    model = tiny.model(DYNAMICVIT)
    np.savez(tmp_path / "w.npz", **convert.to_timm(tiny.variables(model)))
    loaded = imagepiece_jax.load(tmp_path / "w.npz", reduction=DYNAMICVIT, **GIVEN)
    trained = jax.tree.map(lambda leaf: leaf + 1, loaded.variables)
    vit = dataclasses.replace(loaded, variables=trained)
    slower = vit.with_reduction(DYNAMICVIT | {"keep_rate": 0.8})
    assert not slower.untrained and same(slower.variables, trained)
    dense = vit.with_reduction(None)
    assert same(dense.with_reduction(DYNAMICVIT).variables, trained)
    with pytest.raises(InputError, match="seed is 'a'; allowed: whole numbers"):
        dense.with_reduction(
            {"name": "spvit", "blocks": (1,), "keep_rates": (0.6,)}, seed="a"
        )


def test_a_pair_is_no_longer_what_load_returns(dense):
    message = "one object, not a pair; write vit = load.*vit.model and vit.variables$"
    with pytest.raises(InputError, match=message):
        _model, _variables = dense
    with pytest.raises(InputError, match=message):
        dense[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda *pair: imagepiece_jax.optimize(*pair, batch_size=1),
        lambda *pair: imagepiece_jax.Predictor(*pair, labels="imagenet"),
        lambda *pair: imagepiece_jax.features(*pair, tiny.images()),
        lambda *pair: imagepiece_jax.features(images=tiny.images(), model=pair[0]),
        lambda *pair: imagepiece_jax.save("folder", *pair),
        lambda *pair: imagepiece_jax.features(tiny.images(), Pretrained(*pair)),
    ],
)
def test_a_model_and_variables_are_given_as_one(dense, call):
    message = r"^(\w+)\(\) takes a trained model as one object; write "
    message += r"\1\((vit, \.\.|folder, vit)\), where"
    with pytest.raises(InputError, match=message):
        call(dense.model, dense.variables)


def test_a_tensor_that_is_not_finite_is_named_with_its_file(tmp_path, dense):
    tensors = convert.to_timm(dense.variables)
    tensors["head.bias"] = tensors["head.bias"] * np.nan
    np.savez(tmp_path / "w.npz", **tensors)
    with pytest.raises(InputError, match="^weights file .*w.npz: tensor head.bias hol"):
        imagepiece_jax.load(tmp_path / "w.npz", **GIVEN)


def test_a_loaded_model_can_be_given_to_another_process(tmp_path, dense):
    np.savez(tmp_path / "w.npz", **convert.to_timm(dense.variables))
    vit = imagepiece_jax.load(tmp_path / "w.npz", **GIVEN)
    again = pickle.loads(pickle.dumps(vit))
    assert again.model == vit.model and same(again.variables, vit.variables)
    assert same(dict(again.origin.tensors), dict(vit.origin.tensors))
