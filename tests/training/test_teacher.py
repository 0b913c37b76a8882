import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.common import parallel
from imagepiece_jax.models.config import IMAGENET_MEAN, IMAGENET_STD
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.training import teacher
from imagepiece_jax.training.config import DistillConfig, RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.losses import distillation_loss, teacher_distance
from imagepiece_jax.weights.save import save
from tests.helpers import small_runs, tiny_vit
from tests.helpers.named_models import config
from tests.helpers.oracles import log_softmax
from tests.helpers.refused_calls import refused
from tests.helpers.rounding import assert_close
from tests.helpers.tiny_vit import fill
from tests.training.test_train_step import (
    BATCH,
    CLASSES,
    DENSE,
    PLAIN,
    SIZE,
    make_step,
    random_batch,
)

pytestmark = pytest.mark.usefixtures("quickly_begun")

STUDENT = np.array([[2.0, -1.0, 0.5, 0.0], [0.3, 0.1, -2.0, 1.2]])
TEACHER = np.array([[1.0, 0.0, 3.0, -1.0], [0.0, 2.0, 0.5, 0.7]])
# torch's F.kl_div(input, target, log_target=True) times T * T: an image's sum of
# exp(target) * (target - input), computed with 30 digits.
KL_DIV = {
    1.0: (1.1482428355317598, 0.686041436049408),
    3.0: (1.2593095038623665, 0.8155997193360418),
}
HARD = (1.8423495823898222, 1.676727373207566)  # classes 2 and 1 of the teacher


def soft_oracle(student, teacher, t):
    losses = []
    for z, y in zip(log_softmax(student / t), log_softmax(teacher / t), strict=True):
        losses.append(sum(np.exp(b) * (b - a) for a, b in zip(z, y, strict=True)))
    return t * t * np.array(losses)


def hard_oracle(student, teacher, t):
    rows = np.arange(len(student))
    return -log_softmax(student)[rows, np.argmax(teacher, axis=1)]


ORACLES = {"soft": soft_oracle, "hard": hard_oracle}


@pytest.mark.parametrize("temperature", KL_DIV)
def test_soft_and_hard_distance_by_hand(temperature):
    for kind, expected in (("soft", KL_DIV[temperature]), ("hard", HARD)):
        distill = DistillConfig(kind=kind, temperature=temperature, weight=0.5)
        distance = teacher_distance(distill, *map(jnp.float32, (STUDENT, TEACHER)))
        assert_close(distance, expected)
    oracle = soft_oracle(STUDENT, TEACHER, temperature)
    assert_close(oracle, KL_DIV[temperature], units=8)


TARGETS = np.array([[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5]])


@pytest.mark.parametrize(
    "kind, weight, both", [("soft", 0.25, True), ("hard", 0.25, False)]
)
def test_each_term_reads_its_head(kind, weight, both):
    """Without a distillation token one head has both terms, else each has its own."""
    teacher_logits = STUDENT
    logits = STUDENT
    heads = ()
    if both:
        teacher_logits = STUDENT[::-1] + 0.5
        logits = (STUDENT + teacher_logits) / 2
        heads = (jnp.float32(STUDENT), jnp.float32(teacher_logits))
    outputs = Outputs(jnp.float32(logits), None, None, None, (), (), heads)
    distill = DistillConfig(kind=kind, temperature=2.0, weight=weight)
    loss, terms = distillation_loss(
        distill, outputs, *map(jnp.float32, (TARGETS, TEACHER))
    )
    by_labels = -(TARGETS * log_softmax(STUDENT)).sum(1).mean()
    by_teacher = ORACLES[kind](teacher_logits, TEACHER, 2.0).mean()
    assert_close(loss, (1 - weight) * by_labels)
    assert_close(terms.pop("distill"), weight * by_teacher)
    assert terms == {}


HALF = (0.5, 0.5, 0.5)
OTHER = DENSE | {"depth": 2, "embed_dim": 12, "image_size": 12, "patch_size": 4}


@functools.cache
def other_teacher():
    model = create_model(config("vit_mini", mean=HALF, std=HALF, **OTHER))
    variables = fill(variable_shapes(model), seed=3)
    return teacher.Teacher(model, IMAGENET_MEAN, IMAGENET_STD), variables


def student_images(images):
    return jnp.asarray(
        (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD), jnp.float32
    )


def teacher_images(images, side=12):
    """Images in the teacher's size and normalization, channel by channel."""
    prepared = np.zeros((len(images), side, side, 3))
    for i, image in enumerate(images):
        for c in range(3):
            plane = Image.fromarray(image[..., c].astype(np.float32), "F")
            plane = np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC))
            prepared[i, ..., c] = (plane / 255 - HALF[c]) / HALF[c]
    return prepared


def test_the_teacher_gets_its_own_size_and_normalization():
    frozen, _ = other_teacher()
    pixels = random_batch(0)["image"][0, 0]
    images = student_images(pixels)
    for side in (12, 4):  # a smaller side is antialiased
        smaller = frozen.model.clone(config=frozen.model.config.at_size(side))
        prepared = dataclasses.replace(frozen, model=smaller).prepare_images(images)
        np.testing.assert_allclose(prepared, teacher_images(pixels, side), atol=2e-5)
    config = frozen.model.config.at_size(SIZE)
    config = dataclasses.replace(config, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    equal_teacher = dataclasses.replace(frozen, model=frozen.model.clone(config=config))
    assert equal_teacher.prepare_images(images) is images


def test_a_steps_distillation_loss_equals_the_oracle():
    distill = DistillConfig(kind="soft", temperature=2.0, weight=0.25)
    step, state = make_step(dataclasses.replace(PLAIN, distill=distill))
    teaching, teacher_variables = other_teacher()
    step.keywords.update(teacher=teaching)
    batch = random_batch(0)
    images = batch["image"][0, 0]
    labels = batch["label"][0, 0]
    student = create_model(config("vit_mini", **DENSE))
    variables = parallel.unreplicate(state).variables
    logits = tiny_vit.logits(student)(variables, student_images(images))
    prepared = jnp.asarray(teacher_images(images), jnp.float32)
    teacher_logits = tiny_vit.logits(teaching.model)(teacher_variables, prepared)
    targets = np.full((BATCH, CLASSES), 0.1 / CLASSES)
    targets[np.arange(BATCH), labels] += 0.9
    by_labels = -(targets * log_softmax(logits)).sum(1).mean()
    by_teacher = soft_oracle(np.asarray(logits), teacher_logits, 2.0).mean()
    frozen = parallel.replicate(teacher_variables)
    _, metrics = parallel.pmap(step)(state, batch, frozen)
    metrics = parallel.unreplicate(metrics)
    assert_close(metrics["loss"], 0.75 * by_labels + 0.25 * by_teacher, units=128)
    assert_close(metrics["terms"]["distill"], 0.25 * by_teacher, units=128)


def teacher_of(**fields):
    normalized = {"model.mean": IMAGENET_MEAN, "model.std": IMAGENET_STD}
    run = RunConfig.from_config(
        small_runs.quickstart_config(small_runs.DENSE, normalized, fields)
    )
    weights = InitialWeights(run, "no_such_run")
    return teacher.create_teacher(run, run.create_dense_model(), weights)


def test_a_teacher_keeps_its_size_and_normalization(tmp_path):
    for name, classes in (("ten", 10), ("nine", 9)):
        fields = OTHER | {"num_classes": classes, "image_size": 16}
        model = create_model(config("vit_mini", mean=HALF, std=HALF, **fields))
        save(Pretrained(model, fill(variable_shapes(model))), tmp_path / name)
    assert teacher_of() == (None, None)
    soft = {"distill.kind": "soft"}
    loaded, variables = teacher_of(**soft, **{"teacher.weights": f"{tmp_path}/ten"})
    assert loaded.model.config.mean == HALF
    assert loaded.mean == IMAGENET_MEAN
    assert loaded.model.config.image_size == 16
    images = jax.ShapeDtypeStruct((2, 16, 16, 3), "float32")
    outputs = jax.eval_shape(loaded.compute_outputs, variables, images)
    assert outputs.logits.shape == (2, 10)
    with refused("it has 9 classes, not 10"):
        teacher_of(**soft, **{"teacher.weights": f"{tmp_path}/nine"})
