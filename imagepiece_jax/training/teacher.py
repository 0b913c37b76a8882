"""A run's frozen teacher.

Method losses compare tokens, so their teacher is the trained model's dense variant.
`losses.distillation_loss` reads only logits, so its teacher is any model of the same
classes, on images prepared as in its own training.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from imagepiece_jax.common.checks import refuse_any
from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.errors import InputError, titled_errors
from imagepiece_jax.models.create import make_execution
from imagepiece_jax.models.vit import Outputs, ViT
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights, fit_variables


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A model that gets the student's images, in its own size and normalization."""

    model: ViT
    mean: tuple[float, ...]  # the student's; its images come normalized
    std: tuple[float, ...]  # likewise

    def compute_outputs(
        self, variables: PyTree, images: Float[Array, "batch height width channels"]
    ) -> Outputs:
        """Outputs, with the state after each block, for the student's images.

        The images are resized and normalized for this model.
        """
        num_images, *student_size, channels = images.shape
        teacher_size = image_sides(self.model.config.image_size)
        # Bicubic and antialiased like Pillow, but from values that are not rounded.
        if tuple(student_size) != teacher_size:
            shape = (num_images, *teacher_size, channels)
            images = jax.image.resize(images, shape, "cubic")
        student_stats = (self.mean, self.std)
        teacher_stats = (self.model.config.mean, self.model.config.std)
        # Numbers that differ by a rounding to float32 are equal.
        if not np.allclose(student_stats, teacher_stats, rtol=1e-6, atol=0):
            mean, std, teacher_mean, teacher_std = np.reshape(
                (*student_stats, *teacher_stats), (4, 1, 1, 1, channels)
            )
            # From the student's normalization to the teacher's in one multiply-add of
            # [1, 1, 1, channels].
            scale = std / teacher_std
            shift = (mean - teacher_mean) / teacher_std
            images = images * jnp.float32(scale) + jnp.float32(shift)
        return self.model.apply(variables, images, with_states=True)


def create_teacher(
    config: RunConfig, dense_model: ViT, initial_weights: InitialWeights
) -> tuple[Teacher | None, PyTree]:
    """Create (Teacher, its variables); (None, None) if nothing learns from a teacher.

    initial_weights: its `teacher_weights` teach
    Raises InputError for a missing or unused teacher, for several labels per image, and
        for a teacher that does not fit the student.
    """
    teacher_path = config.teacher.weights
    losses = f"reduction {config.reduction.name} and distill.kind {config.distill.kind}"
    cause = f"config.teacher.weights is {teacher_path!r}, but {losses}"
    refuse_any(
        (config.needs_teacher and not teacher_path, f"{cause} learn from a teacher"),
        (teacher_path and not config.needs_teacher, f"{cause} learn from none"),
    )
    pretrained = initial_weights.teacher_weights
    if pretrained is None:
        return None, None
    title = f"config.teacher.weights {teacher_path}"
    pretrained.config.head.check_single_label(title, "distillation")
    with titled_errors("config.teacher.weights"):
        # A loss that compares tokens needs the student's own dense model.
        if config.reduction.method.needs_teacher:
            model = dense_model.with_execution(drop_path_rate=0.0)
            variables = fit_variables(pretrained, model)
        else:
            num_classes = pretrained.config.num_classes
            if num_classes != config.num_classes:
                problem = f"it has {num_classes} classes, not {config.num_classes}"
                raise InputError(problem)
            execution = make_execution(
                pretrained.config, config.model.dtype, config.model.attention
            )
            # `distillation_loss` reads logits only.
            execution = dataclasses.replace(execution, head_only=True)
            model = pretrained.model.clone(execution=execution)
            variables = pretrained.variables
    return Teacher(model, dense_model.config.mean, dense_model.config.std), variables
