import chex
import numpy as np
import pytest

from imagepiece_jax.models import recovery_record
from imagepiece_jax.recovery import recovery_step
from imagepiece_jax.recovery.recovery_step import TRAINED, trained_part, with_trained
from tests.helpers import tiny_vit
from tests.helpers.recovery_trials import noise, reduced_model


@pytest.mark.parametrize("which", TRAINED)
def test_only_chosen_parameters_are_trained(which):
    params = tiny_vit.variables(tiny_vit.model(arch={"layer_scale": True}))["params"]
    part = trained_part(params, which)
    names = recovery_record.flatten_params(part).keys()
    all_names = recovery_record.flatten_params(params).keys()
    norms = {name for name in all_names if "norm" in name}
    biases_and_gammas = {name for name in all_names if name.endswith(("bias", "gamma"))}
    biases = norms | biases_and_gammas
    assert names == {"all": all_names, "biases": biases, "norms": norms}[which]
    chex.assert_trees_all_equal(with_trained(params, part), params)


def test_a_step_is_relative_to_a_parameters_size():
    rng = np.random.default_rng(0)
    assert recovery_step.step_size("bias", np.zeros(8)) == pytest.approx(0.05)
    for name, share, values in (
        ("kernel", 1 / 4, rng.normal(0, 0.1, (16, 5))),
        ("scale", 1, rng.normal(2, 0.5, 8)),
        ("pos_embed", 1, rng.normal(0, 2, (1, 17, 8))),
    ):
        step = share * np.sqrt(np.mean(values**2))
        assert recovery_step.step_size(name, values) == pytest.approx(step, rel=1e-5)


def test_the_first_step_has_its_size():
    vit = reduced_model()
    recipe = recovery_step.RecoveryRecipe(batch_size=8, parameters="all")
    teacher = recovery_step.DenseTeacher(vit.with_reduction(None))
    fit = recovery_step.StudentFit(vit, recipe, teacher)
    before = fit.fetch_trained_params()
    fit.train_step(noise(8)[None], 1e-3)
    after = fit.fetch_trained_params()
    for name in ("kernel", "bias"):
        old, new = (tree["blocks_1"]["mlp"]["fc1"][name] for tree in (before, after))
        changes = np.abs(new - old)
        step = 1e-3 * float(recovery_step.step_size(name, old))
        assert np.median(changes) == pytest.approx(step, rel=0.01)
