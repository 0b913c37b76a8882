import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax import Preprocessing, Pretrained
from imagepiece_jax.weights.save import DENSE_FILE
from imagepiece_jax.weights.tensor_files import read_state_dict
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.weights.test_load import same

TOME = "tome:r=4"
DYNAMICVIT = "dynamicvit:blocks=(1,):keep_rate=0.6"
GIVEN = {"config": tiny_vit.model().config}


@pytest.fixture(scope="module")
def dense():
    return tiny_vit.pretrained()


def test_a_pretrained_made_by_hand_has_defaults(dense):
    assert dense.label == str(dense.reduction) == "none"
    assert dense.preprocessing == Preprocessing(tiny_vit.SIDE)
    assert (dense.class_names, dense.origin.path) == (None, None)
    early = tiny_vit.pretrained("token_learner:block=0")
    assert str(early.reduction) == "token_learner:block=0"
    by_hand = tiny_vit.model().clone(plan=early.model.plan)
    assert Pretrained(by_hand, early.variables).reduction is None


@pytest.fixture
def file(tmp_path, dense):
    return tiny_vit.write(tmp_path / "w.npz", dense.variables)


def test_weights_at_another_size_equal_loaded_ones(file):
    size = (12, 24)
    loaded = imagepiece_jax.load(file, **GIVEN)
    expected = imagepiece_jax.load(file, image_size=size, reduction=TOME, **GIVEN)
    for resized in (
        loaded.with_reduction(TOME).at_size(size),
        loaded.at_size(size).with_reduction(TOME),
    ):
        assert resized.model == expected.model
        assert same(resized.variables, expected.variables)
        assert resized.origin.image_size == tiny_vit.SIDE
        assert resized.digest == expected.digest != loaded.digest


def test_positions_are_resized_once(tmp_path, file):
    """The trained ones are saved, bit for bit, whatever the model's size."""
    original = imagepiece_jax.load(file, **GIVEN)
    larger = imagepiece_jax.load(file, image_size=28, **GIVEN)
    saved = imagepiece_jax.save(larger, tmp_path / "saved")
    tensors = [read_state_dict(x)["pos_embed"] for x in (file, saved / DENSE_FILE)]
    np.testing.assert_array_equal(*tensors)
    again = imagepiece_jax.load(saved)
    assert same(again.variables, larger.variables)
    assert again.image_size == 28
    for vit in (larger, again, original.at_size(28)):
        assert same(vit.at_size(tiny_vit.SIDE).variables, original.variables)
        assert same(vit.at_size(40).variables, original.at_size(40).variables)
    trained = larger.with_variables(larger.variables)  # further, at this size
    assert same(trained.at_size(28).variables, larger.variables)
    assert not same(trained.at_size(40).variables, larger.at_size(40).variables)


def test_only_a_models_own_size_may_be_no_multiple():
    """Pixels beyond whole patches are cut, as in SigLIP So400m/14 at 384 pixels."""
    vit = tiny_vit.pretrained(image_size=22)
    assert vit.at_size(22).model == vit.model
    for size in (26, 13_392):  # the second has too many pixels
        with refused("image_size"):
            vit.at_size(size)


def test_counts_of_one_size_are_refused_at_another(dense, tmp_path):
    tome = dense.with_reduction("tome:macs=0.5")
    with refused("counts"):
        tome.at_size(8 * tiny_vit.SIDE)
    imagepiece_jax.save(tome, tmp_path / "saved")
    with refused("counts", str(tmp_path / "saved")):
        imagepiece_jax.load(tmp_path / "saved", image_size=8 * tiny_vit.SIDE)


def test_another_crop_changes_preprocessing_alone(dense):
    vit = dense.with_reduction(TOME).with_preprocessing(crop=0.7, rule="transformers")
    expected = Preprocessing(tiny_vit.SIDE, crop=0.7, rule="transformers")
    assert vit.preprocessing == expected
    assert vit.model.plan == tiny_vit.model(TOME).plan
    assert same(vit.variables, dense.variables)
    with refused("image_size", "at_size"):
        vit.with_preprocessing(image_size=24)


def test_another_reduction_keeps_the_weights(dense):
    tome = dense.with_reduction(TOME)
    assert tome.model == tiny_vit.model(TOME)
    assert same(tome.variables, dense.variables)
    assert tome.label == str(tome.reduction) == TOME
    plain = dense.with_reduction(f"{TOME}:prop_attn=False")
    assert not plain.model.prop_attn
    again = dense.with_reduction(plain.reduction)  # prop_attn stays
    assert (again.model, again.reduction) == (plain.model, plain.reduction)
    assert tome.with_reduction(None).model == dense.model


def test_learned_selectors_stay_with_the_weights(tmp_path, dense):
    with refused("reducer_1"):
        dense.with_reduction(DYNAMICVIT)
    fresh = dense.with_reduction(DYNAMICVIT, seed=1)
    assert fresh.untrained_kinds and fresh.label.endswith("(untrained selectors)")
    assert not fresh.with_reduction(TOME).untrained_kinds
    learned = tiny_vit.pretrained(DYNAMICVIT)
    tiny_vit.write(tmp_path / "w.npz", learned.variables)
    loaded = imagepiece_jax.load(tmp_path / "w.npz", reduction=DYNAMICVIT, **GIVEN)
    for vit in (learned, loaded):
        slower = vit.with_reduction(tiny_vit.with_fields(DYNAMICVIT, keep_rate=0.8))
        assert not slower.untrained_kinds
        assert same(slower.variables, vit.variables)
    # A reduction without selectors loses none of a file's.
    again = loaded.with_reduction(TOME)
    assert "reducer_1" not in again.variables["params"]
    assert same(again.with_reduction(DYNAMICVIT).variables, learned.variables)
