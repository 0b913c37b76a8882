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
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import traverse_util

from imagepiece_jax.common import parallel, signals
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.progress import Progress, in_words
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.near_duplicates import readable_scenes
from imagepiece_jax.data.source import Source
from imagepiece_jax.data.train_crop import TrainTransform
from imagepiece_jax.deploy.pictures import as_source
from imagepiece_jax.deploy.recover.recovery_images import (
    THREADS,
    Divided,
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

# What a dense model learns, as shares of its MACs. One set of values for the three is
# 1.1 to 1.3 times as far from the dense model (docs/tables/recover_sharp).
COSTS = (0.6, 0.5, 0.4)
MAX_IMAGES = 10_000  # the most images that are looked through
WARM_UP = 0.05  # share of the steps in which the learning rate rises
# Shares of the training after which the held-out images are measured, besides its end.
# By the first one, a training that diverges has DIVERGED times the start's distance.
MEASURES = (0.1, 0.5)
MANY = 10**9  # more steps than fit in any time
DIVERGED = 2.0
ATTEMPTS = 4  # at a quarter of the learning rate each time
# Smallest and largest share of an image's area that a random crop covers.
AREA = (0.4, 1.0)

NOTHING_BETTER = "stopped: nothing is better than the start, so nothing is kept"

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
    all held out or all learned from. The last weights come back, unless the held-out
    images are further from the dense model than before. Ctrl-C ends the training after
    its current step. The same seed and number of steps give the same bits on the same
    machine. OpenCV resizes the crops where it is installed, else Pillow.

    vit: a dense model, or one with a reduction that learns no selectors
    images: a folder, paths, PIL images, uint8 arrays [B, H, W, 3] or a list of
        [H, W, 3], or csv:FILE; of a table, and of a folder that holds train and val,
        train is taken; labels are not read
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
        log.warning(
            "%s of the %s images are taken, evenly spaced",
            f"{len(few):,}",
            f"{len(source):,}",
        )
    dense = vit.with_reduction(None)
    forms = forms_of(vit, dense)
    # Images are checked before anything is compiled.
    images = divided(*readable_scenes(few), recipe.batch_size)
    batches = evaluation_batches(images.held_out, vit.preprocessing, recipe.batch_size)
    transform = TrainTransform(
        vit.image_size, "random_resized", AREA, shift=0, flip=True
    )
    crops = functools.partial(
        Batches,
        source=images.learned,
        transform=transform,
        batch_size=recipe.batch_size,
        placement=parallel.placement(),
        seed=recipe.seed,
    )
    done = []
    progress = None
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stopping())
        teacher = Teacher(dense)
        answered = teacher.answered(batches)
        for index, form in enumerate(forms):
            end = None
            if minutes is not None:
                now = time.monotonic()
                end = now + (began + 60 * minutes - now) / (len(forms) - index)
            fit = Fit(form, recipe, teacher)
            run = RecoveryRun(fit, crops, answered, images.scenes, stop, end)
            with contextlib.suppress(KeyboardInterrupt):  # which requests a stop, too
                run.prepare()
                if progress is None:  # after the compilation, which is no step
                    compiled = time.monotonic()
                    total = len(forms) * recipe.steps
                    if minutes is not None:
                        total = max(1, round(began + 60 * minutes - compiled))
                    progress = stack.enter_context(Progress("recover", total))
                    took = in_words(len(forms) * recipe.steps * run.seconds_of_step)
                    log.info("recover: about %s on this machine", took)
                shown = index * recipe.steps
                if minutes is not None:
                    shown = int(time.monotonic() - compiled)
                run.train(progress, shown)
            cost = learned_cost(run, dense, images)
            if cost.changed or not (stop.requested and done):
                done.append(cost)
            if stop.requested:
                break
    leaves = params_by_path(dense.variables["params"])
    learned_paths = set().union(*(cost.numbers for cost in done))
    of_dense = {path: leaves[path] for path in learned_paths}
    better = vit.with_recovery(Recovery(tuple(done), of_dense).joined(vit.recovery))
    if stop.requested and stop.defers:  # else it was said at once
        kept = any(cost.changed for cost in done)
        log.warning("stopped: the weights so far are kept" if kept else NOTHING_BETTER)
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
    run: "RecoveryRun", dense: Pretrained, images: Divided
) -> RecoveredCost:
    """What a RecoveryRun has learned.

    dense: the teacher
    """
    recipe = run.fit.recipe
    form = run.fit.vit
    before, after = run.before, run.after
    interval = mean_difference(after["distance"], before["distance"])
    agreement = tuple(100 * float(each["agreement"].mean()) for each in (before, after))
    numbers = {}
    if form.recovered:  # start from the numbers of its last recovery
        numbers = form.recovered.numbers
    if run.trained is not None:
        numbers = {**numbers, **params_by_path(run.trained)}
    return RecoveredCost(
        reduction=form.reduction,
        parameters=recipe.parameters,
        images=len(images.learned),
        held_out=len(images.held_out),
        scenes=images.num_scenes,
        steps=run.steps_done,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        seconds=round(time.monotonic() - run.opened, 1),
        measure=run.fit.comparison.name,
        off_the_shelf=mean(run.off_the_shelf or before),
        before=mean(before),
        after=mean(after),
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


def params_by_path(params) -> dict[str, np.ndarray]:
    """Parameters by their paths, without those that are None."""
    leaves = traverse_util.flatten_dict(params, sep="/")
    return {path: leaf for path, leaf in leaves.items() if leaf is not None}


@dataclasses.dataclass
class Stop:
    """What a signal asks for, and whether there is something to keep then."""

    requested: bool = False  # that training ends after the current step
    defers: bool = False  # whether steps were taken, whose weights may be better


class RecoveryRun:
    """The training at one cost, whose last weights are its result.

    crops: function (steps) -> batches of random crops
    answered: the held-out images, from `Teacher.answered`
    scenes: the scene of each held-out image, by which measures are averaged
    stop: ends it
    end: the time, by the monotonic clock, at which the last measure should be done;
        None: the recipe's steps are taken
    """

    def __init__(
        self,
        fit: Fit,
        crops: Callable[..., Batches],
        answered: list[tuple],
        scenes: np.ndarray,
        stop: Stop,
        end: float | None = None,
    ):
        self.opened = time.monotonic()
        self.fit = fit
        self.crops = crops
        self.answered = answered
        self.scenes = scenes
        self.stop = stop
        self.end = end
        self.rate = fit.recipe.rate  # the highest learning rate
        self.steps_done = 0
        self.curve = []  # (step, mean) of each measure
        self.trained = None  # the last weights; None: they are no better than the start
        self.before = self.measure()
        self.after = self.before
        self.off_the_shelf = self.measure(dense=True) if fit.vit.recovered else None

    def prepare(self):
        """Compile the step, and take its time, by two steps that count for nothing."""
        for batch in self.crops(steps=range(2)).read():
            if self.stop.requested:
                return
            began = time.monotonic()
            self.fit.take_step(batch["image"][:, 0], 0.0).block_until_ready()
            self.seconds_of_step = time.monotonic() - began

    def train(self, progress: Progress, shown: int):
        """Train until it does not diverge; keep the last weights if they are better.

        shown: what `progress` has been told of earlier costs
        """
        self.progress = progress
        self.shown = shown
        if self.stop.requested:
            return
        for attempt in range(ATTEMPTS):
            self.rate = self.fit.recipe.rate / 4**attempt
            if self.attempt() or self.stop.requested:
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

    def attempt(self) -> bool:
        """Train from the start. Returns whether it ended without diverging."""
        self.fit.start()
        self.steps_done = 0
        del self.curve[1:]
        self.began = time.monotonic()
        measures = [*MEASURES]
        seconds = 0.0
        # A time that was given ends the training, whatever the number of steps.
        steps = MANY if self.end else self.fit.recipe.steps
        reader = self.crops(steps=range(steps)).read(THREADS)
        with contextlib.closing(reader):
            began = self.began  # a step takes its batch's reading, too
            for batch in reader:
                rate = self.rate * schedule(min(1.0, self.share(ahead=0.5)))
                # Waiting makes for true times and a prompt Ctrl-C.
                loss = np.asarray(self.fit.take_step(batch["image"][:, 0], rate))
                self.stop.defers = True
                self.steps_done += 1
                seconds += time.monotonic() - began
                self.seconds_of_step = seconds / self.steps_done
                self.show()
                if not np.isfinite(loss).all():
                    return False
                if self.stop.requested or (self.end and self.share(ahead=1) > 1):
                    break
                if measures and self.share() >= measures[0]:
                    measures.pop(0)
                    value = mean(self.measure())
                    if len(self.curve) == 2 and value > DIVERGED * self.curve[0][1]:
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
        _, scenes = np.unique(self.scenes[measured.pop("index")], return_inverse=True)
        counts = np.bincount(scenes)
        means = {}
        for name, values in measured.items():
            means[name] = np.bincount(scenes, values) / counts
        if not dense:
            self.note(mean(means))
        self.seconds_of_measure = time.monotonic() - began
        return means

    def note(self, value: float):
        """Note a measure of the present weights."""
        self.curve.append((self.steps_done, value))
        name = self.fit.comparison.name
        log.info("recover: step %s, %s %.4f", self.steps_done, name, value)

    def show(self):
        """Show the steps that are done, or the seconds where a time was given."""
        done = self.steps_done
        if self.end:
            done = int(time.monotonic() - self.began)
        self.progress.update(self.shown + done - self.progress.n)


def schedule(share: float) -> float:
    """The learning rate at a share of the training, as a share of the highest one."""
    return min(1.0, share / WARM_UP) * math.cos(math.pi / 2 * share) ** 2


def mean(measured: dict[str, np.ndarray]) -> float:
    """The mean distance; infinite where one is not finite."""
    value = float(measured["distance"].mean())
    return value if math.isfinite(value) else math.inf


@contextlib.contextmanager
def stopping():
    """Context in which a signal ends training after its current step. Yields a Stop.

    Before the first step a signal ends a command, and Ctrl-C raises KeyboardInterrupt
    elsewhere.
    """
    stop = Stop()

    def request(signum):
        if not (stop.defers or stop.requested):
            log.warning(NOTHING_BETTER)
        stop.requested = True
        return stop.defers

    with signals.deferring(request):
        yield stop
