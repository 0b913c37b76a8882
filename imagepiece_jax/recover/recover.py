"""Recovery: reduced forms of a model learn to answer as its dense form does.

    better = imagepiece_jax.recover(vit, "photos")
    print(better.recovery)
    half = better.with_reduction(0.5)

It takes a few hundred images without labels, and minutes. The dense model stays what it
is, and is the teacher, which sees the same crops of the images. Its reduced forms get
other values of some parameters, by default of norms and biases.
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
from imagepiece_jax.evaluate.statistics import mean_difference
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.recovery_record import (
    RecoveredVariant,
    Recovery,
    flat_params,
)
from imagepiece_jax.models.variables import check_variables
from imagepiece_jax.recover.recovery_images import (
    THREADS,
    Divided,
    divided,
    evaluation_batches,
    random_crops,
)
from imagepiece_jax.recover.recovery_step import STEPS, DenseTeacher, Fit, Recipe
from imagepiece_jax.reduction.reduction import DENSE

# What a dense model learns, as shares of its MACs. One set of values for the three is
# 1.1 to 1.3 times as far from the dense model (docs/tables/recover_sharp).
COSTS = (0.6, 0.5, 0.4)
WARM_UP = 0.05  # share of the steps in which the learning rate rises
# At this share of the training it has diverged if the distance is DIVERGED times the
# start's; a loss that is not finite shows it at any step.
CHECK, DIVERGED = 0.1, 2.0
MANY = 10**9  # more steps than fit in any time
ATTEMPTS = 4  # at a quarter of the learning rate each time

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
    """Learn to answer as the dense model does, from images without labels.

    Of a reduced model its cost is learned; of a dense one .6, .5 and .4 of its MACs, by
    the recommended method, one after the other. The dense model is not changed:
    `with_reduction(None)` gives it back to the bit.

    Of more than 10,000 images, 10,000 evenly spaced ones are used. A fifth, 16 to 500
    of them, is held out: images of one scene, such as copies and frames of a burst, are
    all held out or all learned from. The last weights come back if they are better on
    the held-out images. Ctrl-C ends the training after its current step, and raises
    KeyboardInterrupt before the first one. The same seed and steps give the same bits
    on the same machine. OpenCV resizes the crops where it is installed, else Pillow.

    vit: a dense model, or one with a reduction that learns no selectors
    images: a folder, paths, PIL images, uint8 arrays [B, H, W, 3] or a list of
        [H, W, 3], csv:FILE, hf:OWNER/NAME, imagenet2012 or digits; of a set, and of a
        folder that holds train and val, train is taken; labels are not read
    steps: number of training steps for a cost; None: 400, or as many as fit in
        `minutes`
    minutes: time limit for all of it; None: no limit
    batch_size: images in a step, over all devices of this machine
    parameters: which parameters are trained: "norms", "biases" (norms, all other biases
        and factors of layer scale) or "all"
    Returns the same model with a `recovery`, whose `costs` have what was lost before
        and after.
    Raises InputError for a model with learned selectors, for a reduction that leaves
        all tokens, and for too few images.
    """
    began = time.monotonic()
    check_recoverable(vit)
    if minutes is not None:
        check_range("minutes", minutes, above=0)
        if steps is not None:
            raise InputError("steps and minutes are given; one of them says how long")
    recipe = Recipe(parameters, STEPS if steps is None else steps, batch_size, seed)
    dense = vit.with_reduction(None)
    forms = forms_of(vit, dense)
    # Images are checked before anything is compiled.
    parts = divided(as_source(images), recipe.batch_size)
    batches = evaluation_batches(parts.held_out, vit.preprocessing, recipe.batch_size)
    total = len(forms) * recipe.steps
    if minutes is not None:
        total = max(1, round(60 * minutes))
    costs = []
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(signals.stopping(NOTHING_BETTER))
        teacher = DenseTeacher(dense)
        answered = teacher.answered(batches)
        progress = None
        for index, form in enumerate(forms):
            end = None
            if minutes is not None:
                now = time.monotonic()
                end = now + (began + 60 * minutes - now) / (len(forms) - index)
            fit = Fit(form, recipe, teacher)
            run = RecoveryRun(fit, parts, answered, stop, end)
            run.compile()
            if end is not None and time.monotonic() > end and not costs:
                raise InputError(
                    f"minutes is {minutes:g}, which ended before the first step; "
                    "reading and compiling take longer"
                )
            shown = index * recipe.steps
            if minutes is not None:
                shown = round(time.monotonic() - began)
            if progress is None:  # compiling is no measure of a step's time
                progress = ProgressBar("recover", total, done=shown)
                stack.enter_context(progress)
            run.train(progress, shown)
            cost = run.cost(dense)
            if cost.changed or not (stop.requested and costs):
                costs.append(cost)
            if stop.requested:
                break
    if stop.requested and stop.defers:  # else it was said at once
        kept = any(cost.changed for cost in costs)
        log.warning("stopped: the weights so far are kept" if kept else NOTHING_BETTER)
    recovery = Recovery(tuple(costs)).merged(vit.recovery)
    return dataclasses.replace(vit, recovery=recovery)


def check_recoverable(vit: Pretrained):
    """Raise InputError for a model that `recover` does not take."""
    if vit.model.has_selectors:
        raise InputError(f"{vit.label} has selectors, which training must learn")
    reduction = vit.reduction
    # Dense attention may be said to be proportional, which changes nothing.
    if is_dense(vit) and reduction is not None and reduction.name != DENSE.name:
        raise InputError(f"reduction {reduction} leaves all tokens: nothing to recover")
    check_variables(vit.model, vit.variables)


def is_dense(vit: Pretrained) -> bool:
    """Whether no block loses tokens."""
    return not any(layer.counts for layer in vit.model.plan)


def forms_of(vit: Pretrained, dense: Pretrained) -> list[Pretrained]:
    """The forms that learn: the model itself, or of a dense one those at COSTS.

    They start with the dense model's numbers, but for a cost that is learned again.
    """
    if is_dense(vit):
        return [dense.with_reduction(cost) for cost in COSTS]
    return [vit]


@dataclasses.dataclass
class RecoveryRun:
    """The training at one cost, whose last weights are its result."""

    fit: Fit
    images: Divided
    answered: list[tuple]  # the held-out images, from `DenseTeacher.answered`
    stop: signals.Stop  # ends it
    # The time, by the monotonic clock, at which the last measure should be done; None:
    # the recipe's steps are taken.
    end: float | None = None

    def __post_init__(self):
        self.opened = time.monotonic()
        self.crops = functools.partial(
            random_crops, self.images.learned, self.fit.vit.image_size, self.fit.recipe
        )
        self.rate = self.fit.recipe.rate  # the highest learning rate
        self.steps_done = 0
        self.seconds_of_step = 0.0
        self.curve = []  # (step, mean) of each measure
        self.trained = None  # the last weights; None: they are no better than the start
        self.before = self.after = self.off_the_shelf = self.measure()
        if self.fit.vit.recovered:
            self.off_the_shelf = self.measure(dense=True)

    def compile(self):
        """Compile the step, by one that counts for nothing."""
        for batch in self.crops(1).read():
            self.fit.take_step(batch["image"][:, 0], 0.0).block_until_ready()
        self.measure()  # for its time, without compilation
        del self.curve[1:]

    def train(self, progress: ProgressBar, shown: int):
        """Train until it does not diverge; keep the last weights if they are better.

        shown: what `progress` has been told of earlier costs
        """
        for attempt in range(ATTEMPTS):
            self.rate = self.fit.recipe.rate / 4**attempt
            if self.attempt(progress, shown) or self.stop.requested:
                break
            if attempt == 0:
                log.warning(
                    "recover: training diverged; it starts again with a quarter of the "
                    "learning rate"
                )
        self.after = self.measure()
        if mean(self.after) < mean(self.before):
            self.trained = self.fit.get().trained
        else:
            self.after = self.before

    def attempt(self, progress: ProgressBar, shown: int) -> bool:
        """Train from the start. Returns whether it ended without diverging."""
        self.fit.start()
        self.steps_done = 0
        del self.curve[1:]
        self.began = time.monotonic()
        began = self.began  # a step takes its batch's reading, too
        # A time that was given ends the training, whatever the number of steps.
        steps = MANY if self.end else self.fit.recipe.steps
        with contextlib.closing(self.crops(steps).read(THREADS)) as reader:
            for batch in reader:
                rate = self.rate * schedule(min(1.0, self.share(ahead=0.5)))
                # Waiting makes for true times and a prompt Ctrl-C.
                loss = np.asarray(self.fit.take_step(batch["image"][:, 0], rate))
                self.stop.defers = True
                self.steps_done += 1
                self.seconds_of_step = time.monotonic() - began
                seconds = int(time.monotonic() - self.began)
                done = shown + (seconds if self.end else self.steps_done)
                progress.update(done - progress.n)
                if not np.isfinite(loss).all():
                    return False
                if self.stop.requested or (self.end and self.share(ahead=1) > 1):
                    break
                if len(self.curve) == 1 and self.share() >= CHECK:
                    if mean(self.measure()) > DIVERGED * mean(self.before):
                        return False
                began = time.monotonic()
        return True

    def share(self, ahead: float = 0) -> float:
        """The share of the training that is done some steps ahead."""
        if not self.end:
            return (self.steps_done + ahead) / self.fit.recipe.steps
        done = time.monotonic() - self.began + ahead * self.seconds_of_step
        return done / max(1e-9, self.end - self.seconds_of_measure - self.began)

    def measure(self, dense: bool = False) -> dict[str, np.ndarray]:
        """`Comparison.measure` of the held-out images, as means of scenes.

        dense: with the dense model's values, whatever was learned
        """
        began = time.monotonic()
        measured = self.fit.measure(self.answered, dense)
        scenes = self.images.scenes[measured.pop("index")]
        _, scenes, counts = np.unique(scenes, return_inverse=True, return_counts=True)
        means = {}
        for name, values in measured.items():
            means[name] = np.bincount(scenes, values) / counts
        self.seconds_of_measure = time.monotonic() - began
        if not dense:
            self.curve.append((self.steps_done, mean(means)))
            log.info("recover: step %s, %.4f", *self.curve[-1])
        return means

    def cost(self, dense: Pretrained) -> RecoveredVariant:
        """What was learned. dense: the teacher."""
        form = self.fit.vit
        change = mean_difference(self.after["distance"], self.before["distance"])
        numbers = {}
        if form.recovered:  # start from the numbers of its last recovery
            numbers = form.recovered.numbers
        if self.trained is not None:
            numbers = {**numbers, **flat_params(self.trained)}
        return RecoveredVariant(
            reduction=form.reduction,
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
            rate=self.rate,
            curve=tuple(self.curve),
            stopped=self.stop.requested,
            changed=self.trained is not None,
            image_size=form.image_size,
            depth=form.model.depth,
            weights=dense.source.name or None,
            share=form.gmacs / dense.gmacs,
            numbers=numbers,
        )


def schedule(share: float) -> float:
    """The learning rate at a share of the training, as a share of the highest one."""
    return min(1.0, share / WARM_UP) * math.cos(math.pi / 2 * share) ** 2


def mean(measured: dict[str, np.ndarray], name: str = "distance") -> float:
    """The mean of a measure; infinite where it is not a number."""
    return float(np.nan_to_num(measured[name].mean(), nan=np.inf, posinf=np.inf))
