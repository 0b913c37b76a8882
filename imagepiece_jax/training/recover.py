"""Recovery: a reduced model learns to answer as its own dense form does.

    better = imagepiece_jax.recover(vit, "photos")
    print(better.recovery)

A few hundred images without labels, and minutes. Reduction, shapes and files stay what
they are; numbers of the model change, by default its norms and biases. The teacher is
the dense model of the same weights, which sees the same crops of the images.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from imagepiece_jax.common import parallel
from imagepiece_jax.common.fields import (
    CheckedFields,
    choice,
    count,
    is_number,
    number,
    rate,
    several,
    weight,
)
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.common.rng import Purpose, batch_key, uniform
from imagepiece_jax.config.run import TRAINED
from imagepiece_jax.data.loader import EvalBatches, TrainBatches
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.source import Source, Subset, evenly_spaced
from imagepiece_jax.data.transforms import TrainTransform
from imagepiece_jax.data.unlabeled import open_unlabeled
from imagepiece_jax.errors import InputError, short_traceback
from imagepiece_jax.evaluate.statistics import mean_difference
from imagepiece_jax.models.pretrained import Pretrained, check_pretrained
from imagepiece_jax.models.problem import activation
from imagepiece_jax.models.recovery import Recovery
from imagepiece_jax.reduction import settings
from imagepiece_jax.training import optimizer
from imagepiece_jax.training.train_step import (
    answers,
    binary_kl_divergence,
    kl_divergence,
    relative_change,
)

HELD_OUT = 5  # one image of so many is held out,
FEWEST = 16  # so many at least,
MOST = 500  # and so many at most
MEASURES = 8  # on the way
WARM = 2  # steps before those whose time is taken
TIMED = 4
THREADS = 2  # that read and decode
STEPS = 500  # where neither steps nor minutes are given
RATE_OF_ALL = 2e-5  # of training all parameters: at 1e-4 DeiT-Ti gets worse
DIVERGENCES = {"softmax": kl_divergence, "sigmoid": binary_kl_divergence}

log = logging.getLogger("imagepiece_jax.training")


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
    # shares of an image's area, that a random crop covers
    area: tuple[float, float] = several((0.4, 1.0), rate(), "two shares", 2)

    @classmethod
    def of(cls, vit: Pretrained, **fields: Any) -> "Recipe":
        """The recipe for a model: without classes, or a class token, by its patches."""
        usual = {}
        if fields.get("parameters") == "all":
            usual["lr"] = RATE_OF_ALL
        if not has_classes(vit):
            usual["patches"] = 1.0
        elif not vit.model.arch.class_token:
            usual["patches"] = 0.5
        return cls(**usual | fields)


def has_classes(vit: Pretrained) -> bool:
    """Whether the outputs are logits of classes, not features.

    A head without a bias is a projection, such as CLIP's.
    """
    head = vit.variables["params"].get("head", {})
    known = activation(vit.problem_type, vit.model.num_classes) is not None
    return known and bool(np.any(head.get("bias", 0)))


class Comparison:
    """What is compared of a student and its teacher: the loss, and the measure."""

    def __init__(self, vit: Pretrained, recipe: Recipe):
        self.classes = has_classes(vit)
        self.name = "KL" if self.classes else "change"  # of the measure
        self.distance = relative_change  # of logits
        if self.classes:
            kind = activation(vit.problem_type, vit.model.num_classes)
            self.distance = DIVERGENCES[kind]
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
        if not self.classes and "patches" in terms:
            measure = (measure + terms["patches"]) / 2
        first, expected = (jnp.argmax(a["logits"], -1) for a in (student, teacher))
        return {"measure": measure, "agreement": first == expected}


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
        self.vit, self.recipe = vit, recipe
        self.image_size = teacher.image_size  # of the images that the programs take
        self.model = vit.model.clone(kernels=None)
        self.dense = teacher.model.clone(kernels=None)
        self.comparison = Comparison(vit, recipe)
        self.split, self.join = split, join
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

    def take(self, pixels, step: int, steps: int) -> jax.Array:
        """Train on a batch; the loss, which is still on the devices, [devices].

        pixels: uint8 [devices, m, H, W, 3]
        step: the number of this one, of `steps`
        """
        rate = self.recipe.lr * math.cos(math.pi / 2 * step / steps) ** 2
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
            trained, image = self.state.trained, batch["image"]
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
            key = batch_key(self.recipe.seed, step, Purpose.MIX)
            key = jax.random.fold_in(key, jax.lax.axis_index(parallel.AXIS))
            images = mix(images, key, self.recipe.mixed)
        targets = self._targets_of(teacher, images)

        def loss_of(trained):
            own = self._answers(student, trained, images)
            return self.comparison.loss(own, targets)

        loss, gradient = jax.value_and_grad(loss_of)(state.trained)
        loss, gradient = parallel.mean((loss, gradient))
        updates, moments = self.adam.update(gradient, state.moments)
        updates = jax.tree.map(lambda update: -rate * update, updates)
        return State(optax.apply_updates(state.trained, updates), moments), loss

    def _answers_of_teacher(self, weights, pixels):
        return self._targets_of(weights[1], self._normalized(pixels))

    def _measured(self, trained, weights, pixels, targets):
        own = self._answers(weights[0], trained, self._normalized(pixels))
        return self.comparison.measure(own, targets)

    def _normalized(self, pixels):
        return normalize(pixels, self.model.mean, self.model.std)

    def _targets_of(self, variables, images):
        return answers(self.dense, variables, images, self.comparison.read)

    def _answers(self, variables, trained, images):
        params = self.join(variables["params"], trained)
        batch, *size, channels = images.shape
        own = sides(self.vit.image_size)
        if tuple(size) != own:
            images = jax.image.resize(images, (batch, *own, channels), "cubic")
        variables = {**variables, "params": params}
        return answers(self.model, variables, images, self.comparison.read)


def mix(images, key, share):
    """Mix some images with their mirrored partners in the batch, as a convex sum.

    images: [B, H, W, 3]
    share: of the images
    Source: mixup, Zhang et al., 2018, with Beta(1, 1).
    """
    chosen, amount = uniform(key, (2, len(images), 1, 1, 1))
    amount = jnp.where(chosen < share, amount, 1.0)
    return amount * images + (1 - amount) * images[::-1]


@short_traceback
def recover(
    vit: Pretrained,
    images: Any,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    parameters: str = "biases",
) -> Pretrained:
    """The same model and reduction, whose weights have learned to work with it.

    A fifth of the images, 16 to 500, is held out. What they measure chooses among the
    weights of eight moments on the way; where none is better than at the start by more
    than its 95 % interval, the weights come back unchanged. Ctrl-C ends the training,
    and the best so far comes back. The same seed gives the same bits on the same
    machine, for the same number of steps. OpenCV resizes the crops where it is
    installed, else Pillow.

    vit: a model with a reduction that learns no selectors
    images: a folder, paths, PIL images, uint8 arrays [B, H, W, 3] or a list of
        [H, W, 3], or the name of data as commands take it ("csv:FILE"); labels are not
        read
    steps: of training; None: 500, or as many as fit in `minutes`
    minutes: all of the time that it may take
    batch_size: images a step, over all devices of this machine
    parameters: that are trained, "norms", "biases" (norms, all other biases and factors
        of layer scale) or "all"
    Returns a Pretrained whose `recovery` is the report.
    Raises InputError for a dense model, for one with learned selectors, and for images
        that are too few, or all alike.
    """
    check_pretrained(vit)
    check_recoverable(vit)
    if minutes is not None and not (is_number(minutes) and 0 < minutes < math.inf):
        allowed = "numbers above 0"
        raise InputError(field="minutes", value=minutes, allowed=allowed)
    if steps is not None and minutes is not None:
        problem = "is given, and steps are, too"
        raise InputError(problem, field="minutes", hint="drop one")
    recipe = Recipe.of(
        vit,
        parameters=parameters,
        steps=STEPS if steps is None else steps,
        batch_size=batch_size,
        seed=seed,
    )
    return recovered(vit, open_unlabeled(images), recipe, minutes)


def check_recoverable(vit: Pretrained):
    """Raise InputError for a model that has nothing to recover by its dense form."""
    if vit.recovery and vit.recovery.changed:
        before = settings.described(vit.recovery.reduction)
        problem = f"was recovered before, for {before}"
        allowed = "the weights that it was made from, whose dense form teaches"
        raise InputError(problem, field="the model", allowed=allowed)
    if not any(layer.step for layer in vit.model.plan):
        hint = (
            'give it a reduction first, such as vit.with_reduction({"name": "tome"}), '
        )
        hint += "or in the command --config.reduction.name=tome"
        raise InputError("is dense: nothing was lost", field="the model", hint=hint)
    if vit.model.has_selectors:
        problem = "has selectors that must be learned"
        allowed = "reductions without; train.py trains the others"
        raise InputError(problem, field=vit.label, allowed=allowed)


def recovered(
    vit: Pretrained, source: Source, recipe: Recipe, minutes: float | None = None
) -> Pretrained:
    """As `recover`, by a Recipe, from images of a Source."""
    began = time.monotonic()
    source = readable(source)
    learned, held = divided(source, recipe.batch_size)
    size, placement = vit.image_size, parallel.placement()
    source.try_first(vit.preprocessing)
    fit = Fit(vit, recipe)
    options = {"batch_size": recipe.batch_size, "placement": placement}
    evaluation = EvalBatches(held, vit.preprocessing, **options)
    fit.hold(evaluation.batches(threads=THREADS))
    check_different(fit.held)
    crop = TrainTransform(size, "random_resized", recipe.area, shift=0, flip=True)
    options |= {"seed": recipe.seed, "start_step": 0}
    start = fit.measure()
    steps = recipe.steps
    if minutes is not None:
        some = TrainBatches(learned, crop, stop_step=WARM + TIMED, **options)
        seconds = seconds_of_step(fit, some)
        measures = MEASURES * seconds_of_measure(fit)
        left = 60 * minutes - measures - (time.monotonic() - began)
        steps = max(1, int(left / seconds))
    batches = TrainBatches(learned, crop, stop_step=steps, **options)
    course = Course(fit, start)
    try:
        course.run(batches, steps)
    except KeyboardInterrupt:
        course.stopped = True
        print("stopped: the best weights so far are kept", file=sys.stderr)
    interval = mean_difference(course.best["measure"], start["measure"])
    changed = interval.high < 0
    recovery = Recovery(
        reduction=dict(vit.reduction),
        parameters=recipe.parameters,
        images=len(learned),
        held_out=len(start["measure"]),
        steps=course.done,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        seconds=round(time.monotonic() - began, 1),
        measure=fit.comparison.name,
        before=float(start["measure"].mean()),
        after=float(course.best["measure"].mean()),
        interval=(interval.low, interval.high),
        agreement=tuple(
            100 * float(found["agreement"].mean()) for found in (start, course.best)
        ),
        curve=tuple(course.curve),
        stopped=course.stopped,
        changed=changed,
    )
    variables = course.variables if changed else vit.variables
    return dataclasses.replace(vit, variables=variables, recovery=recovery)


class Course:
    """A recovery on its way: the best state so far, and how it went.

    start: the measure before the first step
    """

    def __init__(self, fit: Fit, start: dict[str, np.ndarray]):
        self.fit, self.best = fit, start
        self.variables = None  # of the best; None: the start
        self.began = math.nan  # when the first step was done, which compiles
        self.done = 0  # steps
        self.stopped = False
        self.curve = [(0, float(start["measure"].mean()))]

    def run(self, batches: TrainBatches, steps: int):
        """Train, and measure MEASURES times, for the last time at the end."""
        moments = {math.ceil(steps * (k + 1) / MEASURES) for k in range(MEASURES)}
        bar = tqdm(total=steps, desc="recover", unit="step", disable=None)
        images = batches.batches(threads=THREADS)
        with bar, contextlib.closing(images):
            for step, batch in enumerate(images):
                loss = self.fit.take(batch["image"][:, 0], step, steps)
                loss.block_until_ready()  # so that the bar is true, and Ctrl-C prompt
                self.done = step + 1
                if step == 0:
                    self.began = time.monotonic()
                bar.update()
                if self.done in moments:
                    self.note(bar)

    def note(self, bar):
        """Measure the state, and keep it where it is the best."""
        found = self.fit.measure()
        value = float(found["measure"].mean())
        self.curve.append((self.done, value))
        if value < min(before for _, before in self.curve[:-1]):
            self.variables = self.fit.variables()
            self.best = found
        bar.set_postfix_str(f"{self.fit.comparison.name} {value:.4f}")
        if bar.disable:
            left = self.seconds_left(bar.total)
            print(
                f"recover: step {self.done} of {bar.total}, "
                f"{self.fit.comparison.name} {value:.4f}, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def seconds_left(self, steps):
        """An estimate, by the time that the steps so far have taken."""
        timed = max(1, self.done - 1)
        return (time.monotonic() - self.began) / timed * (steps - self.done)


def readable(source: Source) -> Source:
    """The images of a source, without those whose header is damaged.

    A large source is not looked through: one in a hundred of its images may be damaged,
    as in training. Of the images that are held out of a small one, that would be none.
    """
    total = len(source)
    if total > HELD_OUT * MOST:
        return source
    places = []
    for place in range(total):
        if source.size(place) is None:
            log.warning("%s cannot be read: it is left out", source.name(place))
        else:
            places.append(place)
    return source if len(places) == total else Subset(source, places)


def divided(source: Source, batch_size: int) -> tuple[Source, Source]:
    """(images to learn from, images that are held out, evenly spaced).

    Raises InputError for too few.
    """
    total = len(source)
    if total < FEWEST + batch_size:
        problem = f"has {total} image" if total == 1 else f"has {total} images"
        allowed = f"{FEWEST + batch_size} or more, {FEWEST} of which are held out, and "
        allowed += f"{batch_size} are a batch"
        raise InputError(problem, field="images", value=total, allowed=allowed)
    held = min(MOST, max(FEWEST, total // HELD_OUT))
    places = evenly_spaced(total, held)
    others = np.setdiff1d(np.arange(total), places)
    return Subset(source, others), Subset(source, places)


def check_different(held):
    """Raise InputError where images are all alike, or of one color each.

    held: batches that are held out
    """
    images = np.concatenate([batch["image"][batch["mask"] > 0] for batch, _ in held])
    flat = images.reshape(len(images), -1, 3)
    if np.all(flat == flat[:, :1]):
        raise InputError("are of one color each", field="images", allowed="photographs")
    distinct = len(np.unique(images.reshape(len(images), -1), axis=0))
    if distinct < FEWEST:
        problem = f"are alike: {len(images)} that are held out show {distinct} pictures"
        raise InputError(
            problem, field="images", allowed=f"at least {FEWEST} different ones there"
        )


def seconds_of_step(fit: Fit, batches: TrainBatches) -> float:
    """What a step takes, by some steps that are undone."""
    began = None
    for step, batch in enumerate(batches.batches(threads=THREADS)):
        if step == WARM:
            began = time.monotonic()
        loss = fit.take(batch["image"][:, 0], step, batches.stop_step)
        loss.block_until_ready()
    seconds = (time.monotonic() - began) / TIMED
    fit.start()
    return seconds


def seconds_of_measure(fit: Fit) -> float:
    """What a measure takes whose program is compiled."""
    began = time.monotonic()
    fit.measure()
    return time.monotonic() - began
