"""A recovery's loss for every kind of model, against a slow one in float64."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import MULTI_LABEL, REGRESSION
from imagepiece_jax.recovery import recovery_loss, recovery_step
from tests.helpers import oracles, tiny_vit
from tests.models.test_rotary import ARCHS
from tests.models.test_vit_families import FAMILIES

DROPPING = "evit:keep_rate=0.5:blocks=(0,):fuse_token=False"
MERGING = "tome:r=5"
# Rotary planes need such a width and number of heads.
EVEN = {"embed_dim": 24, "num_heads": 3}
BARE = {"num_classes": 0}  # no head

# {name: (reduction, options of the model, problem type, kind of outputs)}
MODELS = {
    "DeiT": (DROPPING, {}, None, "softmax"),
    "DINOv2": (MERGING, {"arch": FAMILIES["dinov2"], **BARE}, None, "features"),
    "CLIP": (DROPPING, {"arch": FAMILIES["clip"]}, "projection", "features"),
    "SigLIP": (MERGING, {"arch": FAMILIES["siglip"], **BARE}, None, "features"),
    "EVA-02": (MERGING, {"arch": ARCHS["eva02"], **EVEN}, None, "softmax"),
    "mean, classes": (MERGING, {"arch": FAMILIES["gap"]}, None, "softmax"),
    "no pool": (
        DROPPING,
        {"arch": Architecture(pool="none"), **BARE},
        None,
        "features",
    ),
    "labels": (DROPPING, {}, MULTI_LABEL, "sigmoid"),
    "one class": (DROPPING, {"num_classes": 1}, None, "sigmoid"),
    "numbers": (DROPPING, {"num_classes": 2}, REGRESSION, "numbers"),
}
# One model per kind of loss, because compiling gradients takes most of the time.
WITH_GRADIENT = ("DeiT", "no pool", "one class")


def pretrained(name):
    reduction, options, problem, _ = MODELS[name]
    vit = tiny_vit.pretrained(reduction, depth=2, **options)
    if problem:
        config = dataclasses.replace(vit.config, problem_type=problem)
        vit = dataclasses.replace(vit, model=vit.model.clone(config=config))
    return vit


@functools.cache
def compile_stream(model):
    """A function (variables, images) -> (logits, tokens, tokens by block, slots)."""
    if model.config.arch.pool == "none":
        model = model.clone(config=model.config.with_arch(pool="token"))

    @tiny_vit.compiled
    def run(variables, images):
        outputs, blocks = tiny_vit.traced_blocks(model, variables, images)
        slot_maps = [result.slot_of_token for result in outputs.results]
        return outputs.logits, outputs.tokens, blocks, slot_maps

    return run


def model_values(vit, images):
    """A model's outputs and intermediates for images, in float64."""
    model = vit.model
    arch = model.config.arch
    logits, tokens, blocks, slot_maps = compile_stream(model)(vit.variables, images)
    slots_of_images = []
    for row in range(len(images)):
        slots = np.arange(model.plan[0].attn_tokens - arch.prefix)
        for slot_map in slot_maps:
            slots = oracles.compose(slot_map[row], slots)
        slots_of_images.append(slots)
    return {
        "logits": np.float64(logits),
        "blocks": [np.float64(x) for x in blocks],
        "patches": np.float64(tokens[:, arch.prefix :]),
        "slots": slots_of_images,
    }


def slow_distance(outputs, ours, theirs):
    """The distance of one image's outputs."""
    if outputs == "softmax":
        p = oracles.softmax(theirs)
        q = oracles.softmax(ours)
        return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))
    if outputs == "sigmoid":
        p = oracles.sigmoid(theirs)
        q = oracles.sigmoid(ours)
        total = 0
        for a, b in zip(p, q, strict=True):
            total += a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))
        return total
    if outputs == "numbers":
        return np.mean((ours - theirs) ** 2)
    return slow_change(ours, theirs)


def slow_change(ours, theirs):
    return sum((ours - theirs) ** 2) / sum(theirs**2)


def slow_terms(vit, outputs, student, teacher, image):
    """(distance of outputs, of class tokens or None, of patches) of one image."""
    logits = [values["logits"][image] for values in (student, teacher)]
    distance = slow_distance(outputs, *logits)
    tokens = None
    if vit.model.config.arch.class_token:
        pairs = zip(student["blocks"], teacher["blocks"], strict=True)
        tokens = np.mean([slow_change(a[image][0], b[image][0]) for a, b in pairs])
    changes = []
    for patch, slot in enumerate(student["slots"][image]):
        if slot >= 0:
            ours = student["patches"][image][slot]
            changes.append(slow_change(ours, teacher["patches"][image][patch]))
    return distance, tokens, np.mean(changes)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_metrics_equal_the_oracle(name):
    vit = pretrained(name)
    outputs = MODELS[name][-1]
    assert recovery_loss.find_output_kind(vit) == outputs
    images = tiny_vit.images(2, side=vit.image_size)
    teacher = recovery_step.DenseTeacher(vit.with_reduction(None))
    fit = recovery_step.StudentFit(
        vit, recovery_step.RecoveryRecipe(batch_size=2), teacher
    )

    def step(trained, variables, images):
        targets = fit.comparison.compute_outputs(teacher.model, variables, images)
        predicted = fit.compute_student_outputs(variables, trained, images)
        metrics = fit.comparison.measure_images(predicted, targets)
        return fit.comparison.mean_loss(predicted, targets), metrics

    trained = fit.select_trained_params(vit.variables["params"])
    if name in WITH_GRADIENT:
        loss_and_gradient = tiny_vit.compiled(jax.value_and_grad(step, has_aux=True))
        (loss, metrics), gradient = loss_and_gradient(trained, vit.variables, images)
        leaves = jax.tree.leaves(gradient)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert any(np.any(leaf) for leaf in leaves)
    else:
        loss, metrics = tiny_vit.compiled(step)(trained, vit.variables, images)
    dense = vit.with_reduction(None)
    student = model_values(vit, images)
    teacher = model_values(dense, images)
    by_patches = outputs == "features" or not vit.model.config.arch.class_token
    share = {True: 1.0, False: 0.5}[outputs == "features"]
    losses = []
    distances = []
    agreement = []
    for image in range(2):
        distance, tokens, patches = slow_terms(vit, outputs, student, teacher, image)
        total = distance
        if tokens is not None:
            total += 0.5 * tokens
        if by_patches:
            total += share * patches
        losses.append(total)
        distances.append(distance)
        if outputs == "features":
            distances[-1] = (distance + patches) / 2
        logits = [values["logits"][image] for values in (student, teacher)]
        if name == "one class":
            agreement.append((logits[0] > 0) == (logits[1] > 0))
        else:
            agreement.append(np.argmax(logits[0]) == np.argmax(logits[1]))
    # The divergence of logits of about 1 is small, because its terms cancel.
    np.testing.assert_allclose(loss, np.mean(losses), rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics["distance"], distances, rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(metrics["agreement"], np.ravel(agreement))


def test_a_zero_bias_is_no_sign_of_a_projection():
    vit = pretrained("DeiT")
    vit.variables["params"]["head"]["bias"][:] = 0
    assert recovery_loss.find_output_kind(vit) == "softmax"
    assert (
        recovery_loss.find_output_kind(tiny_vit.with_problem_type(vit, "projection"))
        == "features"
    )
