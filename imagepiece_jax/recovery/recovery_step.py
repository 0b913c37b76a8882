"""The recipe and the compiled programs of a recovery.

The student is a reduced model; the teacher is its dense variant, on the same images.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from imagepiece_jax.common import parallel
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.trainable import TRAINED, trained_part, with_trained
from imagepiece_jax.recovery.recovery_loss import Comparison, answers

SMALLEST = 0.05  # the least size of a parameter, for root mean squares near 0
STEPS = 400  # steps per cost, if neither steps nor minutes are given
BATCH_SIZE = 16
LR = 0.002  # highest learning rate at BATCH_SIZE images per step


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of a recovery."""

    parameters: str = "biases"  # the trained parameters, one of TRAINED
    steps: int = STEPS
    batch_size: int = BATCH_SIZE
    seed: int = 0

    def __post_init__(self):
        check_choice("parameters", self.parameters, TRAINED)
        check_range("steps", self.steps, least=1, whole=True)
        check_range("batch_size", self.batch_size, least=1, whole=True)
        check_range("seed", self.seed, least=0, whole=True)

    @property
    def lr(self) -> float:
        """Highest learning rate, as a share of a parameter's size."""
        return LR * math.sqrt(self.batch_size / BATCH_SIZE)


class State(NamedTuple):
    """The values that a training step changes."""

    trained: Any  # trained parameters, from `trained_part`
    moments: Any  # the optimizer's moments


def step_size(name: str, value: jax.Array) -> jax.Array:
    """Size of a parameter's steps: its root mean square, as in Adafactor and LAMB.

    Kernels with n inputs take steps smaller by sqrt(n), as in muP.
    """
    size = jnp.maximum(jnp.sqrt(jnp.mean(value**2)), SMALLEST)
    if name != "kernel":
        return size
    # An output sums n products: a step adds up n-fold, the kernel's own values only
    # sqrt(n)-fold.
    inputs = value.size // value.shape[-1]
    return size / math.sqrt(inputs)


class DenseTeacher:
    """The dense model on all devices."""

    def __init__(self, dense: Pretrained):
        self.model = dense.model
        self.comparison = Comparison(dense)
        self.variables = parallel.replicate(dense.variables)
        self._answer = parallel.pmap(self._answers_to_pixels, program="dense model")

    def answered(self, batches: Iterable[dict[str, np.ndarray]]) -> list[tuple]:
        """Pair all `evaluation_batches` with the teacher's answers."""
        pairs = []
        for batch in batches:
            pairs.append((batch, self._answer(self.variables, batch["image"])))
        return pairs

    def answers_to(self, variables, images):
        """Return the teacher's answers to normalized images."""
        return answers(self.model, variables, images, self.comparison.term_names)

    def normalized(self, pixels):
        """Normalize uint8 pixels for both models."""
        return normalize(pixels, self.model.config.mean, self.model.config.std)

    def _answers_to_pixels(self, variables, pixels):
        return self.answers_to(variables, self.normalized(pixels))


class Fit:
    """The compiled programs of a recovery, and its state; `vit` is trained."""

    def __init__(self, vit: Pretrained, recipe: Recipe, teacher: DenseTeacher):
        self.vit = vit
        self.recipe = recipe
        self.model = vit.model
        self.teacher = teacher
        self.comparison = teacher.comparison
        # Without an earlier recovery both models share one copy of the variables.
        student = teacher.variables
        if vit.recovered:
            student = parallel.replicate(vit.variables)
        self.variables_of_both = student, teacher.variables
        self.adam = optax.scale_by_adam()
        self.start()
        self._step = parallel.pmap(
            self._train_step, donate_argnums=0, program="recovery step"
        )
        self._measure = parallel.pmap(self._measured, program="reduced model")

    def start(self):
        """Reset the state to the first step's."""
        trained = self.trained_of(self.vit.variables["params"])
        moments = jax.jit(self.adam.init)(jax.device_put(trained))
        self.state = parallel.replicate(State(trained, moments))

    def get(self) -> State:
        """Copy the state to the host."""
        return jax.device_get(parallel.unreplicate(self.state))

    def take_step(self, pixels, lr: float) -> jax.Array:
        """Take a training step; return its loss, [devices], without waiting for it.

        pixels: uint8 [devices, m, H, W, 3]
        lr: learning rate, multiplied by a parameter's `step_size`
        """
        lr = parallel.replicate(np.float32(lr))
        self.state, loss = self._step(self.state, self.variables_of_both, pixels, lr)
        return loss

    def measure(
        self, answered: list[tuple], dense: bool = False
    ) -> dict[str, np.ndarray]:
        """Run `Comparison.measure` on images; add their "index": arrays [images].

        answered: the images, from `DenseTeacher.answered`
        dense: whether the student has the dense model's values
        """
        student, teacher = self.variables_of_both
        trained = self.state.trained
        if dense:
            student = teacher
            trained = self.trained_of(teacher["params"])
        measured = {}
        for batch, targets in answered:
            program_outputs = self._measure(trained, student, batch["image"], targets)
            outputs = {**parallel.local_rows(program_outputs), "index": batch["index"]}
            is_image = batch["mask"]  # else padding, or unreadable
            for name, values in outputs.items():
                measured.setdefault(name, []).append(values[is_image])
        arrays = {name: np.concatenate(parts) for name, parts in measured.items()}
        # Sorted, so that the order does not depend on the number of devices.
        order = np.argsort(arrays["index"])
        return {name: values[order] for name, values in arrays.items()}

    def _train_step(self, state, both, pixels, lr):
        """Take a step on one device: (next State, loss)."""
        student, teacher = both
        images = self.teacher.normalized(pixels)
        targets = self.teacher.answers_to(teacher, images)

        def loss_of(trained):
            answered = self.answers_of(student, trained, images)
            return self.comparison.loss(answered, targets)

        loss, gradient = jax.value_and_grad(loss_of)(state.trained)
        loss, gradient = parallel.mean_over_devices((loss, gradient))
        directions, moments = self.adam.update(gradient, state.moments)

        def update_of(path, value, direction):
            return -lr * step_size(path[-1].key, value) * direction

        updates = jax.tree.map_with_path(update_of, state.trained, directions)
        return State(optax.apply_updates(state.trained, updates), moments), loss

    def _measured(self, trained, student, pixels, targets):
        """`Comparison.measure` of a batch; targets: the teacher's answers."""
        images = self.teacher.normalized(pixels)
        answered = self.answers_of(student, trained, images)
        return self.comparison.measure(answered, targets)

    def trained_of(self, params):
        """Select the trained parameters."""
        return trained_part(params, self.recipe.parameters)

    def answers_of(self, variables, trained, images):
        """Return the student's answers to normalized images."""
        params = with_trained(variables["params"], trained)
        variables = {**variables, "params": params}
        return answers(self.model, variables, images, self.comparison.term_names)
