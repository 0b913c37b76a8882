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
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.create import execution_of
from imagepiece_jax.models.problem_type import check_single_label
from imagepiece_jax.models.record import as_json
from imagepiece_jax.models.variables import digest
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import DENSE
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights, fitted
from imagepiece_jax.training.logging import say


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that gets a student's images in its own size and normalization."""

    model: ViT
    mean: tuple[float, ...]  # the student's, with which the images are normalized
    std: tuple[float, ...]  # likewise

    def apply(self, variables, images):
        """Outputs for the student's images [B, H, W, 3]."""
        return self.model.apply(variables, self.prepared(images))

    def record(self, variables):
        """What its answers depend on, as JSON: weights, model and normalization.

        Not which kernel computes attention, which is a matter of the device.
        """
        alike = dataclasses.replace(
            self, model=self.model.with_execution(attention_impl="xla")
        )
        return {"weights": digest(variables)[:16], **as_json(alike)}

    def prepared(self, images):
        """Images [B, H, W, 3] resized and normalized for this model.

        Resizing is bicubic and antialiased, as Pillow's, but of values that are not
        rounded. Nothing is computed if size and normalization are the student's.
        """
        batch, *size, channels = images.shape
        wanted = sides(self.model.config.image_size)
        if tuple(size) != wanted:
            images = jax.image.resize(images, (batch, *wanted, channels), "cubic")
        ours = (self.mean, self.std)
        theirs = (self.model.config.mean, self.model.config.std)
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
    initial: its `teacher` has the weights
    Raises InputError where the config needs a teacher and has none, or has one and does
        not need it. So it does for a teacher of several labels an image, and for other
        classes than the student's.
    """
    needed = run.reduction.method.needs_teacher or run.distill.active
    _check_wanted(run, needed)
    if not needed:
        return None, None
    vit = initial.teacher
    named = f"config.teacher.weights {run.teacher.weights}"
    check_single_label(vit.config.problem_type, named, "distillation")
    trained = vit.source.reduction or DENSE
    if trained.name != DENSE.name:
        say(f"note: {named} was trained with {trained}, and teaches without it")
    try:
        if run.reduction.method.needs_teacher:
            model = dense.with_execution(drop_path_rate=0.0)
            variables = fitted(vit, model)
        else:
            model, variables = _teacher_of_distillation(run, vit)
    except InputError as error:
        raise InputError(f"config.teacher.weights: {error}") from error
    return Teacher(model, dense.config.mean, dense.config.std), variables


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


def _teacher_of_distillation(run, vit):
    """(model, variables) of any model of the student's classes."""
    config = vit.config
    if config.num_classes != run.num_classes:
        raise InputError(
            f"the teacher has {config.num_classes} classes; it must have the "
            f"{run.num_classes} of the student"
        )
    execution = execution_of(config, run.dtype, run.attention)
    model = vit.model.clone(execution=execution)
    return model.with_execution(head_only=True), vit.variables
