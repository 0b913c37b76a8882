"""The loss of a recovery for every kind of model, against a slow one in float64."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.head import MULTI_LABEL, REGRESSION
from imagepiece_jax.recovery import recovery_loss, recovery_step
from tests.helpers import oracles, tiny_vit
from tests.models.test_rotary import ARCHS
from tests.models.test_vit_families import FAMILIES

DROPPING = "evit:keep_rate=0.5:blocks=(0,):fuse_token=False"
MERGING = "tome:r=5"
# width of a token, and heads, that planes of rotary positions divide
EVEN = {"embed_dim": 24, "num_heads": 3}
BARE = {"num_classes": 0}  # no head

# name: (reduction, options of the model, problem, what outputs are)
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
# One of each kind of loss: compiling a gradient is most of the time.
WITH_GRADIENT = ("DeiT", "no pool", "one class")


def pretrained(name):
    reduction, options, problem, _ = MODELS[name]
    vit = tiny_vit.pretrained(reduction, depth=2, **options)
    if problem:
        config = dataclasses.replace(vit.config, problem_type=problem)
        vit = dataclasses.replace(vit, model=vit.model.clone(config=config))
    return vit


@functools.cache
def stream_of(model):
    """Function (variables, images) -> (logits, tokens, tokens by block, slots)."""
    if model.config.arch.pool == "none":
        model = model.clone(config=model.config.with_arch(pool="token"))

    @tiny_vit.compiled
    def run(variables, images):
        outputs, blocks = tiny_vit.traced_blocks(model, variables, images)
        dests = [result.slot_of_token for result in outputs.results]
        return outputs.logits, outputs.tokens, blocks, dests

    return run


def seen(vit, images):
    """A model's outputs and intermediates for images, in float64."""
    model = vit.model
    arch = model.config.arch
    logits, tokens, blocks, dests = stream_of(model)(vit.variables, images)
    places = []
    for row in range(len(images)):
        slots = np.arange(model.plan[0].attn_tokens - arch.prefix)
        for dest in dests:
            slots = oracles.compose(dest[row], slots)
        places.append(slots)
    return {
        "logits": np.float64(logits),
        "blocks": [np.float64(x) for x in blocks],
        "patches": np.float64(tokens[:, arch.prefix :]),
        "slots": places,
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
    logits = [each["logits"][image] for each in (student, teacher)]
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
def test_loss_and_measure_are_those_of_the_oracle(name):
    vit = pretrained(name)
    outputs = MODELS[name][-1]
    assert recovery_loss.output_kind(vit) == outputs
    images = tiny_vit.images(2, side=vit.image_size)
    teacher = recovery_step.DenseTeacher(vit.with_reduction(None))
    fit = recovery_step.StudentFit(
        vit, recovery_step.RecoveryRecipe(batch_size=2), teacher
    )

    def step(trained, variables, images):
        targets = fit.comparison.compute_outputs(teacher.model, variables, images)
        own = fit.compute_student_outputs(variables, trained, images)
        metrics = fit.comparison.measure_images(own, targets)
        return fit.comparison.mean_loss(own, targets), metrics

    trained = fit.select_trained(vit.variables["params"])
    if name in WITH_GRADIENT:
        slope = tiny_vit.compiled(jax.value_and_grad(step, has_aux=True))
        (loss, measure), gradient = slope(trained, vit.variables, images)
        leaves = jax.tree.leaves(gradient)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert any(np.any(leaf) for leaf in leaves)
    else:
        loss, measure = tiny_vit.compiled(step)(trained, vit.variables, images)
    dense = vit.with_reduction(None)
    student = seen(vit, images)
    teacher = seen(dense, images)
    by_patches = outputs == "features" or not vit.model.config.arch.class_token
    share = {True: 1.0, False: 0.5}[outputs == "features"]
    losses = []
    measures = []
    same = []
    for image in range(2):
        distance, tokens, patches = slow_terms(vit, outputs, student, teacher, image)
        total = distance
        if tokens is not None:
            total += 0.5 * tokens
        if by_patches:
            total += share * patches
        losses.append(total)
        measures.append(distance)
        if outputs == "features":
            measures[-1] = (distance + patches) / 2
        firsts = [each["logits"][image] for each in (student, teacher)]
        if name == "one class":
            same.append((firsts[0] > 0) == (firsts[1] > 0))
        else:
            same.append(np.argmax(firsts[0]) == np.argmax(firsts[1]))
    # A small divergence of logits of about 1, whose terms cancel.
    np.testing.assert_allclose(loss, np.mean(losses), rtol=0, atol=1e-6)
    np.testing.assert_allclose(measure["distance"], measures, rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(measure["agreement"], np.ravel(same))


def test_nothing_is_guessed_from_a_bias_of_zeros():
    vit = pretrained("DeiT")
    vit.variables["params"]["head"]["bias"][:] = 0
    assert recovery_loss.output_kind(vit) == "softmax"
    assert (
        recovery_loss.output_kind(tiny_vit.of_problem(vit, "projection")) == "features"
    )
