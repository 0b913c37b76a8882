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
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import traverse_util

from imagepiece_jax.common import parallel, signals
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.progress import Progress, in_words, log
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.near_duplicates import readable_originals
from imagepiece_jax.data.source import Source
from imagepiece_jax.data.train_crop import TrainTransform
from imagepiece_jax.deploy.pictures import as_source
from imagepiece_jax.deploy.recover.recovery_images import (
    THREADS,
    divided,
    evaluation_batches,
)
from imagepiece_jax.deploy.recover.recovery_step import STEPS, Fit, Recipe, Teacher
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.statistics import mean_difference
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.recovery_record import (
    RecoveredCost,
    Recovery,
)
from imagepiece_jax.models.variables import check_variables
from imagepiece_jax.reduction.reduction import DENSE

# That a dense model learns, as shares of its MACs. One set of numbers for the three is
# 1.1 to 1.3 times as far from the dense model (docs/tables/recover_sharp).
COSTS = (0.6, 0.5, 0.4)
MAX_IMAGES = 10_000  # the most images that are looked through
MEASURES = 8  # number of measures after the trials
# Learning rates that are tried, and the share of all steps that a trial takes.
RATES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
TRIAL = 16
# Smallest and largest share of an image's area that a random crop covers.
AREA = (0.4, 1.0)

NOTHING_BETTER = "nothing was better than the start yet, so nothing is kept"


def recover(
    vit: Pretrained,
    images: Any,
    *,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 8,
    seed: int = 0,
    parameters: str = "biases",
) -> Pretrained:
    """Learn to answer as the dense model does, from images without labels.

    Of a reduced model its cost is learned; of a dense one .6, .5 and .4 of its MACs, by
    the recommended method, one after the other. The dense model is not changed:
    `with_reduction(None)` gives it back to the bit.

    Of images that show one picture the first counts, and of more than 10,000 so many
    that are evenly spaced. A fifth, 16 to 500 of them, is held out. One half of these
    is measured during the training, and the numbers with its lowest mean come back,
    where that is lower than the start's; the report is of the other half. Steps
    include short trials of learning rates. Ctrl-C ends it, and the best numbers so far
    come back. The same seed and number of steps give the same bits on the same machine.
    OpenCV resizes the crops where it is installed, else Pillow.

    vit: a dense model, or one with a reduction that learns no selectors
    images: a folder, paths, PIL images, uint8 arrays [B, H, W, 3] or a list of
        [H, W, 3], or csv:FILE; of a table, and of a folder that holds train and val,
        train is taken; labels are not read
    steps: number of training steps for a cost; None: 750, or as many as fit in
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
    check_recoverable(vit)
    if minutes is not None:
        check_range("minutes", minutes, above=0)
        if steps is not None:
            raise InputError("steps and minutes are given; one of them says how long")
    recipe = Recipe(
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
        raise InputError(f"{vit.label} has selectors, which training must learn")
    reduction = vit.reduction
    # Dense attention may be said to be proportional, which changes nothing.
    if is_dense(vit) and reduction is not None and reduction.name != DENSE.name:
        raise InputError(f"reduction {reduction} leaves all tokens: nothing to recover")
    check_variables(vit.model, vit.variables)


def recovered(
    vit: Pretrained, source: Source, recipe: Recipe, minutes: float | None = None
) -> Pretrained:
    """As `recover`, with a Recipe and the images of a Source.

    minutes: time limit in place of the recipe's steps; None: the recipe's steps
    """
    began = time.monotonic()
    few = source.spread(MAX_IMAGES)
    if few is not source:
        log.info(
            "%s of the %s images are taken, evenly spaced",
            f"{len(few):,}",
            f"{len(source):,}",
        )
    dense = vit.with_reduction(None)
    forms = forms_of(vit, dense)
    few = readable_originals(few)
    learned, held_out = divided(few, recipe.batch_size)
    # Images are checked before anything is compiled. Every second one held out chooses
    # the best numbers, and the others judge them, so that the choice flatters nobody.
    halves = []
    for first in (0, 1):
        half = held_out.subset(range(first, len(held_out), 2))
        halves.append(evaluation_batches(half, vit.preprocessing, recipe.batch_size))
    transform = TrainTransform(
        vit.image_size, "random_resized", AREA, shift=0, flip=True
    )
    crops = functools.partial(
        Batches,
        source=learned,
        transform=transform,
        batch_size=recipe.batch_size,
        placement=parallel.placement(),
        seed=recipe.seed,
    )
    done = []
    with stopping() as stop:
        teacher = Teacher(dense)
        answered = [teacher.answered(batches) for batches in halves]
        for index, form in enumerate(forms):
            end = None
            if minutes is not None:
                now = time.monotonic()
                left = began + 60 * minutes - now
                end = now + left / (len(forms) - index)
            name = "recover"
            if len(forms) > 1:
                name = f"recover, cost {index + 1} of {len(forms)}"
            fit = Fit(form, recipe, teacher)
            run = RecoveryRun(fit, crops, *answered, name, stop, end)
            with contextlib.suppress(KeyboardInterrupt):  # which requests a stop, too
                run.run()
            run.judge()
            cost = learned_cost(run, dense, len(learned), len(held_out))
            if cost.changed or not (stop.requested and done):
                done.append(cost)
            if stop.requested:
                break
    leaves = numbers_of(dense.variables["params"])
    learned_paths = set().union(*(cost.numbers for cost in done))
    of_dense = {path: leaves[path] for path in learned_paths}
    better = vit.with_recovery(Recovery(tuple(done), of_dense).joined(vit.recovery))
    if stop.requested and stop.keeps:  # else it was said at once
        log.info("stopped: the best weights so far are kept")
    return better


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


def learned_cost(
    run: "RecoveryRun", dense: Pretrained, images: int, held_out: int
) -> RecoveredCost:
    """What a RecoveryRun has learned.

    dense: the teacher
    images, held_out: numbers of images that it learned from, and of those held out
    """
    recipe = run.fit.recipe
    form = run.fit.vit
    start, best = run.judged
    interval = mean_difference(best["distance"], start["distance"])
    agreement = tuple(100 * float(each["agreement"].mean()) for each in (start, best))
    numbers = {}
    if form.recovered:  # start from the numbers of its last recovery
        numbers = form.recovered.numbers
    if run.trained is not None:
        numbers = {**numbers, **numbers_of(run.trained)}
    return RecoveredCost(
        reduction=form.reduction,
        parameters=recipe.parameters,
        images=images,
        held_out=held_out,
        steps=run.steps_done,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        seconds=round(time.monotonic() - run.opened, 1),
        measure=run.fit.comparison.name,
        before=float(start["distance"].mean()),
        after=float(best["distance"].mean()),
        interval=(interval.low, interval.high),
        agreement=agreement,
        rate=run.rate,
        curve=tuple(run.curve),
        stopped=run.stop.requested,
        changed=run.trained is not None,
        image_size=form.image_size,
        depth=form.model.depth,
        weights=dense.source.name or None,
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


class RecoveryRun:
    """The training at one cost: trials of learning rates, then the rest with the best.

    The best numbers are those with the lowest mean distance of the images that choose,
    the start's included.

    crops: function (steps) -> batches of random crops
    choosing, judging: images held out, from `Teacher.answered`
    name: of the cost in messages
    stop: ends it
    end: the time, by the monotonic clock, at which the last measure should be done;
        None: the recipe's steps are taken
    """

    def __init__(
        self,
        fit: Fit,
        crops: Callable[..., Batches],
        choosing: list[tuple],
        judging: list[tuple],
        name: str,
        stop: Stop,
        end: float | None = None,
    ):
        self.opened = time.monotonic()
        self.fit = fit
        self.crops = crops
        self.choosing = choosing
        self.judging = judging
        self.name = name
        self.stop = stop
        self.end = end
        self.steps = fit.recipe.steps  # of all trials and the training after them
        self.steps_done = 0
        self.rate = RATES[0]  # the highest learning rate of the best trial
        self.trained = None  # the best numbers; None: nothing is better than the start
        self.start = mean(fit.measure(choosing))  # the mean before the first step
        self.best = self.start  # the lowest mean so far
        began = time.monotonic()
        judged = fit.measure(judging)
        self.seconds_of_measure = time.monotonic() - began  # of the last measure
        # What `Fit.measure` returns at the start, and for the best numbers.
        self.judged = (judged, judged)
        self.curve = [(0, self.start)]  # (step, mean) of each measure
        self.seconds_of_step = 0.0  # mean of the last steps
        self.shown = 0  # what `progress` has been told of

    def run(self):
        """Choose a learning rate, and train with it to the end."""
        total = self.steps
        if self.end is not None:
            total = round(self.end - self.opened)
        with Progress(self.name, total) as self.progress:
            self.time_steps()
            length = max(1, self.steps // TRIAL)
            self.choose_rate(length)
            if self.is_over():
                return
            self.plan()
            left = max(0, self.steps - self.steps_done)
            steps = range(length, length + left)
            self.train(steps, self.rate, falling, MEASURES)

    def time_steps(self):
        """Take two steps that count for nothing; say how long all of them take."""
        began = time.monotonic()
        for batch in self.crops(steps=range(2)).read():
            self.fit.take_step(batch["image"][:, 0], 0.0).block_until_ready()
            now = time.monotonic()
            self.seconds_of_step = now - began  # the first one compiles
            began = now
        self.plan()
        spent = in_words(time.monotonic() - self.opened)
        took = in_words(self.steps * self.seconds_of_step)
        self.progress.say(
            f"{self.name}: about {took} for {self.steps} steps on this machine, after "
            f"{spent} of reading and compiling; Ctrl-C keeps the best so far"
        )

    def plan(self):
        """Set the number of steps to that which fits, where a time was given."""
        if self.end is None:
            return
        # The last measure is of the images that judge.
        measures = (MEASURES + 1) * self.seconds_of_measure
        left = self.end - time.monotonic() - measures
        self.steps = max(1, self.steps_done + int(left / self.seconds_of_step))

    def choose_rate(self, length: int):
        """Try learning rates on the same crops, and go on with the best one's state.

        The first is the highest. A lower one is tried until it is no better and the
        best is below the start, in half of all steps.

        length: steps of a trial
        """
        lowest = math.inf
        affordable = max(1, self.steps // (2 * length))
        for rate in RATES[:affordable]:
            self.fit.start()
            value = self.train(range(length), rate, rising)
            if value < lowest or rate == RATES[0]:
                lowest = value
                self.rate = rate
                state = self.fit.get()
            elif lowest < self.start:
                break
            if self.is_over():
                break
        self.fit.put(state)

    def train(self, steps: range, rate: float, schedule, measures: int = 1) -> float:
        """Take some steps; measure so many times, the last time at the end.

        schedule: function of the share that is done, of the learning rate
        Returns the last mean.
        """
        count = len(steps)
        seconds = 0.0
        reader = self.crops(steps=steps).read(THREADS)
        with contextlib.closing(reader):
            began = time.monotonic()  # a step takes its batch's reading, too
            for place, batch in enumerate(reader, start=1):
                now = rate * schedule((place - 0.5) / count)
                # Waiting makes for true times and a prompt Ctrl-C.
                self.fit.take_step(batch["image"][:, 0], now).block_until_ready()
                self.steps_done += 1
                seconds += time.monotonic() - began
                self.seconds_of_step = seconds / place
                self.show()
                over = self.is_over()
                if over or place * measures % count < measures:
                    self.measure()
                if over:
                    break
                began = time.monotonic()
        return self.curve[-1][1]

    def is_over(self) -> bool:
        """Whether a signal ends it, or the time is only enough for two measures."""
        if self.stop.requested or self.end is None:
            return self.stop.requested
        return time.monotonic() + 2 * self.seconds_of_measure >= self.end

    def measure(self):
        """Measure the state, and keep its numbers if they are the best so far."""
        began = time.monotonic()
        value = mean(self.fit.measure(self.choosing))
        if value < self.best:
            self.trained = self.fit.get().trained
            self.best = value
            self.stop.keeps = True
        self.curve.append((self.steps_done, value))
        name = self.fit.comparison.name
        step = f"step {self.steps_done} of {self.steps}"
        self.progress.say(f"{self.name}: {step}, {name} {value:.4f}")
        self.seconds_of_measure = time.monotonic() - began

    def judge(self):
        """Measure the images that judge, with the best numbers."""
        if self.trained is None:
            return
        self.fit.put(self.fit.get()._replace(trained=self.trained))
        self.judged = (self.judged[0], self.fit.measure(self.judging))

    def show(self):
        """Show the steps that are done, or the seconds where a time was given."""
        done = self.steps_done
        if self.end is not None:
            done = int(time.monotonic() - self.opened)
        self.progress.update(done - self.shown)
        self.shown = done


def rising(share: float) -> float:
    """The learning rate of a trial, as a share of the highest one."""
    return share


def falling(share: float) -> float:
    """The learning rate after the trials, as a share of the highest one."""
    return math.cos(math.pi / 2 * share) ** 2


def mean(found: dict[str, np.ndarray]) -> float:
    """The mean distance of images; infinite where one is not finite."""
    value = float(found["distance"].mean())
    return value if math.isfinite(value) else math.inf


@contextlib.contextmanager
def stopping():
    """Context in which a signal ends training after its current step. Yields a Stop.

    Until there are better numbers than at the start, a signal ends a command, and
    Ctrl-C raises KeyboardInterrupt elsewhere.
    """
    stop = Stop()

    def request(signum):
        if not (stop.keeps or stop.requested):
            log.info(f"stopped: {NOTHING_BETTER}")
        stop.requested = True
        return stop.keeps

    with signals.deferring(request):
        yield stop
