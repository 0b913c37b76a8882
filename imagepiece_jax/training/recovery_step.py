"""Recipe, loss and compiled programs of a recovery, without images and without an end.

The student is a reduced model; its teacher is the dense form of the same weights, which
sees the same images.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from imagepiece_jax.common.rng import Purpose, sample_keys, uniform
from imagepiece_jax.config.run import TRAINED
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.problem import MULTI_LABEL, REGRESSION, activation
from imagepiece_jax.training import optimizer
from imagepiece_jax.training.train_step import (
    answers,
    binary_kl_divergence,
    kl_divergence,
    relative_change,
    squared_error,
)

STEPS = 500  # where neither steps nor minutes are given
RATE_OF_ALL = 2e-5  # of training all parameters: at 1e-4 DeiT-Ti gets worse


@dataclasses.dataclass(frozen=True)
class Recipe(CheckedFields):
    """How a model is recovered."""

    # which parameters are trained
    parameters: str = choice("biases", TRAINED)
    steps: int = count(STEPS, least=1)
    batch_size: int = count(32, least=1)
    seed: int = count(0, most=2**32 - 1)
    lr: float = number(1e-3, above=0)  # of the first step; a cosine to 0
    # Weights in the loss: of the class token after each block, and of the features of
    # patches.
    class_tokens: float = weight(0.5)
    patches: float = weight(0.0)
    mixed: float = rate(0.0)  # share of the images that are mixed with another one
    # smallest and largest share of an image's area that a random crop covers
    area: tuple[float, float] = several((0.4, 1.0), rate(), "two shares", 2)

    @classmethod
    def of(cls, vit: Pretrained, **fields: Any) -> "Recipe":
        """The recipe for a model, with the given `fields` in place of its defaults.

        An encoder, and a model without a class token, compares patches by default.
        """
        defaults = {}
        if fields.get("parameters") == "all":
            defaults["lr"] = RATE_OF_ALL
        if outputs_of(vit) == "features":
            defaults["patches"] = 1.0
        elif not vit.model.arch.class_token:
            defaults["patches"] = 0.5
        return cls(**defaults | fields)

    def rate(self, done: float, whole: float) -> float:
        """The learning rate after `done` of `whole`, both in steps or in seconds."""
        share = min(1.0, done / whole)  # a measure may end after the time is over
        return self.lr * math.cos(math.pi / 2 * share) ** 2


class Kind(NamedTuple):
    """How outputs of one kind are compared."""

    measure: str  # its name in reports
    distance: Callable[[jax.Array, jax.Array], jax.Array]  # [B, C] twice -> [B]


KINDS = {
    "softmax": Kind("KL", kl_divergence),
    "sigmoid": Kind("KL", binary_kl_divergence),
    "numbers": Kind("squared error", squared_error),
    "features": Kind("change", relative_change),
}


def outputs_of(vit: Pretrained) -> str:
    """What the outputs of a model are, one of `KINDS`.

    A head without a bias is a projection of features, such as CLIP's, unless it has
    names of classes or a problem that only classes have.
    """
    if not vit.model.num_classes:
        return "features"
    if vit.problem_type == REGRESSION:
        return "numbers"
    bias = vit.variables["params"].get("head", {}).get("bias", 0)
    named = vit.class_names is not None or vit.problem_type == MULTI_LABEL
    if named or np.any(bias):
        return activation(vit.problem_type, vit.model.num_classes)
    return "features"


class Comparison:
    """What is compared of a student and its teacher: the loss, and the measure."""

    def __init__(self, vit: Pretrained, recipe: Recipe):
        self.outputs = outputs_of(vit)
        self.name, self.distance = KINDS[self.outputs]
        self.weights = {"class_tokens": 0.0, "patches": recipe.patches}
        if vit.model.arch.class_token:
            self.weights["class_tokens"] = recipe.class_tokens
        self.read = tuple(name for name, weight in self.weights.items() if weight)

    def terms(self, student, teacher) -> dict[str, jax.Array]:
        """The terms of the loss by name, [B] each, without weights.

        student, teacher: `train_step.answers`
        """
        terms = {"logits": self.distance(student["logits"], teacher["logits"])}
        for name in self.read:
            kept = student["kept"] if name == "patches" else None
            terms[name] = relative_change(student[name], teacher[name], kept)
        return terms

    def loss(self, student, teacher) -> jax.Array:
        """The mean over a batch of the weighted sum of terms."""
        terms = self.terms(student, teacher)
        return jnp.mean(sum(self.weights.get(k, 1.0) * v for k, v in terms.items()))

    def measure(self, student, teacher) -> dict[str, jax.Array]:
        """ "measure", what recovery makes small, and "agreement", [B] each."""
        terms = self.terms(student, teacher)
        measure = terms["logits"]
        if self.outputs == "features" and "patches" in terms:
            measure = (measure + terms["patches"]) / 2
        first = first_class(student["logits"])
        expected = first_class(teacher["logits"])
        return {"measure": measure, "agreement": first == expected}


def first_class(logits):
    """The likeliest class; of a single one, whether it is likely. [B, C] -> [B]."""
    if logits.shape[-1] == 1:
        return logits[:, 0] > 0
    return jnp.argmax(logits, -1)


class State(NamedTuple):
    """What a step changes."""

    trained: Any  # a `trained_part`
    moments: Any  # of the optimizer


class Fit:
    """The programs of a recovery, and the state between two of its steps.

    vit: the model to recover
    teacher: whose answers it learns; it may take larger images, of which the student
        sees smaller copies; None: its own dense form
    split: from all parameters to those that are trained; None: by the recipe
    join: from all parameters and the trained ones to those of the student
    """

    def __init__(
        self,
        vit: Pretrained,
        recipe: Recipe,
        teacher: Pretrained | None = None,
        split: Callable[[Any], Any] | None = None,
        join: Callable[[Any, Any], Any] = optimizer.with_trained,
    ):
        own = parallel.replicate(vit.variables)
        frozen = own if teacher is None else parallel.replicate(teacher.variables)
        self.weights = own, frozen
        teacher = teacher or vit.with_reduction(None)
        self.vit = vit
        self.recipe = recipe
        self.image_size = teacher.image_size  # of the images that the programs take
        self.model = vit.model.clone(kernels=None)
        self.dense = teacher.model.clone(kernels=None)
        self.comparison = Comparison(vit, recipe)
        self.split = split
        self.join = join
        if split is None:
            which = recipe.parameters
            self.split = functools.partial(optimizer.trained_part, which=which)
        self.adam = optax.scale_by_adam()
        self.start()
        self._step = parallel.pmap(
            self._train_step, donate_argnums=0, program="recovery step"
        )
        self._targets = parallel.pmap(self._answers_of_teacher, program="dense model")
        self._measure = parallel.pmap(self._measured, program="reduced model")
        self.held = []

    def start(self):
        """Set the state to that of the first step."""
        trained = self.split(self.vit.variables["params"])
        self.state = parallel.replicate(State(trained, self.adam.init(trained)))

    def take(self, pixels, step: int, rate: float) -> jax.Array:
        """Train on a batch; the loss, which is still on the devices, [devices].

        pixels: uint8 [devices, m, H, W, 3]
        step: the number of this one, of which draws are a function
        rate: the learning rate
        """
        now = parallel.replicate((np.float32(rate), np.int32(step)))
        self.state, loss = self._step(self.state, self.weights, pixels, *now)
        return loss

    def hold(self, batches: Iterable[dict[str, np.ndarray]]):
        """Keep the images of the measure, with the teacher's answers to them."""
        self.held = [
            (batch, self._targets(self.weights, batch["image"])) for batch in batches
        ]

    def measure(self) -> dict[str, np.ndarray]:
        """`Comparison.measure` of the images that are held out, [images] each."""
        parts = []
        for batch, targets in self.held:
            trained = self.state.trained
            image = batch["image"]
            found = self._measure(trained, self.weights, image, targets)
            real = batch["mask"].ravel() > 0
            parts.append({k: v.ravel()[real] for k, v in parallel.local(found).items()})
        return {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}

    def variables(self) -> dict[str, Any]:
        """The student's variables now, on the host."""
        trained = parallel.unreplicate(self.state.trained)
        before = self.vit.variables
        params = jax.device_get(self.join(before["params"], trained))
        return {**before, "params": params}

    def _train_step(self, state, weights, pixels, rate, step):
        student, teacher = weights
        images = self._normalized(pixels)
        if self.recipe.mixed:
            places = parallel.positions(len(images))
            keys = sample_keys(self.recipe.seed, step, places, Purpose.MIX)
            images = mix(images, parallel.reverse(images), keys, self.recipe.mixed)
        targets = self.targets_of(teacher, images)

        def loss_of(trained):
            own = self.answers_of(student, trained, images)
            return self.comparison.loss(own, targets)

        loss, gradient = jax.value_and_grad(loss_of)(state.trained)
        loss, gradient = parallel.mean((loss, gradient))
        updates, moments = self.adam.update(gradient, state.moments)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        return State(optax.apply_updates(state.trained, updates), moments), loss

    def _answers_of_teacher(self, weights, pixels):
        return self.targets_of(weights[1], self._normalized(pixels))

    def _measured(self, trained, weights, pixels, targets):
        own = self.answers_of(weights[0], trained, self._normalized(pixels))
        return self.comparison.measure(own, targets)

    def _normalized(self, pixels):
        return normalize(pixels, self.model.mean, self.model.std)

    def targets_of(self, variables, images):
        return answers(self.dense, variables, images, self.comparison.read)

    def answers_of(self, variables, trained, images):
        params = self.join(variables["params"], trained)
        batch, *size, channels = images.shape
        own = sides(self.vit.image_size)
        if tuple(size) != own:
            images = jax.image.resize(images, (batch, *own, channels), "cubic")
        variables = {**variables, "params": params}
        return answers(self.model, variables, images, self.comparison.read)


def mix(images, partners, keys, share):
    """Mix some images with their partners, each as a convex sum.

    images, partners: [B, H, W, 3]
    keys: of the images, [B]
    share: of the images that are mixed
    Source: mixup, Zhang et al., 2018, with Beta(1, 1).
    """
    drawn = jax.vmap(lambda key: uniform(key, (2, 1, 1, 1)))(keys)
    chosen = drawn[:, 0] < share
    amount = jnp.where(chosen, drawn[:, 1], 1.0)
    return amount * images + (1 - amount) * partners
