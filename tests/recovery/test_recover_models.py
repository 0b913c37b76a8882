"""A recovery's loss for every kind of model, against a slow one in float64."""

import jax
import numpy as np
import pytest

from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import MULTI_LABEL, REGRESSION
from imagepiece_jax.recovery import recovery_step
from tests.helpers import oracles, tiny_vit
from tests.models.test_rotary import ARCHS
from tests.models.test_vit_families import FAMILIES

DROPPING = "evit:keep_rate=0.5:blocks=(0,):fuse_token=False"
MERGING = "tome:r=5"
# Rotary planes need such a width and number of heads.
EVEN = {"embed_dim": 24, "num_heads": 3}
BARE = {"num_classes": 0}  # no head
NO_POOL = Architecture(pool="none")

# {name: (reduction, options of the model, problem type, kind of outputs)}
MODELS = {
    "DeiT": (DROPPING, {}, None, "softmax"),
    "DINOv2": (MERGING, {"arch": FAMILIES["dinov2"], **BARE}, None, "features"),
    "CLIP": (DROPPING, {"arch": FAMILIES["clip"]}, "projection", "features"),
    "SigLIP": (MERGING, {"arch": FAMILIES["siglip"], **BARE}, None, "features"),
    "EVA-02": (MERGING, {"arch": ARCHS["eva02"], **EVEN}, None, "softmax"),
    "mean, classes": (MERGING, {"arch": FAMILIES["gap"]}, None, "softmax"),
    "no pool": (DROPPING, {"arch": NO_POOL, **BARE}, None, "features"),
    "labels": (DROPPING, {}, MULTI_LABEL, "sigmoid"),
    "one class": (DROPPING, {"num_classes": 1}, None, "sigmoid"),
    "numbers": (DROPPING, {"num_classes": 2}, REGRESSION, "numbers"),
}


def pretrained(name):
    reduction, options, problem, _ = MODELS[name]
    vit = tiny_vit.pretrained(reduction, depth=2, **options)
    return tiny_vit.with_problem_type(vit, problem) if problem else vit


def model_values(vit, images):
    """A model's outputs and intermediates for images, in float64."""
    model = vit.model
    arch = model.config.arch
    if arch.pool == "none":
        model = model.clone(config=model.config.with_arch(pool="token"))

    @tiny_vit.compiled
    def run(variables, images):
        outputs, blocks = tiny_vit.traced_blocks(model, variables, images)
        slot_maps = [result.slot_of_token for result in outputs.results]
        return outputs.logits, outputs.tokens, blocks, slot_maps

    logits, tokens, blocks, slot_maps = run(vit.variables, images)
    slots_of_images = []
    for row in range(len(images)):
        slots = np.arange(model.plan[0].attn_tokens - arch.prefix)
        for slot_map in slot_maps:
            slots = oracles.compose(slot_map[row], slots)
        slots_of_images.append(slots)
    values = {"logits": logits, "blocks": blocks, "patches": tokens[:, arch.prefix :]}
    return jax.tree.map(np.float64, values) | {"slots": slots_of_images}


def slow_distance(outputs, ours, theirs):
    """The distance of one image's outputs."""
    if outputs == "softmax":
        return oracles.kl(theirs, ours)
    if outputs == "sigmoid":
        p = oracles.sigmoid(theirs)
        q = oracles.sigmoid(ours)
        return sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
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
    images = tiny_vit.images(2, side=vit.image_size)
    teacher = recovery_step.DenseTeacher(vit.with_reduction(None))
    recipe = recovery_step.RecoveryRecipe(batch_size=2)
    fit = recovery_step.StudentFit(vit, recipe, teacher)
    assert fit.comparison.output_kind == outputs

    def step(trained, variables, images):
        targets = fit.comparison.compute_outputs(teacher.model, variables, images)
        predicted = fit.compute_student_outputs(variables, trained, images)
        metrics = fit.comparison.measure_images(predicted, targets)
        return fit.comparison.mean_loss(predicted, targets), metrics

    trained = recovery_step.trained_part(vit.variables["params"], "biases")
    loss, metrics = tiny_vit.compiled(step)(trained, vit.variables, images)
    dense = vit.with_reduction(None)
    student = model_values(vit, images)
    teacher = model_values(dense, images)
    is_encoder = outputs == "features"
    has_class_token = vit.model.config.arch.class_token
    patch_weight = 0.0 if has_class_token else 0.5
    losses = []
    distances = []
    for image in range(2):
        distance, tokens, patches = slow_terms(vit, outputs, student, teacher, image)
        losses.append(distance + (1.0 if is_encoder else patch_weight) * patches)
        if has_class_token:
            losses[-1] += 0.5 * tokens
        distances.append((distance + patches) / 2 if is_encoder else distance)
    classes = [values["logits"].argmax(1) for values in (student, teacher)]
    if name == "one class":
        classes = [values["logits"][:, 0] > 0 for values in (student, teacher)]
    # The divergence of logits of about 1 is small, because its terms cancel.
    np.testing.assert_allclose(loss, np.mean(losses), rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics["distance"], distances, rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(metrics["agreement"], classes[0] == classes[1])
