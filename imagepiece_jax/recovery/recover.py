"""Recovery: reduced variants learn to answer like their dense model.

    better = imagepiece_jax.recover(vit, "photos")
    print(better.recovery)
    half = better.with_reduction(0.5)

It takes a few hundred unlabeled images, and minutes. The dense model teaches, and stays
as it is. A variant gets its own values of some parameters, by default norms and biases.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from typing import Any

import numpy as np

from imagepiece_jax.common import signals
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.progress import ProgressBar
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.statistics import mean_difference
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.recovery_record import (
    RecoveredVariant,
    Recovery,
    flat_params,
)
from imagepiece_jax.models.variables import check_variables
from imagepiece_jax.recovery.recovery_images import (
    THREADS,
    Divided,
    divided,
    evaluation_batches,
    random_crops,
)
from imagepiece_jax.recovery.recovery_step import STEPS, DenseTeacher, Fit, Recipe
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION

# Costs at which a dense model is recovered, as shares of its MACs. With one set of
# values for all three costs, outputs are 1.1 to 1.3 times as far from the dense model
# (docs/results/recover_sharp).
COSTS = (0.6, 0.5, 0.4)
WARM_UP = 0.05  # share of training with a rising learning rate
# Training has diverged if its distance, at share CHECK of the training, is above
# DIVERGED times the distance at the start. A non-finite loss shows it at any step.
CHECK, DIVERGED = 0.1, 2.0
MANY = 10**9  # more steps than fit in any time limit
ATTEMPTS = 4  # every retry has a quarter of the learning rate

NOTHING_BETTER = "stopped: nothing is better than the start"

log = logging.getLogger("imagepiece_jax.recover")


def recover(
    vit: Pretrained,
    images: Any,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 16,
    seed: int = 0,
    parameters: str = "biases",
) -> Pretrained:
    """Train reduced variants to answer like the dense model, on unlabeled images.

    A reduced model is trained at its own cost. A dense model is trained at 0.6, 0.5 and
    0.4 of its MACs, in this order, by the recommended method. The dense parameters do
    not change: `with_reduction(None)` returns them unchanged.

    Of more than 10,000 images, 10,000 evenly spaced ones are used. A fifth, 16 to 500
    images, is held out by whole scenes: copies, or frames of a burst, are all held out
    or all trained on. The last weights are kept if they are better on the held-out
    images. Ctrl-C ends training after the current step; before the first step it raises
    KeyboardInterrupt. Equal seed and steps give equal bits on the same machine. OpenCV
    resizes the crops if it is installed, else Pillow.

    vit: a dense model, or one with a reduction without learned selectors
    images: a folder, paths, PIL images, uint8 arrays [B, H, W, 3] or a list of
        [H, W, 3], or a set such as csv:FILE or hf:OWNER/NAME; a set, or a folder with
        train and val, gives its training images; labels are not read
    steps: training steps per cost; None: 400, or as many as fit in `minutes`
    minutes: training time of all costs together; reading, compiling and measuring come
        on top; None: no limit
    batch_size: images per step, over all devices of this machine
    parameters: the trained parameters: "norms", "biases" (norms, all other biases and
        layer-scale factors) or "all"
    Returns the model with a `recovery`; its `variants` have the measures before and
        after.
    Raises InputError for a model with learned selectors, a reduction that leaves all
        tokens, and too few images.
    """
    check_recoverable(vit)
    if minutes is not None:
        check_range("minutes", minutes, above=0)
        if steps is not None:
            raise InputError("steps and minutes are both given; give one")
    recipe = Recipe(parameters, STEPS if steps is None else steps, batch_size, seed)
    dense = vit.with_reduction(None)
    students = reduced_models(vit, dense)
    # Images are checked before anything is compiled.
    parts = divided(as_source(images), recipe.batch_size)
    batches = evaluation_batches(parts.held_out, vit.preprocessing, recipe.batch_size)
    # Progress counts steps, or seconds of a time limit.
    seconds = None
    length = recipe.steps
    if minutes is not None:
        seconds = 60 * minutes / len(students)
        length = seconds
    variants = []
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.stoppable_work(NOTHING_BETTER))
        teacher = DenseTeacher(dense)
        answered = teacher.answered(batches)
        progress = None
        for index, student in enumerate(students):
            fit = Fit(student, recipe, teacher)
            run = RecoveryRun(fit, parts, answered, stop, seconds)
            run.compile()
            if progress is None:  # after compiling, for true step times
                total = max(1, round(length * len(students)))
                progress = stack.enter_context(ProgressBar("recover", total))
            run.train(progress, round(length * index))
            variant = run.variant(dense)
            # After a stop a variant without gain is left out, unless it is the first.
            if variant.changed or not (stop.requested and variants):
                variants.append(variant)
            if stop.requested:
                break
    if stop.requested and stop.defers:  # else the signal's handler has logged it
        kept = any(variant.changed for variant in variants)
        log.warning("stopped: the weights so far are kept" if kept else NOTHING_BETTER)
    recovery = Recovery(tuple(variants)).merged(vit.recovery)
    return dataclasses.replace(vit, recovery=recovery)


def check_recoverable(vit: Pretrained):
    """Raise InputError for a model that `recover` does not take."""
    if vit.model.has_selectors:
        raise InputError(f"{vit.label} has selectors, which only training can learn")
    reduction = vit.reduction
    # A dense model may name proportional attention, which changes nothing.
    if (
        is_dense(vit)
        and reduction is not None
        and reduction.name != DENSE_REDUCTION.name
    ):
        raise InputError(
            f"reduction {reduction} keeps all tokens, so there is nothing to recover"
        )
    check_variables(vit.model, vit.variables)


def is_dense(vit: Pretrained) -> bool:
    """Whether every block keeps all tokens."""
    return not any(layer.counts for layer in vit.model.plan)


def reduced_models(vit: Pretrained, dense: Pretrained) -> list[Pretrained]:
    """List the variants to train: a reduced model itself, or a dense model at COSTS.

    A variant starts from its last recovery, if it has one, else from the dense values.
    """
    if is_dense(vit):
        return [dense.with_reduction(cost) for cost in COSTS]
    return [vit]


@dataclasses.dataclass
class RecoveryRun:
    """Training at one cost, measured before and after."""

    fit: Fit
    images: Divided
    answered: list[tuple]  # held-out images, from `DenseTeacher.answered`
    stop: signals.EarlyStop  # ends the training
    seconds: float | None = None  # training time; None: the recipe's steps are taken

    def __post_init__(self):
        self.opened = time.monotonic()
        self.crops = functools.partial(
            random_crops, self.images.learned, self.fit.vit.image_size, self.fit.recipe
        )
        self.lr = self.fit.recipe.lr  # the highest learning rate
        self.steps_done = 0
        self.seconds_of_step = 0.0
        self.seconds_of_steps = 0.0  # of this attempt
        self.seconds_left = self.seconds  # at the attempt's start
        self.curve = []  # (step, mean distance), from `record`
        self.trained = None  # last weights; None: not better than the start
        self.before = self.after = self.off_the_shelf = None  # measured by `compile`

    def compile(self):
        """Measure the start, and compile the training step."""
        self.before = self.after = self.off_the_shelf = self.record()
        if math.isinf(mean(self.before)):
            raise InputError(f"{self.fit.vit!r}: outputs are not finite")
        if self.fit.vit.recovered:
            self.off_the_shelf = self.measure(dense=True)
        # The step has learning rate 0, and `Fit.start` resets its moments.
        for batch in self.crops(1).read():
            self.fit.take_step(batch["image"][:, 0], 0.0).block_until_ready()

    def train(self, progress: ProgressBar, shown: int):
        """Train until an attempt does not diverge; keep its weights if better."""
        for attempt in range(ATTEMPTS):
            self.lr = self.fit.recipe.lr / 4**attempt
            if self.attempt(progress, shown) or self.stop.requested:
                break
            if attempt == 0:
                log.warning(
                    "recover: training diverged; it starts again with a quarter of the "
                    "learning rate"
                )
        after = self.record()
        if mean(after) < mean(self.before):
            self.after = after
            self.trained = self.fit.get().trained

    def attempt(self, progress: ProgressBar, shown: int) -> bool:
        """Train from the start; return whether training ended without diverging."""
        self.fit.start()
        self.steps_done = 0
        del self.curve[1:]  # the measure at the start stays
        # A time limit ends the training by the clock, not by a number of steps.
        steps = self.fit.recipe.steps
        if self.seconds:
            steps = MANY
            self.seconds_left -= self.seconds_of_steps
        self.seconds_of_steps = 0.0
        began = time.monotonic()  # reading a batch is part of its step
        with contextlib.closing(self.crops(steps).read(THREADS)) as reader:
            for batch in reader:
                # The learning rate at the middle of the step.
                lr = self.lr * schedule(min(1.0, self.share(ahead=0.5)))
                # Waiting for the loss gives true step times and a prompt Ctrl-C.
                loss = np.asarray(self.fit.take_step(batch["image"][:, 0], lr))
                self.stop.defers = True  # from here on there is a result to keep
                self.steps_done += 1
                self.seconds_of_step = time.monotonic() - began
                self.seconds_of_steps += self.seconds_of_step
                done = int(self.seconds_of_steps) if self.seconds else self.steps_done
                # `shown` is the progress of earlier costs.
                progress.update(shown + done - progress.n)
                if not np.isfinite(loss).all():
                    return False
                if self.stop.requested or (self.seconds and self.share(ahead=1) > 1):
                    break
                # Divergence is measured once.
                if len(self.curve) == 1 and self.share() >= CHECK:
                    if mean(self.record()) > DIVERGED * mean(self.before):
                        return False
                began = time.monotonic()
        return True

    def share(self, ahead: float = 0) -> float:
        """Return the finished share of training, `ahead` steps from now."""
        if not self.seconds:
            return (self.steps_done + ahead) / self.fit.recipe.steps
        done = self.seconds_of_steps + ahead * self.seconds_of_step
        return done / max(1e-9, self.seconds_left)

    def measure(self, dense: bool = False) -> dict[str, np.ndarray]:
        """Measure held-out images, per scene; `dense`: with the dense parameters."""
        measured = self.fit.measure(self.answered, dense)
        # Images of one scene are alike, so the interval counts scenes, not images.
        scenes = self.images.scenes[measured.pop("index")]
        _, scenes, counts = np.unique(scenes, return_inverse=True, return_counts=True)
        means = {}
        for name, values in measured.items():
            means[name] = np.bincount(scenes, values) / counts
        return means

    def record(self) -> dict[str, np.ndarray]:
        """`measure`, with its mean distance added to the curve."""
        measured = self.measure()
        self.curve.append((self.steps_done, mean(measured)))
        log.info("recover: step %s, %.4f", *self.curve[-1])
        return measured

    def variant(self, dense: Pretrained) -> RecoveredVariant:
        """Describe the result; `dense` is the teacher."""
        vit = self.fit.vit
        change = mean_difference(self.after["distance"], self.before["distance"])
        values = {}
        learned = self.images.digests
        if vit.recovered:  # it started from the values of its last recovery
            values = vit.recovered.values
            earlier = vit.recovered.learned
            learned = None if earlier is None else earlier + learned
        if self.trained is not None:
            values = {**values, **flat_params(self.trained)}
        return RecoveredVariant(
            reduction=vit.reduction,
            images=len(self.images.learned),
            held_out=len(self.images.held_out),
            scenes=self.images.num_scenes,
            **{**vars(self.fit.recipe), "steps": self.steps_done},
            seconds=round(time.monotonic() - self.opened, 1),
            measure=self.fit.comparison.name,
            off_the_shelf=mean(self.off_the_shelf),
            before=mean(self.before),
            after=mean(self.after),
            interval=(change.low, change.high),
            agreement=[100 * mean(m, "agreement") for m in (self.before, self.after)],
            lr=self.lr,
            curve=tuple(self.curve),
            stopped=self.stop.requested,
            changed=self.trained is not None,
            image_size=vit.image_size,
            depth=vit.model.depth,
            weights=dense.source.name or None,
            share=vit.gmacs / dense.gmacs,
            learned=learned,
            values=values,
        )


def schedule(share: float) -> float:
    """Learning rate at a share of training, as a share of the highest rate."""
    return min(1.0, share / WARM_UP) * math.cos(math.pi / 2 * share) ** 2


def mean(measured: dict[str, np.ndarray], name: str = "distance") -> float:
    """Mean of a measure; infinity for NaN, so that NaN is never better."""
    return float(np.nan_to_num(measured[name].mean(), nan=np.inf, posinf=np.inf))
