"""The frozen teacher of a run; `losses.distillation` is the loss that reads it.

Methods whose loss compares tokens learn from the dense form of the trained model
itself; distillation reads only logits, so that its teacher may be any model of the same
classes, which sees the same images as it was trained to see them.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common.image_size import sides
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.problem_type import check_single_label
from imagepiece_jax.models.record import as_json
from imagepiece_jax.models.spec import ModelSpec
from imagepiece_jax.models.variables import digest
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE
from imagepiece_jax.training.initial_weights import InitialWeights
from imagepiece_jax.training.logging import say
from imagepiece_jax.weights.load import unknown_normalization


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that gets a student's images in its own size and normalization."""

    model: ViT
    image_size: int | tuple[int, int]  # the model's
    mean: tuple[float, ...]  # the student's, with which the images are normalized
    std: tuple[float, ...]  # likewise

    def apply(self, variables, images):
        """Outputs for the student's images [B, H, W, 3]."""
        return self.model.apply(variables, self.prepared(images))

    def record(self, variables):
        """What its answers depend on, as JSON: weights, model and normalization.

        Not which kernel computes attention, which is a matter of the device.
        """
        alike = dataclasses.replace(self, model=self.model.clone(backend="xla"))
        return {"weights": digest(variables)[:16], **as_json(alike)}

    def prepared(self, images):
        """Images [B, H, W, 3] resized and normalized for this model.

        Resizing is bicubic and antialiased, as Pillow's, but of values that are not
        rounded. Nothing is computed if size and normalization are the student's.
        """
        batch, *size, channels = images.shape
        wanted = sides(self.image_size)
        if tuple(size) != wanted:
            images = jax.image.resize(images, (batch, *wanted, channels), "cubic")
        ours = (self.mean, self.std)
        theirs = (self.model.mean, self.model.std)
        if not np.allclose(ours, theirs, rtol=1e-6, atol=0):
            shape = (1, 1, 1, channels)
            values = (np.reshape(v, shape) for v in (*ours, *theirs))
            mean, std, own_mean, own_std = values
            scale = std / own_std
            shift = (mean - own_mean) / own_std
            images = images * jnp.float32(scale) + jnp.float32(shift)
        return images


def create_teacher(run: RunConfig, dense: ViT, initial: InitialWeights):
    """(the Teacher, its variables); None twice where there is none.

    dense: the trained model without reduction
    initial: its `teacher` is the weights that `run.teacher` names, read once
    Raises InputError where the config needs a teacher and has none, or has one and does
        not need it. So it does for a teacher of several labels an image, and for other
        classes than the student's.
    """
    teacher = run.teacher
    needed = run.reduction.method.needs_teacher or run.distill.active
    _check_wanted(run, needed)
    if not needed:
        return None, None
    named = f"config.teacher.weights {teacher.weights}"
    problem_type = initial.teacher.source.problem_type
    check_single_label(problem_type, named, "distillation")
    trained = initial.teacher.source.reduction or DENSE
    if trained.name != DENSE.name:
        say(f"note: {named} was trained with {trained}, and teaches without it")
    if run.reduction.method.needs_teacher:
        model = dense.clone(drop_path_rate=0.0)
        size = run.image_size
        variables = initial.teacher_variables(model)
    else:
        model, size, variables = _teacher_of_distillation(run, initial)
    return Teacher(model, size, dense.mean, dense.std), variables


def _check_wanted(run, needed):
    """Raise InputError for a teacher that is needed and not given, or the reverse.

    needed: whether anything learns from a teacher
    """
    if needed and not run.teacher.weights:
        learner = f"config.reduction={run.reduction.name}"
        if run.distill.active:
            learner = f"config.distill.kind={run.distill.kind}"
        raise InputError(
            f"config.teacher.weights is empty, but {learner} needs a teacher"
        )
    if run.teacher.weights and not needed:
        raise InputError(
            f"config.teacher.weights is {run.teacher.weights!r}, but nothing learns "
            "from a teacher; leave it empty, or set config.distill.kind to soft or hard"
        )


def _teacher_of_distillation(run, initial):
    """(model, image size, variables) that config.teacher names."""
    requested = ModelSpec(attention=run.model.attention)
    try:
        vit = initial.teacher.load(requested=requested).analyzed(run.model.dtype)
    except InputError as error:
        raise InputError(f"config.teacher.weights: {error}") from error
    model = vit.model.clone(head_only=True)
    if model.num_classes != run.num_classes:
        raise InputError(
            f"config.teacher.weights: the teacher has {model.num_classes} classes; it "
            f"must have the {run.num_classes} of the student"
        )
    if not vit.source.normalized:
        note = unknown_normalization(vit.source.path)
        say(f"note: {note}")
    return model, vit.image_size, vit.variables
