"""Recovered models: which values a form has, in memory and in folders."""

import dataclasses
import shutil

import chex
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

import imagepiece_jax
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.recovery_record import Recovery
from tests.models import recoveries, tiny
from tests.models.recoveries import TOME

LARGER = 2 * tiny.SIDE
MORE = "tome:r=6"
COSTS = (TOME, MORE)


@pytest.fixture(scope="module")
def public():
    return tiny.pretrained()


@pytest.fixture(scope="module")
def vit(public):
    """A dense model that was recovered at two costs."""
    return recoveries.recovered(public, reductions=COSTS)


@pytest.fixture(scope="module")
def folder(vit, tmp_path_factory):
    return imagepiece_jax.save(vit, tmp_path_factory.mktemp("recovered") / "m")


def load(path, **options):
    return imagepiece_jax.load(path, **options)


def leaves_of(vit):
    return traverse_util.flatten_dict(vit.variables["params"], sep="/")


def has_values(vit, values):
    """Whether the leaves of these values are them, to the bit."""
    leaves = leaves_of(vit)
    return all(np.array_equal(leaves[path], value) for path, value in values.items())


def test_a_recovered_folder_without_its_head(folder):
    """Whose bias is among what was learned."""
    whole = load(folder, reduction=TOME)
    found = load(folder, reduction=TOME, num_classes=0)
    body = {k: v for k, v in leaves_of(whole).items() if not k.startswith("head")}
    assert leaves_of(found).keys() == body.keys()
    assert has_values(found, body)


def test_the_dense_model_stays_what_it_was(public, vit, folder, tmp_path):
    """To the bit, with or without a way by a reduction, and by a folder."""
    original = imagepiece_jax.save(public, tmp_path / "public")
    again = imagepiece_jax.save(load(folder, reduction=MORE), tmp_path / "again")
    dense = {
        "itself": vit,
        "back": vit.with_reduction(TOME).with_reduction(None),
        "loaded": load(folder, reduction="none"),
        "saved with another": load(again, reduction="none"),
        "the file alone": load(
            folder / "model.safetensors", config=tiny.model().config
        ),
    }
    for name, each in dense.items():
        chex.assert_trees_all_equal(each.variables, public.variables)
        assert each.label == "none", name
    tensors = safetensors.numpy.load_file(original / "model.safetensors")
    ours = safetensors.numpy.load_file(folder / "model.safetensors")
    chex.assert_trees_all_equal(ours, tensors)


@pytest.mark.parametrize("place, reduction", [(0, TOME), (1, MORE)])
def test_a_form_has_the_numbers_of_its_cost(vit, folder, capsys, place, reduction):
    expected = recoveries.values(tiny.pretrained(), place)
    forms = [vit.with_reduction(reduction), load(folder, reduction=reduction)]
    forms.append(vit.with_reduction([MORE, TOME][place]).with_reduction(reduction))
    for form in forms:
        assert has_values(form, expected)
        assert form.label == f"{reduction} (recovered)"
    assert not capsys.readouterr().err


def test_the_dense_variables_of_a_form_are_the_public_ones(public, vit, folder):
    for form in (vit.with_reduction(TOME), load(folder, reduction=TOME)):
        chex.assert_trees_all_equal(form.dense_variables, public.variables)
        assert not has_values(public, form.recovered.values)
        other = form.with_model(public.model)
        chex.assert_trees_all_equal(other.variables, public.variables)


def test_another_form_has_the_numbers_of_the_dense_model(public, vit, folder, capsys):
    """It is said in a line. The dense model, and a form that learned, say nothing."""
    said = "tome:r=5: not recovered, so it has the dense model's values"
    five = "tome:r=5"
    for make in (vit.with_reduction, lambda five: load(folder, reduction=five)):
        form = make(five)
        assert capsys.readouterr().err.splitlines() == [said]
        chex.assert_trees_all_equal(form.variables, public.variables)
        assert form.label == "tome:r=5"
    for reduction in (None, TOME, MORE):
        vit.with_reduction(reduction)
    load(folder)
    assert not capsys.readouterr().err


def test_another_head_takes_what_fits(public, folder):
    expected = recoveries.values(public)
    with pytest.warns(UserWarning, match="drawn"):
        other = load(folder, reduction=TOME, num_classes=3)
    body = {k: v for k, v in expected.items() if not k.startswith("head")}
    assert has_values(other, body)
    assert leaves_of(other)["head/bias"].shape == (3,)


def test_parameters_that_somebody_trained_since_are_no_recovered_ones(vit):
    form = vit.with_reduction(TOME)
    params = dict(form.variables["params"])
    params["norm"] = {k: v + 1 for k, v in params["norm"].items()}
    other = form.with_variables({**form.variables, "params": params})
    assert other.recovery is None
    dense = other.with_reduction(None)
    chex.assert_trees_all_equal(dense.variables["params"]["norm"], params["norm"])
    assert dataclasses.replace(form, class_names=None).recovery is form.recovery


def test_another_model_by_hand_has_its_own_numbers(public, vit):
    """Of one form's variables and another's model, of either set and the dense one."""
    form = vit.with_reduction(TOME)
    for reduction in (MORE, None):
        other = vit.with_reduction(reduction)
        made = dataclasses.replace(form, model=other.model)
        chex.assert_trees_all_equal(made.variables, other.variables)
        by_hand = Pretrained(other.model, form.dense_variables, recovery=vit.recovery)
        chex.assert_trees_all_equal(by_hand.variables, other.variables)


def test_nothing_that_came_back_is_the_dense_model(public, tmp_path):
    vit = recoveries.recovered(public, changed=False)
    again = load(imagepiece_jax.save(vit, tmp_path / "m"))
    assert again.recovery.variants == vit.recovery.variants
    form = again.with_reduction(TOME)
    assert form.label == "tome:r=3"
    chex.assert_trees_all_equal(form.variables, public.variables)
    assert not (tmp_path / "m" / "recovered.safetensors").exists()


def test_a_folder_without_its_numbers_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "recovered.safetensors").unlink()
    with pytest.raises(InputError, match=r"recovered\.safetensors.*no values for tome"):
        load(copy)


def test_all_parameters_may_be_recovered_and_positions_follow_the_size(tmp_path):
    """As `recover(parameters="all")` has it: values with positions among them."""
    public = tiny.pretrained(num_classes=3)
    leaves = leaves_of(public)
    values = {path: np.asarray(leaf) + 1 for path, leaf in leaves.items()}
    variant = recoveries.variant_of(public.with_reduction(tiny.EVIT), values=values)
    vit = dataclasses.replace(public, recovery=Recovery((variant,)))
    again = load(imagepiece_jax.save(vit, tmp_path / "m"))
    for each in (vit, again):
        form = each.with_reduction(tiny.EVIT)
        assert has_values(form, values)
        larger = form.at_size(LARGER)
        original = public.at_size(LARGER)
        chex.assert_trees_all_equal(larger.variables, original.variables)
        chex.assert_trees_all_equal(
            larger.with_reduction(None).variables, original.variables
        )
    loaded = load(tmp_path / "m", reduction=tiny.EVIT, image_size=LARGER)
    chex.assert_trees_all_equal(loaded.variables, larger.variables)


@pytest.mark.parametrize(
    "interval, words",
    [((-0.15, -0.1), None), ((-0.2, 0.1), "within noise")],
)
def test_a_change_that_may_be_none_is_called_noise(interval, words):
    said = str(recoveries.variant_of(tiny.pretrained("tome:r=3"), interval=interval))
    assert ("within noise" in said) == bool(words)


def test_a_report_says_where_its_images_are_alike_or_few_scenes():
    vit = tiny.pretrained("tome:r=3")
    for scenes, words in ((0, ["too good"]), (5, ["scenes"]), (16, []), (None, [])):
        said = str(recoveries.variant_of(vit, scenes=scenes))
        assert [word for word in ("too good", "scenes") if word in said] == words
