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
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from imagepiece_jax.common import parallel, signals
from imagepiece_jax.common.fields import is_number
from imagepiece_jax.common.progress import INTERVAL, in_words
from imagepiece_jax.data.near_duplicates import readable_originals
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.source import Source
from imagepiece_jax.data.train_crop import TrainTransform
from imagepiece_jax.errors import InputError, short_traceback
from imagepiece_jax.evaluate.statistics import best_is_lower, mean_difference
from imagepiece_jax.models.pretrained import Pretrained, check_pretrained
from imagepiece_jax.models.recovery_record import (
    RecoveredCost,
    Recovery,
)
from imagepiece_jax.models.variables import check_variables
from imagepiece_jax.reduction.reduction import DENSE
from imagepiece_jax.training.recovery_images import (
    Crops,
    divided,
    evaluation_batches,
)
from imagepiece_jax.training.recovery_step import STEPS, Fit, Recipe

# That a dense model learns, as shares of its MACs. One set of numbers for the three is
# 1.1 to 1.3 times as far from the dense model (docs/tables/recover_sharp).
COSTS = (0.6, 0.5, 0.4)
MAX_IMAGES = 10_000  # the most images that are looked through
MEASURES = 8  # number of measures during the training
# Level of the test by which the best weights are better than the start. With .05 a
# change whose mean is none would be kept in up to 8 of 100 cases, as tails differ.
LEVEL = 0.03

NOTHING_BETTER = "nothing was better than the start yet"

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
    the recommended method, one after the other. The dense model is not changed:
    `with_reduction(None)` gives it back to the bit.

    Of images that show one picture the first counts, and of more than 10,000 so many
    that are evenly spaced. A fifth, 16 to 500 of them, is held out. They measure the
    numbers eight times during the training, and the best ones are returned. If these
    are not better than at the start beyond chance (`statistics.best_is_lower`), the
    start stays. Ctrl-C ends the training, and the best numbers so far are returned. The
    same seed and number of steps give the same bits on the same machine. OpenCV resizes
    the crops where it is installed, else Pillow.

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
    Raises InputError for a model with learned selectors, for a reduction that leaves
        all tokens, and for images that are too few, or all alike.
    """
    check_pretrained(vit)
    check_recoverable(vit)
    if minutes is not None and not (is_number(minutes) and 0 < minutes < math.inf):
        raise InputError("minutes", minutes, "numbers above 0")
    if steps is not None and minutes is not None:
        problem = "is given together with the number of steps"
        raise InputError("minutes", allowed="one of the two", problem=problem)
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

    Such a model has learned selectors, a reduction that leaves all tokens, or variables
    of another model.
    """
    if vit.model.has_selectors:
        allowed = "reductions without; the command train trains the others"
        problem = "has selectors that must be learned"
        raise InputError(vit.label, allowed=allowed, problem=problem)
    reduction = vit.reduction
    # Dense attention may be said to be proportional, which changes nothing.
    if is_dense(vit) and reduction is not None and reduction.name != DENSE.name:
        allowed = "reductions that remove tokens; with none, .6, .5 and .4 are learned"
        problem = f"is {reduction.words}, which leaves all tokens: nothing to recover"
        raise InputError("reduction", reduction.words, allowed, problem=problem)
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
    steps = None if minutes else recipe.steps
    crops = Crops(learned, transform, recipe.batch_size, recipe.seed, steps)
    done = []
    fit = None
    with stopping() as stop:
        for index, form in enumerate(forms):
            now = time.monotonic()
            end = None
            if minutes is not None:
                left = began + 60 * minutes - now
                end = now + left / (len(forms) - index)
            fit = Fit(form, recipe, dense, like=fit)
            if index == 0:
                fit.hold_out(batches)
            course = Course(fit, end, stop, index + 1, len(forms))
            with contextlib.suppress(KeyboardInterrupt):  # which requests a stop, too
                course.run(crops)
            cost = learned_cost(course, dense, len(learned))
            if cost.changed or not (stop.requested and done):
                done.append(cost)
            if stop.requested:
                break
    leaves = numbers_of(dense.variables["params"])
    learned_paths = set().union(*(cost.numbers for cost in done))
    of_dense = {path: leaves[path] for path in learned_paths}
    better = vit.with_recovery(Recovery(tuple(done), of_dense).joined(vit.recovery))
    if stop.requested and stop.keeps:  # else it was said at once
        kept = "the best weights so far are kept"
        if not any(cost.changed for cost in done):
            kept = NOTHING_BETTER
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
    return [vit]


def learned_cost(course: "Course", dense: Pretrained, images: int) -> RecoveredCost:
    """What a Course has learned: its best numbers if they are better than the start.

    dense: the teacher
    images: number of images that it learned from
    """
    fit = course.fit
    recipe = fit.recipe
    form = fit.vit
    start = course.start
    best = course.best if course.changed else start
    interval = mean_difference(best["distance"], start["distance"])
    agreement = tuple(100 * float(each["agreement"].mean()) for each in (start, best))
    numbers = {}
    if form.recovered:  # with whose numbers it started, also of what is not trained now
        numbers = form.recovered.numbers
    if course.changed:
        numbers = {**numbers, **numbers_of(course.trained)}
    return RecoveredCost(
        reduction=form.reduction,
        parameters=recipe.parameters,
        images=images,
        held_out=len(start["distance"]),
        steps=course.steps_done,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        seconds=round(time.monotonic() - course.opened, 1),
        measure=fit.comparison.name,
        before=mean(start),
        after=mean(best),
        interval=(interval.low, interval.high),
        p=course.p,
        agreement=agreement,
        curve=tuple(course.curve),
        stopped=course.stop.requested,
        changed=course.changed,
        image_size=form.image_size,
        depth=form.model.depth,
        weights=None if dense.source is None else dense.source.name,
        share=form.gmacs / dense.gmacs,
        numbers=numbers,
    )


def numbers_of(params) -> dict[str, np.ndarray]:
    """Parameters by their paths, without those that are None."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    return {path: leaf for path, leaf in leaves.items() if leaf is not None}


@dataclasses.dataclass
class Stop:
    """What a signal asks for, and whether there is something to keep then."""

    requested: bool = False  # that training ends after the current step
    keeps: bool = False  # whether some numbers are better than at the start


class Course:
    """The training at one cost: its loop, its measures, and the best state so far.

    end: the time, by the monotonic clock, at which the last measure should be done;
        None: the recipe's steps are taken
    stop: ends it; None: nothing does
    number, costs: which cost it is, from 1, of how many that are learned
    """

    def __init__(
        self,
        fit: Fit,
        end: float | None = None,
        stop: Stop | None = None,
        number: int = 1,
        costs: int = 1,
    ):
        self.opened = time.monotonic()
        self.fit = fit
        self.end = end
        self.stop = stop or Stop()
        self.number = number
        self.costs = costs
        self.start = fit.measure()  # what `Fit.measure` returns before the first step
        self.best = self.start  # what it returned for the best numbers
        self.distances = []  # of the images, at each later measure
        self.trained = None  # the best numbers; None: nothing is better than the start
        self.steps_done = 0
        # (step, the mean distance to the teacher) of each measure
        self.curve = [(0, mean(self.start))]
        # time at which the first step, which compiles, has ended
        self.began = math.nan
        self.seconds_of_measure = 0.0  # how long the last measure took
        self.next_measure = 1  # number of the next measure, of MEASURES

    def progress(self) -> tuple[float, float]:
        """(how much is done, how much there is to do), in steps or in seconds."""
        if self.end is None:
            return self.steps_done, self.fit.recipe.steps
        if not self.steps_done:
            return 0, 1
        total = self.end - self.seconds_of_measure - self.began
        return time.monotonic() - self.began, max(total, 1e-3)

    def run(self, crops: Crops):
        """Train to the end; measure MEASURES times, the last time at the end."""
        batches = iter(crops)
        with contextlib.closing(batches), Display(self) as display:
            for pixels in batches:
                rate = self.fit.recipe.rate(*self.progress())
                loss = self.fit.take_step(pixels, self.steps_done, rate)
                loss.block_until_ready()  # for true times and a prompt Ctrl-C
                if not self.steps_done:
                    self.began = time.monotonic()
                self.steps_done += 1
                done, total = self.progress()
                if MEASURES * done >= total * self.next_measure:
                    self.next_measure = MEASURES * done // total + 1
                    self.measure()
                display.show()
                if done >= total or self.stop.requested:
                    return

    def measure(self):
        """Measure the state, and keep its numbers if it is the best so far."""
        began = time.monotonic()
        found = self.fit.measure()
        if mean(found) < mean(self.best):
            trained = parallel.unreplicate(self.fit.state.trained)
            self.trained = jax.device_get(trained)
            self.best = found
            self.stop.keeps = True
        self.distances.append(found["distance"])
        self.curve.append((self.steps_done, mean(found)))
        self.seconds_of_measure = time.monotonic() - began

    @property
    def p(self) -> float:
        """The chance that the best of all measures is as much better by luck."""
        if self.trained is None:
            return 1.0
        return best_is_lower(self.distances, self.start["distance"])

    @property
    def changed(self) -> bool:
        """Whether the best numbers are better than the start beyond chance."""
        return self.p < LEVEL

    def seconds_left(self) -> float | None:
        """Seconds of training that are left, without the last measurement.

        They are known where a time was given. Else they are estimated from the steps
        after the first one, which compiles; None before that.
        """
        done, total = self.progress()
        if self.end is not None:
            return max(0.0, total - done)
        if self.steps_done <= 1:
            return None
        return self.seconds_of_step() * (total - done)

    def seconds_of_step(self) -> float:
        """Mean seconds of the steps after the first one, which compiles."""
        return (time.monotonic() - self.began) / (self.steps_done - 1)

    def announcement(self) -> str:
        """How long it takes on this machine, as known after the second step."""
        left = self.seconds_left()
        steps = f"{self.fit.recipe.steps} steps"
        if self.end is not None:
            steps = f"about {self.steps_done + left / self.seconds_of_step():.0f} steps"
        if self.costs > 1:
            steps = f"cost {self.number} of {self.costs}: {steps}"
        spent = in_words(self.began - self.opened)
        kept = "Ctrl-C keeps the best so far"
        return (
            f"{steps} take about {in_words(left)} on this machine, after {spent} of "
            f"reading and compiling; {kept}"
        )


def mean(found: dict[str, np.ndarray]) -> float:
    """The mean distance of what `Fit.measure` returned."""
    return float(found["distance"].mean())


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
        if self.course.steps_done <= 1 and done < total:
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
        text = f"step {course.steps_done}"
        if course.end is None:
            text += f" of {course.fit.recipe.steps}"
        if course.costs > 1:
            text = f"cost {course.number} of {course.costs}, {text}"
        _, value = course.curve[-1]
        text += f", {course.fit.comparison.name} {value:.4f}"
        left = course.seconds_left()
        return text if left is None else f"{text}, {left:.0f} s left"


@contextlib.contextmanager
def stopping():
    """Context in which a signal ends training after its current step. Yields a Stop.

    Until there are better numbers than at the start, a signal ends a command, and
    Ctrl-C raises KeyboardInterrupt elsewhere.
    """
    stop = Stop()

    def request(signum):
        if not (stop.keeps or stop.requested):
            print(f"stopped: {NOTHING_BETTER}", file=sys.stderr, flush=True)
        stop.requested = True
        return stop.keeps

    with signals.deferring(request):
        yield stop
