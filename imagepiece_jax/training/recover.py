"""Recovery: reduced forms of a model learn to answer as its dense form does.

    better = imagepiece_jax.recover(vit, "photos")
    print(better.recovery)
    half = better.with_reduction(0.5)

It takes a few hundred images without labels, and minutes. The dense model stays what it
is; its reduced forms get other values of some parameters, by default of norms and
biases. The teacher is the dense model, which sees the same crops of the images.
"""

import contextlib
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from imagepiece_jax.common import parallel, signals
from imagepiece_jax.common.fields import is_number
from imagepiece_jax.common.progress import INTERVAL, in_words
from imagepiece_jax.data.copies import readable_originals
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.source import Source
from imagepiece_jax.data.transforms import TrainTransform
from imagepiece_jax.errors import InputError, short_traceback
from imagepiece_jax.evaluate.statistics import best_is_lower, mean_difference
from imagepiece_jax.models.pretrained import Pretrained, check_pretrained
from imagepiece_jax.models.recovery_record import (
    RecoveredCost,
    RecoveredSet,
    Recovery,
)
from imagepiece_jax.models.variables import check_variables
from imagepiece_jax.training.recovery_images import (
    Crops,
    divided,
    evaluation_batches,
)
from imagepiece_jax.training.recovery_step import STEPS, Fit, Recipe

COSTS = (0.6, 0.5, 0.4)  # that a dense model learns, as shares of its MACs
MAX_IMAGES = 10_000  # the most images that are looked through
MEASURES = 8  # number of measures during the training
# Level of the test by which the best weights are better than the start. With .05 a
# change whose mean is none would be kept in up to 8 of 100 cases, as tails differ.
LEVEL = 0.03

log = logging.getLogger("imagepiece_jax.training")


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
    """Learn to answer as the dense model does, from images without labels.

    Of a reduced model its cost is learned; of a dense one .6, .5 and .4 of its MACs, by
    the recommended method, which then share what they learn. The dense model is not
    changed: `with_reduction(None)` gives it back to the bit.

    Of images that show one picture the first counts, and of more than 10,000 so many
    that are evenly spaced. A fifth, 16 to 500 of them, is held out. They measure the
    numbers eight times during the training, and the best ones are returned. If these
    are not better than at the start beyond chance (`statistics.best_is_lower`), the
    start stays. Ctrl-C ends the training, and the best numbers so far are returned. The
    same seed and number of steps give the same bits on the same machine.
    OpenCV resizes the crops where it is installed, else Pillow.

    vit: a dense model, or one with a reduction that learns no selectors
    images: a folder, paths, PIL images, uint8 arrays [B, H, W, 3] or a list of
        [H, W, 3], or csv:FILE or folder:PATH, of which train is taken, as it is of a
        folder that holds train and val; labels are not read
    steps: number of training steps for a cost; None: 250, or as many as fit in
        `minutes`
    minutes: time limit for all of it; None: no limit
    batch_size: images in a step, over all devices of this machine
    parameters: which parameters are trained: "norms", "biases" (norms, all other biases
        and factors of layer scale) or "all"
    Returns the same model with a `recovery`, whose `costs` have what was lost before
        and after.
    Raises InputError for a model with learned selectors, and for images that are too
        few, or all alike.
    """
    check_pretrained(vit)
    check_recoverable(vit)
    if minutes is not None and not (is_number(minutes) and 0 < minutes < math.inf):
        raise InputError(
            field="minutes",
            value=minutes,
            allowed="numbers above 0",
        )
    if steps is not None and minutes is not None:
        raise InputError(
            "is given together with the number of steps",
            field="minutes",
            allowed="one of the two",
        )
    recipe = Recipe.for_model(
        vit,
        parameters=parameters,
        steps=STEPS if steps is None else steps,
        batch_size=batch_size,
        seed=seed,
    )
    return recovered(vit, as_source(images), recipe, minutes)


def check_recoverable(vit: Pretrained):
    """Raise InputError for a model that `recover` does not take.

    Such a model has learned selectors, or variables of another model.
    """
    if vit.model.has_selectors:
        raise InputError(
            "has selectors that must be learned",
            field=vit.label,
            allowed="reductions without; train.py trains the others",
        )
    check_variables(vit.model, vit.variables, vit.image_size)


def recovered(
    vit: Pretrained, source: Source, recipe: Recipe, minutes: float | None = None
) -> Pretrained:
    """As `recover`, with a Recipe and the images of a Source.

    minutes: time limit in place of the recipe's steps; None: the recipe's steps
    """
    began = time.monotonic()
    few = source.spread(MAX_IMAGES)
    if few is not source:
        log.warning(
            "%s of the %s images are taken, evenly spaced",
            f"{len(few):,}",
            f"{len(source):,}",
        )
    dense = vit.with_reduction(None)
    forms = forms_of(vit, dense)
    few = readable_originals(few)
    learned, held_out = divided(few, recipe.batch_size)
    # Images are checked before anything is compiled.
    batches = evaluation_batches(held_out, vit.preprocessing, recipe.batch_size)
    transform = TrainTransform(
        vit.image_size, "random_resized", recipe.area, shift=0, flip=True
    )
    steps = None if minutes else recipe.steps * len(forms)
    crops = Crops(learned, transform, recipe.batch_size, recipe.seed, steps)
    fits = [Fit(form, recipe, dense) for form in forms]
    first = fits[0]
    first.hold_out(batches)
    for fit in fits:
        fit.weights = first.weights
        fit.held = first.held
    end = None if minutes is None else began + 60 * minutes
    course = Course(fits, end, began)
    with stopping(course):
        try:
            course.run(crops)
        except KeyboardInterrupt:
            course.stopped = True
        better = with_best(vit, dense, course, len(learned), time.monotonic() - began)
        if course.stopped:
            kept = "the best weights so far are kept"
            if not course.changed:
                kept = "nothing was better than the start yet"
            print(f"stopped: {kept}", file=sys.stderr)
        return better


def is_dense(vit: Pretrained) -> bool:
    """Whether no block loses tokens."""
    return not any(layer.counts for layer in vit.model.plan)


def forms_of(vit: Pretrained, dense: Pretrained) -> list[Pretrained]:
    """The forms that learn: the model itself, or of a dense one those at COSTS.

    They start with the dense model's numbers, but for a cost that is learned again.
    """
    if is_dense(vit):
        bare = dataclasses.replace(dense, recovery=None)
        return [bare.with_reduction(cost) for cost in COSTS]
    own = vit.recovered
    if own and not own.fits(vit.model, vit.image_size):
        start = vit.dense_variables
        return [dataclasses.replace(vit, variables=start, recovery=None)]
    return [vit]


def with_best(vit, dense, course, images: int, seconds: float) -> Pretrained:
    """The model with its Recovery, which has the best numbers if they are better.

    dense: the teacher
    images: number of images that it learned from
    seconds: how long it took
    """
    recipe = course.recipe
    costs = []
    for place, fit in enumerate(course.fits):
        start = course.start[place]
        best = course.best[place] if course.changed else start
        interval = mean_difference(best["distance"], start["distance"])
        both = (start, best)
        agreement = tuple(100 * float(found["agreement"].mean()) for found in both)
        form = fit.vit
        cost = RecoveredCost(
            reduction=form.reduction,
            parameters=recipe.parameters,
            images=images,
            held_out=len(start["distance"]),
            steps=course.steps_done,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            seconds=round(seconds, 1),
            measure=fit.comparison.name,
            before=float(start["distance"].mean()),
            after=float(best["distance"].mean()),
            interval=(interval.low, interval.high),
            p=course.p,
            agreement=agreement,
            curve=tuple((step, values[place]) for step, values in course.curve),
            stopped=course.stopped,
            changed=course.changed,
            image_size=form.image_size,
            depth=form.model.depth,
            weights=None if vit.source is None else vit.source.name,
            share=form.gmacs / dense.gmacs,
        )
        costs.append(cost)
    first = course.fits[0]
    numbers = {}
    if course.changed:
        numbers = numbers_of(course.trained)
    elif first.vit.recovered:  # with whose numbers it started
        numbers = numbers_of(first.split(first.vit.variables["params"]))
    leaves = numbers_of(dense.variables["params"])
    of_dense = {path: leaves[path] for path in numbers}
    learned = Recovery((RecoveredSet(tuple(costs), numbers),), of_dense)
    return vit.with_recovery(learned.joined(vit.recovery))


def numbers_of(params) -> dict[str, np.ndarray]:
    """Parameters by their paths, without those that are None."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    return {path: leaf for path, leaf in leaves.items() if leaf is not None}


class Course:
    """The training of a recovery: its loop, its measures, and the best state so far.

    fits: a Fit of each form; they have one state, and a step is of one of them
    end: the time, by the monotonic clock, at which the last measure should be done;
        None: the recipe's steps are taken
    opened: the time at which the recovery began; None: now
    """

    def __init__(
        self,
        fits: Sequence[Fit],
        end: float | None = None,
        opened: float | None = None,
    ):
        self.opened = time.monotonic() if opened is None else opened
        self.fits = fits
        self.recipe = fits[0].recipe
        self.state = fits[0].state
        self.end = end
        self.start = self.measured()  # what `Fit.measure` returns before the first step
        self.best = self.start  # what it returned for the best numbers
        self.distances = []  # of the images, as `relative`, at each later measure
        self.trained = None  # the best numbers; None: nothing is better than the start
        self.steps_done = 0
        self.stopped = False  # whether a signal has ended it
        # (step, the mean distance of each form to the teacher) of each measure
        self.curve = [(0, means(self.start))]
        # time at which the first step of each form, which compiles, has ended
        self.began = math.nan
        self.seconds_of_measure = 0.0  # how long the last measure took
        self.next_measure = 1  # number of the next measure, of MEASURES
        self._order = np.random.default_rng(self.recipe.seed)
        self._waiting = []  # forms that come before any of them comes again

    def progress(self) -> tuple[float, float]:
        """(how much is done, how much there is to do), in steps or in seconds."""
        if self.end is None:
            return self.steps_done, self.steps
        if self.steps_done < len(self.fits):
            return 0, 1
        total = self.end - self.seconds_of_measure - self.began
        return time.monotonic() - self.began, max(total, 1e-3)

    @property
    def steps(self) -> int:
        """The recipe's number of steps, for all forms together."""
        return self.recipe.steps * len(self.fits)

    def run(self, crops: Crops):
        """Train to the end; measure MEASURES times, the last time at the end."""
        batches = iter(crops)
        with contextlib.closing(batches), Display(self) as display:
            for pixels in batches:
                rate = self.recipe.rate(*self.progress())
                loss = self.take_step(pixels, rate)
                loss.block_until_ready()  # for true times and a prompt Ctrl-C
                if self.steps_done < len(self.fits):
                    self.began = time.monotonic()
                self.steps_done += 1
                done, total = self.progress()
                if MEASURES * done >= total * self.next_measure:
                    self.next_measure = MEASURES * done // total + 1
                    self.measure()
                display.show()
                if done >= total or self.stopped:
                    return

    def take_step(self, pixels, rate: float):
        """A step of a form that is drawn: each comes once before any comes again."""
        if not self._waiting:
            self._waiting = self._order.permutation(len(self.fits)).tolist()
        fit = self.fits[self._waiting.pop()]
        fit.state = self.state
        loss = fit.take_step(pixels, self.steps_done, rate)
        self.state = fit.state
        return loss

    def measured(self) -> list[dict[str, np.ndarray]]:
        """`Fit.measure` of each form."""
        found = []
        for fit in self.fits:
            fit.state = self.state
            found.append(fit.measure())
        return found

    def relative(self, found: list[dict[str, np.ndarray]]) -> np.ndarray:
        """Distances of the images as shares of the start's mean, as means of forms."""
        shares = []
        for each, scale in zip(found, means(self.start), strict=True):
            shares.append(each["distance"] / (scale or 1.0))
        return np.mean(shares, axis=0)

    def measure(self):
        """Measure the state, and keep its numbers if it is the best so far."""
        began = time.monotonic()
        found = self.measured()
        distances = self.relative(found)
        if distances.mean() < self.relative(self.best).mean():
            self.trained = jax.device_get(parallel.unreplicate(self.state.trained))
            self.best = found
        self.distances.append(distances)
        self.curve.append((self.steps_done, means(found)))
        self.seconds_of_measure = time.monotonic() - began

    @property
    def p(self) -> float:
        """The chance that the best of all measures is as much better by luck."""
        if self.trained is None:
            return 1.0
        return best_is_lower(self.distances, self.relative(self.start))

    @property
    def changed(self) -> bool:
        """Whether the best numbers are better than the start beyond chance."""
        return self.p < LEVEL

    def seconds_left(self) -> float | None:
        """Seconds of training that are left, without the last measurement.

        They are known where a time was given. Else they are estimated from the steps
        after the first ones, which compile; None before that.
        """
        done, total = self.progress()
        if self.end is not None:
            return max(0.0, total - done)
        if self.steps_done <= len(self.fits):
            return None
        return self.seconds_of_step() * (total - done)

    def seconds_of_step(self) -> float:
        """Mean seconds of the steps after the first ones, which compile."""
        return (time.monotonic() - self.began) / (self.steps_done - len(self.fits))

    def announcement(self) -> str:
        """How long it takes on this machine, as known after the first steps."""
        left = self.seconds_left()
        steps = f"{self.steps} steps{self.over_costs}"
        if self.end is not None:
            steps = f"about {self.steps_done + left / self.seconds_of_step():.0f} steps"
        spent = in_words(self.began - self.opened)
        kept = "Ctrl-C keeps the best so far"
        return (
            f"{steps} take about {in_words(left)} on this machine, after {spent} of "
            f"reading and compiling; {kept}"
        )

    @property
    def over_costs(self) -> str:
        """How steps are shared, " (250 for each of 3 costs)"; "" for one cost."""
        costs = len(self.fits)
        if costs == 1:
            return ""
        return f" ({self.recipe.steps} for each of {costs} costs)"


def means(found: list[dict[str, np.ndarray]]) -> list[float]:
    """The mean distance of each form."""
    return [float(each["distance"].mean()) for each in found]


class Display:
    """The progress of a Course on stderr: a bar on a terminal, else lines."""

    FORM = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"

    def __init__(self, course: Course):
        self.course = course
        self.bar = tqdm(
            total=1.0, desc="recover", bar_format=self.FORM, leave=True, disable=None
        )
        self.due = time.monotonic() + INTERVAL  # time of the next line
        self.measured = 1  # number of measures that were shown
        self.announced = False  # whether it was said how long it takes

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def show(self):
        """Show the progress after a step; first of all how long it takes."""
        done, total = self.course.progress()
        if self.course.steps_done <= len(self.course.fits) and done < total:
            return
        if not self.announced and done < total:
            announcement = f"recover: {self.course.announcement()}"
            self.bar.write(announcement, file=sys.stderr)
            self.announced = True
        text = self.text()
        if not self.bar.disable:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update(min(1.0, done / total) - self.bar.n)
            return
        measured = len(self.course.curve)
        if measured > self.measured or time.monotonic() >= self.due:
            print(f"recover: {text}", file=sys.stderr, flush=True)
            self.due = time.monotonic() + INTERVAL
        self.measured = measured

    def text(self) -> str:
        """The steps that are done, the newest measure, and the time left."""
        course = self.course
        steps = f"step {course.steps_done}"
        if course.end is None:
            steps += f" of {course.steps}{course.over_costs}"
        _, values = course.curve[-1]
        shown = ", ".join(f"{value:.4f}" for value in values)
        text = f"{steps}, {course.fits[0].comparison.name} {shown}"
        left = course.seconds_left()
        return text if left is None else f"{text}, {left:.0f} s left"


@contextlib.contextmanager
def stopping(course: Course):
    """Context in which a signal ends the course after its current step.

    Until the course has better weights than at the start, a signal ends a command, and
    Ctrl-C raises KeyboardInterrupt elsewhere.
    """

    def stop(signum):
        course.stopped = True
        return course.trained is not None

    with signals.deferring(stop):
        yield
