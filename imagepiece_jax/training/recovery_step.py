"""The recipe and the compiled programs of a recovery.

The student is a reduced model. The teacher is its dense model, or another, which sees
the same images.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from imagepiece_jax.common import parallel
from imagepiece_jax.common.fields import (
    CheckedFields,
    choice,
    count,
    number,
    rate,
    several,
    weight,
)
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.trainable import TRAINED, trained_part, with_trained
from imagepiece_jax.training.recovery_loss import Comparison, answers, outputs_of

# Number of steps, where neither steps nor minutes are given; the figures of DeiT-Ti in
# docs/tables/recover are of so many.
STEPS = 250
RATE_OF_ALL = 2e-5  # learning rate for all parameters; with 1e-4 DeiT-Ti gets worse


@dataclasses.dataclass(frozen=True)
class Recipe(CheckedFields):
    """How a model is recovered."""

    parameters: str = choice("biases", TRAINED)  # which parameters are trained
    steps: int = count(STEPS, least=1)
    batch_size: int = count(32, least=1)
    seed: int = count(0, most=2**32 - 1)
    lr: float = number(1e-3, above=0)  # the first learning rate; it falls to 0
    class_tokens: float = weight(0.5)  # weight of class tokens in the loss
    patches: float = weight(0.0)  # weight of the features of patches in the loss
    # smallest and largest share of an image's area that a random crop covers
    area: tuple[float, float] = several((0.4, 1.0), rate(), "two shares", 2)

    @classmethod
    def for_model(cls, vit: Pretrained, **fields: Any) -> "Recipe":
        """The recipe for a model, with the given fields in place of defaults.

        By default the loss compares patches, too, where the model has no classes or no
        class token.
        """
        defaults = {}
        if fields.get("parameters") == "all":
            defaults["lr"] = RATE_OF_ALL
        if outputs_of(vit) == "features":
            defaults["patches"] = 1.0
        elif not vit.model.arch.class_token:
            defaults["patches"] = 0.5
        return cls(**defaults | fields)

    def rate(self, done: float, total: float) -> float:
        """The learning rate after `done` of `total`, both in steps or in seconds."""
        share = min(1.0, done / total)  # a measure may end after the time limit
        return self.lr * math.cos(math.pi / 2 * share) ** 2


class State(NamedTuple):
    """What a training step changes."""

    trained: Any  # the parameters that are trained, a `trained_part`
    moments: Any  # the optimizer's moments of them


class Fit:
    """The compiled programs of a recovery, and its state.

    vit: the model to recover
    teacher: the model whose answers it learns. It may take larger images, which are
        resized for the student. None: the model's own dense form
    like: a Fit of another reduction. What is the same in both is shared: copies of
        variables on the devices, and the held-out images with the teacher's answers
    """

    def __init__(
        self,
        vit: Pretrained,
        recipe: Recipe,
        teacher: Pretrained | None = None,
        like: "Fit | None" = None,
    ):
        teacher = teacher or vit.with_reduction(None)
        copies = []  # (variables, the same on all devices)
        if like is not None:
            of_student, of_teacher = like.variables_of_both
            copies.append((like.vit.variables, of_student))
            copies.append((like.teacher.variables, of_teacher))
        of_student = _replicated(vit.variables, copies)
        copies.append((vit.variables, of_student))
        of_teacher = _replicated(teacher.variables, copies)
        self.variables_of_both = of_student, of_teacher
        self.vit = vit
        self.teacher = teacher
        self.recipe = recipe
        self.batch_image_size = teacher.image_size
        self.model = vit.model
        self.teacher_model = teacher.model
        self.comparison = Comparison(vit, recipe)
        self.held = []  # (batch, the teacher's answers), by `hold_out`
        if like is not None and self._has_targets_of(like):
            self.held = like.held
        self.adam = optax.scale_by_adam()
        self.start()
        self._step = parallel.pmap(
            self._train_step, donate_argnums=0, program="recovery step"
        )
        self._targets = parallel.pmap(self._answers_of_teacher, program="dense model")
        self._measure = parallel.pmap(self._measured, program="reduced model")

    def start(self):
        """Set the state to that of the first step."""
        trained = self.trained_of(self.vit.variables["params"])
        moments = jax.jit(self.adam.init)(jax.device_put(trained))
        self.state = parallel.replicate(State(trained, moments))

    def take_step(self, pixels, step: int, rate: float) -> jax.Array:
        """Take a training step; return its loss, [devices], without waiting for it.

        pixels: uint8 [devices, m, H, W, 3]
        step: number of the step, from which random numbers are drawn
        rate: the learning rate
        """
        now = parallel.replicate((np.float32(rate), np.int32(step)))
        self.state, loss = self._step(self.state, self.variables_of_both, pixels, *now)
        return loss

    def hold_out(self, batches: Iterable[dict[str, np.ndarray]]):
        """Keep the held-out images, with the teacher's answers, for `measure`."""
        self.held = []
        for batch in batches:
            targets = self._targets(self.variables_of_both, batch["image"])
            self.held.append((batch, targets))

    def measure(self) -> dict[str, np.ndarray]:
        """`Comparison.measure` of the held-out images, arrays [images]."""
        parts = []
        for batch, targets in self.held:
            trained = self.state.trained
            image = batch["image"]
            both = self.variables_of_both
            found = self._measure(trained, both, image, targets)
            is_image = batch["mask"].ravel() > 0  # and not padding
            part = {}
            for name, values in parallel.local(found).items():
                part[name] = values.ravel()[is_image]
            parts.append(part)
        joined = {}
        for name in parts[0]:
            joined[name] = np.concatenate([part[name] for part in parts])
        return joined

    def variables(self) -> dict[str, Any]:
        """The student's present variables, on the host."""
        trained = parallel.unreplicate(self.state.trained)
        before = self.vit.variables
        params = jax.device_get(self.joined(before["params"], trained))
        return {**before, "params": params}

    def _has_targets_of(self, other):
        """Whether the teacher of another Fit gives the same answers to pixels."""
        _, ours = self.variables_of_both
        _, theirs = other.variables_of_both
        return (
            ours is theirs
            and self.teacher_model == other.teacher_model
            and self.batch_image_size == other.batch_image_size
            and self.model.mean == other.model.mean
            and self.model.std == other.model.std
            and self.comparison.read == other.comparison.read
        )

    def _train_step(self, state, both, pixels, rate, step):
        """(the next State, the loss) of a step, on one device."""
        student, teacher = both
        images = self.seen(self._normalized(pixels), step)
        targets = self.targets_of(teacher, images)

        def loss_of(trained):
            answered = self.answers_of(student, trained, images)
            return self.comparison.loss(answered, targets)

        loss, gradient = jax.value_and_grad(loss_of)(state.trained)
        loss, gradient = parallel.mean((loss, gradient))
        updates, moments = self.adam.update(gradient, state.moments)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        return State(optax.apply_updates(state.trained, updates), moments), loss

    def _answers_of_teacher(self, both, pixels):
        _, teacher = both
        return self.targets_of(teacher, self._normalized(pixels))

    def _measured(self, trained, both, pixels, targets):
        """`Comparison.measure` of a batch; targets: the teacher's answers to it."""
        student, _ = both
        answered = self.answers_of(student, trained, self._normalized(pixels))
        return self.comparison.measure(answered, targets)

    def _normalized(self, pixels):
        return normalize(pixels, self.model.mean, self.model.std)

    def trained_of(self, params):
        """The parameters that are trained, of all of the student's."""
        return trained_part(params, self.recipe.parameters)

    def joined(self, params, trained):
        """All parameters of the student, with the trained ones in their places."""
        return with_trained(params, trained)

    def seen(self, images, step):
        """The images of a step as both models see them, from normalized ones."""
        return images

    def targets_of(self, variables, images):
        """The teacher's answers for normalized images."""
        return answers(self.teacher_model, variables, images, self.comparison.read)

    def answers_of(self, variables, trained, images):
        """The student's answers for normalized images, resized to its size."""
        params = self.joined(variables["params"], trained)
        batch, *size, channels = images.shape
        student_size = sides(self.vit.image_size)
        if tuple(size) != student_size:
            shape = (batch, *student_size, channels)
            images = jax.image.resize(images, shape, "cubic")
        variables = {**variables, "params": params}
        return answers(self.model, variables, images, self.comparison.read)


def _replicated(variables, copies):
    """Variables on all devices.

    copies: (variables, the same on all devices) of those that are there already
    """
    for others, on_devices in copies:
        if _are_same(variables, others):
            return on_devices
    return parallel.replicate(variables)


def _are_same(variables, others) -> bool:
    """Whether two models have the same arrays in memory."""
    ours = jax.tree.leaves(variables)
    theirs = jax.tree.leaves(others)
    if len(ours) != len(theirs):
        return False
    return all(one is other for one, other in zip(ours, theirs, strict=True))
