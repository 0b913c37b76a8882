import dataclasses
import functools
import shutil

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import imagepiece_jax
from imagepiece_jax import load
from imagepiece_jax.models.recovery_record import Recovery
from tests.helpers import made_up_recoveries, tiny_vit
from tests.helpers.made_up_recoveries import TOME
from tests.helpers.refused_calls import refused

LARGER = 2 * tiny_vit.SIDE
MORE = "tome:r=6"
COSTS = (TOME, MORE)


@pytest.fixture(scope="module")
def public():
    return tiny_vit.pretrained()


@pytest.fixture(scope="module")
def vit(public):
    """A dense model that was recovered at two costs."""
    return made_up_recoveries.recovered(public, reductions=COSTS)


@pytest.fixture(scope="module")
def folder(vit, tmp_path_factory):
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("recovered") / "m")


def flat_params(vit):
    return traverse_util.flatten_dict(vit.variables["params"], sep="/")


def assert_has(vit, values):
    leaves = flat_params(vit)
    chex.assert_trees_all_equal({path: leaves[path] for path in values}, values)


def test_the_dense_model_is_unchanged(public, vit, folder, tmp_path):
    original = imagepiece_jax.save(public, tmp_path / "public")
    saved_again = imagepiece_jax.save(load(folder, reduction=MORE), tmp_path / "again")
    for dense in (
        vit.with_reduction(TOME).with_reduction(None),
        load(saved_again, reduction="none"),
        load(folder / "model.safetensors", config=tiny_vit.model().config),
    ):
        chex.assert_trees_all_equal(dense.variables, public.variables)
        assert dense.label == "none"
    tensors = safetensors.numpy.load_file(original / "model.safetensors")
    ours = safetensors.numpy.load_file(folder / "model.safetensors")
    chex.assert_trees_all_equal(ours, tensors)


@pytest.mark.parametrize("number", [0, 1])
def test_a_reduction_has_the_values_of_its_cost(public, vit, folder, capsys, number):
    expected = made_up_recoveries.moved_values(public, number)
    reduction = COSTS[number]
    forms = [vit.with_reduction(reduction), load(folder, reduction=reduction)]
    forms.append(vit.with_reduction(COSTS[1 - number]).with_reduction(reduction))
    for form in forms:
        assert_has(form, expected)
        assert form.label == f"{reduction} (recovered)"
        chex.assert_trees_all_equal(form.dense_variables, public.variables)
    assert not capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*drawn from a seed")
@pytest.mark.parametrize("classes", [0, 3])
def test_another_head_takes_the_fitting_values(public, folder, classes):
    form = load(folder, reduction=TOME, num_classes=classes)
    expected = made_up_recoveries.moved_values(public)
    assert_has(form, {k: v for k, v in expected.items() if not k.startswith("head")})
    biases = [v.shape for k, v in flat_params(form).items() if k == "head/bias"]
    assert biases == [(3,)] * bool(classes)


def test_an_unrecovered_reduction_has_dense_values(public, vit, folder, capsys):
    for reduce in (vit.with_reduction, functools.partial(load, folder)):
        reduced = reduce(reduction="tome:r=5")
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith("tome:r=5: not recovered")
        chex.assert_trees_all_equal(reduced.variables, public.variables)
    for known in (None, TOME, MORE):
        vit.with_reduction(known)
    load(folder)
    assert not capsys.readouterr().err


def test_another_model_or_other_parameters_do_not_keep_a_variants_values(public, vit):
    form = vit.with_reduction(TOME)
    for reduction in (MORE, None):
        other = vit.with_reduction(reduction)
        replaced = dataclasses.replace(form, model=other.model)
        chex.assert_trees_all_equal(replaced.variables, other.variables)
    trained_variables = jax.tree.map(lambda leaf: leaf + 1, form.variables)
    trained = form.with_variables(trained_variables)
    assert trained.recovery is None
    dense = trained.with_reduction(None)
    chex.assert_trees_all_equal(dense.variables, trained_variables)


def test_a_folder_without_values_is_dense_or_refused(public, folder, tmp_path):
    vit = made_up_recoveries.recovered(public, changed=False)
    again = load(imagepiece_jax.save(vit, tmp_path / "m"))
    assert again.recovery.variants == vit.recovery.variants
    form = again.with_reduction(TOME)
    assert form.label == "tome:r=3"
    chex.assert_trees_all_equal(form.variables, public.variables)
    assert not (tmp_path / "m" / "recovered.safetensors").exists()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "recovered.safetensors").unlink()
    with refused("recovered.safetensors", "no values for tome"):
        load(copy)


def test_recovered_positions_follow_the_size(tmp_path):
    public = tiny_vit.pretrained(num_classes=3)
    values = {path: np.asarray(leaf) + 1 for path, leaf in flat_params(public).items()}
    reduced = public.with_reduction(tiny_vit.EVIT)
    variant = made_up_recoveries.make_variant(reduced, values=values)
    vit = dataclasses.replace(public, recovery=Recovery((variant,)))
    folder = imagepiece_jax.save(vit, tmp_path / "m")
    original = public.at_size(LARGER)
    for form in (vit.with_reduction(tiny_vit.EVIT), load(folder, tiny_vit.EVIT)):
        assert_has(form, values)
        # The values were learned at another size.
        chex.assert_trees_all_equal(form.at_size(LARGER).variables, original.variables)
    loaded = load(folder, reduction=tiny_vit.EVIT, image_size=LARGER)
    chex.assert_trees_all_equal(loaded.variables, original.variables)
