"""The recipe and the compiled programs of a recovery.

The student is a reduced model. The teacher is its dense form, which sees the same
images.
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
from imagepiece_jax.recover.recovery_loss import Comparison, answers

SMALLEST = 0.05  # the size of a parameter whose root mean square is smaller
STEPS = 400  # number of steps, where neither steps nor minutes are given
BATCH_SIZE = 16
RATE = 0.002  # the highest learning rate for batches of BATCH_SIZE images


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is recovered."""

    parameters: str = "biases"  # which parameters are trained, one of TRAINED
    steps: int = STEPS
    batch_size: int = BATCH_SIZE
    seed: int = 0

    def __post_init__(self):
        check_choice("parameters", self.parameters, TRAINED)
        check_range("steps", self.steps, least=1, whole=True)
        check_range("batch_size", self.batch_size, least=1, whole=True)
        check_range("seed", self.seed, least=0, whole=True)

    @property
    def rate(self) -> float:
        """The highest learning rate, as a share of a parameter's size."""
        return RATE * math.sqrt(self.batch_size / BATCH_SIZE)


class State(NamedTuple):
    """What a training step changes."""

    trained: Any  # the parameters that are trained, a `trained_part`
    moments: Any  # the optimizer's moments of them


def step_size(name: str, value: jax.Array) -> jax.Array:
    """The size of a parameter's steps: its root mean square, as in Adafactor and LAMB.

    A step of a kernel adds up over its inputs, n, where the other part of a sum of n
    products is sqrt(n) times one; so it is less by sqrt(n), as in muP.

    name: of the parameter, such as "kernel"
    """
    size = jnp.maximum(jnp.sqrt(jnp.mean(value**2)), SMALLEST)
    if name != "kernel":
        return size
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
        """(batch, the teacher's answers to it) of `evaluation_batches`."""
        found = []
        for batch in batches:
            found.append((batch, self._answer(self.variables, batch["image"])))
        return found

    def answers_to(self, variables, images):
        """The teacher's answers to normalized images."""
        return answers(self.model, variables, images, self.comparison.read)

    def normalized(self, pixels):
        """uint8 pixels as both models take them."""
        return normalize(pixels, self.model.config.mean, self.model.config.std)

    def _answers_to_pixels(self, variables, pixels):
        return self.answers_to(variables, self.normalized(pixels))


class Fit:
    """The compiled programs of a recovery, and its state.

    vit: the reduced model, which learns
    """

    def __init__(self, vit: Pretrained, recipe: Recipe, teacher: DenseTeacher):
        self.vit = vit
        self.recipe = recipe
        self.model = vit.model
        self.teacher = teacher
        self.comparison = teacher.comparison
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
        """Set the state to that of the first step."""
        trained = self.trained_of(self.vit.variables["params"])
        moments = jax.jit(self.adam.init)(jax.device_put(trained))
        self.state = parallel.replicate(State(trained, moments))

    def get(self) -> State:
        """The present state, on the host."""
        return jax.device_get(parallel.unreplicate(self.state))

    def take_step(self, pixels, rate: float) -> jax.Array:
        """Take a training step; return its loss, [devices], without waiting for it.

        pixels: uint8 [devices, m, H, W, 3]
        rate: the learning rate, of which a parameter's is `step_size` times as much
        """
        rate = parallel.replicate(np.float32(rate))
        self.state, loss = self._step(self.state, self.variables_of_both, pixels, rate)
        return loss

    def measure(
        self, answered: list[tuple], dense: bool = False
    ) -> dict[str, np.ndarray]:
        """`Comparison.measure` of images, and their "index": arrays [images].

        They are in the order of the indices, whatever the number of devices.

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
            outputs = {**parallel.local(program_outputs), "index": batch["index"]}
            is_image = batch["mask"]  # and not padding
            for name, values in outputs.items():
                measured.setdefault(name, []).append(values[is_image])
        arrays = {name: np.concatenate(parts) for name, parts in measured.items()}
        order = np.argsort(arrays["index"])
        return {name: values[order] for name, values in arrays.items()}

    def _train_step(self, state, both, pixels, rate):
        """(the next State, the loss) of a step, on one device."""
        student, teacher = both
        images = self.teacher.normalized(pixels)
        targets = self.teacher.answers_to(teacher, images)

        def loss_of(trained):
            answered = self.answers_of(student, trained, images)
            return self.comparison.loss(answered, targets)

        loss, gradient = jax.value_and_grad(loss_of)(state.trained)
        loss, gradient = parallel.mean((loss, gradient))
        directions, moments = self.adam.update(gradient, state.moments)

        def update_of(path, value, direction):
            return -rate * step_size(path[-1].key, value) * direction

        updates = jax.tree.map_with_path(update_of, state.trained, directions)
        return State(optax.apply_updates(state.trained, updates), moments), loss

    def _measured(self, trained, student, pixels, targets):
        """`Comparison.measure` of a batch; targets: the teacher's answers to it."""
        images = self.teacher.normalized(pixels)
        answered = self.answers_of(student, trained, images)
        return self.comparison.measure(answered, targets)

    def trained_of(self, params):
        """The parameters that are trained, of all of the student's."""
        return trained_part(params, self.recipe.parameters)

    def answers_of(self, variables, trained, images):
        """The student's answers to normalized images."""
        params = with_trained(variables["params"], trained)
        variables = {**variables, "params": params}
        return answers(self.model, variables, images, self.comparison.read)
