import dataclasses
import functools
import types

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.common import parallel
from imagepiece_jax.models.create import create_model
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.variables import variable_shapes
from imagepiece_jax.models.vit import Outputs
from imagepiece_jax.training import teacher
from imagepiece_jax.training.config import DistillConfig, RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.losses import distillation_loss
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
TARGETS = np.array([[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5]])


@pytest.mark.parametrize(
    "kind, temperature, distances",
    [("soft", 1.0, KL_DIV[1.0]), ("soft", 3.0, KL_DIV[3.0]), ("hard", 1.0, HARD)],
)
@pytest.mark.parametrize("has_token", [False, True])
def test_each_term_by_hand_reads_its_head(kind, temperature, distances, has_token):
    """Without a distillation token one head has both terms, else each has its own."""
    class_logits = STUDENT[::-1] + 0.5 if has_token else STUDENT
    heads = jnp.float32(class_logits), jnp.float32(STUDENT)
    logits = jnp.float32((class_logits + STUDENT) / 2)
    outputs = Outputs(logits, None, None, None, (), (), heads if has_token else ())
    distill = DistillConfig(kind=kind, temperature=temperature, weight=0.25)
    arrays = map(jnp.float32, (TARGETS, TEACHER))
    loss, terms = distillation_loss(distill, outputs, *arrays)
    by_labels = -(TARGETS * log_softmax(class_logits)).sum(1).mean()
    assert_close(loss, 0.75 * by_labels)
    assert_close(terms["distill"], 0.25 * np.mean(distances))


# The student's normalization. The teacher has its own.
MEAN = (0.1, 0.5, 0.9)
STD = (0.1, 0.2, 0.3)
HALF = (0.5, 0.5, 0.5)
OTHER = DENSE | {"depth": 2, "embed_dim": 12, "image_size": 4, "patch_size": 2}


@functools.cache
def other_teacher():
    model = create_model(config("vit_mini", mean=HALF, std=HALF, **OTHER))
    variables = fill(variable_shapes(model), seed=3)
    return teacher.Teacher(model, MEAN, STD), variables


def student_images(images):
    return jnp.asarray((images / 255 - np.array(MEAN)) / np.array(STD), jnp.float32)


def teacher_images(images, side=4):
    """Images in the teacher's size and normalization, antialiased like Pillow's."""
    prepared = np.zeros((len(images), side, side, 3))
    for i, image in enumerate(images):
        for c in range(3):
            plane = Image.fromarray(image[..., c].astype(np.float32), "F")
            plane = np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC))
            prepared[i, ..., c] = (plane / 255 - HALF[c]) / HALF[c]
    return prepared


def test_a_teacher_of_the_students_size_and_normalization_gets_its_images():
    frozen, _ = other_teacher()
    images = student_images(random_batch(0)["image"][0, 0])
    config = frozen.model.config.at_size(SIZE)
    config = dataclasses.replace(config, mean=MEAN, std=STD)
    model = types.SimpleNamespace(config=config, apply=lambda _, images, **__: images)
    equal_teacher = dataclasses.replace(frozen, model=model)
    assert equal_teacher.compute_outputs(None, images) is images


def test_a_steps_distillation_loss_equals_the_oracle():
    distill = DistillConfig(kind="soft", temperature=2.0, weight=0.25)
    recipe = dataclasses.replace(PLAIN, distill=distill)
    step, state = make_step(recipe, mean=MEAN, std=STD)
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
    log_student = log_softmax(np.asarray(logits) / 2)
    log_teacher = log_softmax(teacher_logits / 2)
    divergence = (np.exp(log_teacher) * (log_teacher - log_student)).sum(1)
    by_teacher = 2**2 * divergence.mean()
    frozen = parallel.replicate(teacher_variables)
    _, metrics = parallel.pmap(step)(state, batch, frozen)
    metrics = parallel.unreplicate(metrics)
    assert_close(metrics["loss"], 0.75 * by_labels + 0.25 * by_teacher, units=128)
    assert_close(metrics["terms"]["distill"], 0.25 * by_teacher, units=128)


def test_a_teacher_keeps_its_size_and_normalization(tmp_path):
    frozen, variables = other_teacher()
    save(Pretrained(frozen.model, variables), tmp_path / "w")

    def load_teacher(num_classes):
        fields = {"model.mean": MEAN, "model.std": STD, "num_classes": num_classes}
        fields |= {"distill.kind": "soft", "teacher.weights": f"{tmp_path}/w"}
        config = small_runs.quickstart_config(small_runs.DENSE, fields)
        run = RunConfig.from_config(config)
        weights = InitialWeights(run, "no_such_run")
        return teacher.create_teacher(run, run.create_dense_model(), weights)[0]

    loaded = load_teacher(CLASSES)
    assert (loaded.mean, loaded.std) == (MEAN, STD)
    assert (loaded.model.config.mean, loaded.model.config.image_size) == (HALF, 4)
    with refused(f"it has {CLASSES} classes, not 9"):
        load_teacher(9)
