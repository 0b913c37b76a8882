"""Recovery: reduced variants learn to answer like their dense model.

    better = imagepiece_jax.recover(vit, "photos")
    print(better.recovery)
    half = better.with_reduction(0.5)

A variant gets its own values of some parameters. The dense model, its teacher, stays.
"""

import contextlib
import dataclasses
import logging
import math
import time
from typing import Any

import numpy as np
from jaxtyping import Float

from imagepiece_jax.common import parallel, signals
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.progress import ProgressBar
from imagepiece_jax.common.statistics import mean_difference
from imagepiece_jax.data.augment.random_crop import TrainTransform
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import recovery_record
from imagepiece_jax.models.pretrained import Pretrained, check_loaded
from imagepiece_jax.recovery import recovery_images, recovery_step
from imagepiece_jax.recovery.recovery_images import read_image_batches, split_images
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION

# Costs at which a dense model is recovered, as shares of its MACs. With one set of
# values for all three costs, outputs are 1.1 to 1.3 times as far from the dense model
# (docs/results/tried.md).
RECOVERED_COSTS = (0.6, 0.5, 0.4)
WARM_UP_SHARE = 0.05  # share of training with a rising learning rate
# Training has diverged if its distance, at CHECK_SHARE of the training, is above
# DIVERGENCE_FACTOR times that at the start. A non-finite loss shows it at any step.
CHECK_SHARE = 0.1
DIVERGENCE_FACTOR = 2.0
UNLIMITED_STEPS = 10**9  # more than fit in any time limit
MAX_ATTEMPTS = 4  # every retry has a quarter of the learning rate

StretchMetrics = dict[str, Float[np.ndarray, " stretches"]]  # by the metric's name

log = logging.getLogger("imagepiece_jax.recover")


@parallel.without_mesh
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

    A fifth of the images is held out (`recovery_images.split_images`). The last weights
    are kept if they are better on the held-out images. Ctrl-C ends training after the
    current step; before the first step it raises KeyboardInterrupt. Equal seed and
    steps give equal bits on the same machine.

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
    recipe = make_recipe(
        steps, minutes, batch_size=batch_size, seed=seed, parameters=parameters
    )
    check_recoverable(vit)
    dense = vit.with_reduction(None)
    students = list_students(vit)
    # Images are checked before anything is compiled.
    earlier_variants = filter(None, [student.recovered_variant for student in students])
    learned_digests = "".join(variant.learned for variant in earlier_variants)
    image_split = split_images(as_source(images), batch_size, learned_digests)
    held_out = image_split.held_out
    batches = read_image_batches(held_out, vit.preprocessing, batch_size)
    # Steps, or seconds, of one cost.
    budget = recipe.steps if minutes is None else 60 * minutes / len(students)
    variants = []
    stop_signals = []
    with contextlib.ExitStack() as stack:
        teacher = recovery_step.DenseTeacher(dense)
        held_out_pairs = teacher.pair_outputs(batches)
        progress = None
        for student_number, student in enumerate(students):
            fit = recovery_step.StudentFit(student, recipe, teacher)
            training = StudentTraining(
                fit, image_split, held_out_pairs, budget, is_timed=minutes is not None
            )
            training.measure_and_compile()
            if progress is None:  # after compiling, for true step times
                stop_signals = stack.enter_context(signals.noted_signals())
                progress_end = max(1, round(budget * len(students)))
                progress = stack.enter_context(ProgressBar("recover", progress_end))
            training.stop_signals = stop_signals  # this list gets every signal
            training.train_student(progress, round(budget * student_number))
            variant = training.make_variant(dense)
            # After a stop a variant without gain is left out, unless it is the first.
            if variant.changed or not (stop_signals and variants):
                variants.append(variant)
            if stop_signals:
                break
    if stop_signals and any(variant.changed for variant in variants):
        log.warning("stopped: the weights so far are kept")
    elif stop_signals:
        log.warning("stopped: nothing is better than the start")
    recovery = recovery_record.Recovery(tuple(variants)).merge_earlier(vit.recovery)
    return dataclasses.replace(vit, recovery=recovery)


def make_recipe(
    steps: int | None, minutes: float | None, **other_fields: Any
) -> recovery_step.RecoveryRecipe:
    """Check arguments of `recover`, and set its default steps."""
    if minutes is not None:
        check_range("minutes", minutes, above=0)
        if steps is not None:
            raise InputError("steps and minutes are both given; give one")
    if steps is None:
        steps = recovery_step.DEFAULT_STEPS
    return recovery_step.RecoveryRecipe(steps=steps, **other_fields)


def check_recoverable(pretrained: Pretrained) -> None:
    """Raise InputError for a model that `recover` does not take."""
    check_loaded(pretrained)
    # A dense model may name proportional attention, which changes nothing.
    reduction = pretrained.reduction
    names_method = reduction is not None and reduction.name != DENSE_REDUCTION.name
    title = f"reduction {pretrained.typed_reduction}"
    if pretrained.model.has_selectors:
        raise InputError(f"{title} has selectors, which only training learns")
    if keeps_all_tokens(pretrained) and names_method:
        raise InputError(f"{title} keeps all tokens")


def keeps_all_tokens(pretrained: Pretrained) -> bool:
    """Whether every block keeps all tokens."""
    return not any(block_plan.counts for block_plan in pretrained.model.plan)


def list_students(pretrained: Pretrained) -> list[Pretrained]:
    """List the variants to train: a reduced model itself, or a dense one at all costs.

    A variant starts from its last recovery, if it has one, else from the dense values.
    """
    if keeps_all_tokens(pretrained):
        return [pretrained.with_reduction(cost) for cost in RECOVERED_COSTS]
    return [pretrained]


@dataclasses.dataclass
class StudentTraining:
    """Training at one cost, measured before and after."""

    fit: recovery_step.StudentFit
    image_split: recovery_images.ImageSplit
    held_out_pairs: list[tuple]  # held-out images, from `DenseTeacher.pair_outputs`
    budget: float  # steps, or seconds of training, that are left
    is_timed: bool  # whether `budget` counts seconds

    def __post_init__(self) -> None:
        self.start_time = time.monotonic()
        self.stop_signals = []  # signals that end the training
        self.lr = self.fit.recipe.lr  # the highest learning rate
        self.steps_done = 0
        self.spent_budget = 0.0  # part of `budget` that this attempt has taken
        self.step_cost = 0.0 if self.is_timed else 1.0  # the last step's part
        self.curve = []  # (training step, mean distance)
        self.trained_params = None  # last weights; None: not better than the start
        self.metrics_before: StretchMetrics = {}  # by `measure_and_compile`

    def make_crops(self, steps: int) -> Batches:
        """Batches of random crops for `steps` steps."""
        size = self.fit.student.image_size
        area = recovery_images.CROP_AREA
        return Batches(
            source=self.image_split.training,
            transform=TrainTransform(size, "random_resized", area, shift=0, flip=True),
            batch_size=self.fit.recipe.batch_size,
            placement=parallel.process_placement(),
            seed=self.fit.recipe.seed,
            steps=range(steps),
        )

    def measure_and_compile(self) -> None:
        """Measure the student before training, and compile the training step."""
        self.metrics_before = self.extend_curve()
        self.metrics_after = self.off_the_shelf_metrics = self.metrics_before
        if math.isinf(mean_metric(self.metrics_before)):
            raise InputError(f"{self.fit.student!r}: outputs are not finite")
        if self.fit.student.recovered_variant:
            self.off_the_shelf_metrics = self.measure_stretches(is_dense=True)
        # The step has learning rate 0, and `StudentFit.reset_state` resets its moments.
        for batch in self.make_crops(1).read_batches():
            # [:, 0]: a recovery's step has one micro-batch.
            self.fit.train_step(batch["image"][:, 0], 0.0).block_until_ready()

    def train_student(self, progress: ProgressBar, earlier_progress: int) -> None:
        """Train until an attempt does not diverge; keep its weights if better.

        earlier_progress: of earlier students, in `budget`'s unit
        """
        for attempt in range(MAX_ATTEMPTS):
            self.lr = self.fit.recipe.lr / 4**attempt
            has_ended = self.attempt_training(progress, earlier_progress)
            if has_ended or self.stop_signals:
                break
            if attempt == 0:
                restart = "it starts again with a quarter of the learning rate"
                log.warning("recover: training diverged; %s", restart)
        metrics = self.extend_curve()
        if mean_metric(metrics) < mean_metric(self.metrics_before):
            self.metrics_after = metrics
            self.trained_params = self.fit.fetch_trained_params()

    def attempt_training(self, progress: ProgressBar, earlier_progress: int) -> bool:
        """Train from the start; return whether training ended without diverging."""
        self.fit.reset_state()
        self.steps_done = 0
        del self.curve[1:]  # the distance at the start stays
        num_steps = self.fit.recipe.steps
        if self.is_timed:  # the clock ends the training, not a number of steps
            num_steps = UNLIMITED_STEPS
            self.budget -= self.spent_budget
        self.spent_budget = 0.0
        step_start = time.monotonic()  # reading a batch is part of its step
        reader = self.make_crops(num_steps).read_batches(recovery_images.DECODE_THREADS)
        with contextlib.closing(reader):
            for batch in reader:
                # The learning rate at the middle of the step.
                middle_share = min(1.0, self.finished_share(ahead=0.5))
                warm_up = min(1.0, middle_share / WARM_UP_SHARE)
                lr = self.lr * (warm_up * math.cos(math.pi / 2 * middle_share) ** 2)
                # Waiting for the loss gives true step times and a prompt Ctrl-C. A
                # recovery's step has one micro-batch, [:, 0] of the batch.
                loss = np.asarray(self.fit.train_step(batch["image"][:, 0], lr))
                self.steps_done += 1
                if self.is_timed:
                    self.step_cost = time.monotonic() - step_start
                self.spent_budget += self.step_cost
                # `update` adds to progress.n, what the bar shows now.
                progress.update(earlier_progress + int(self.spent_budget) - progress.n)
                if not np.isfinite(loss).all():
                    return False
                # Another step would end too late.
                is_over = self.is_timed and self.finished_share(ahead=1) > 1
                if self.stop_signals or is_over:
                    break
                # Divergence is measured once.
                if len(self.curve) == 1 and self.finished_share() >= CHECK_SHARE:
                    max_distance = DIVERGENCE_FACTOR * mean_metric(self.metrics_before)
                    if mean_metric(self.extend_curve()) > max_distance:
                        return False
                step_start = time.monotonic()
        return True

    def finished_share(self, ahead: float = 0) -> float:
        """Return the finished share of training, `ahead` steps from now."""
        # Earlier attempts may have used up the time.
        return (self.spent_budget + ahead * self.step_cost) / max(1e-9, self.budget)

    def measure_stretches(self, is_dense: bool = False) -> StretchMetrics:
        """Mean metrics of the held-out images, per stretch of neighboring files.

        is_dense: whether the student has the dense model's values
        """
        metrics_of_images = self.fit.measure_held_out(self.held_out_pairs, is_dense)
        # Neighboring images may be alike, so the interval counts stretches, not images.
        indices = metrics_of_images.pop("index")
        stretch_of_image = self.image_split.stretch_of_image[indices]
        stretch_sizes = np.bincount(stretch_of_image)
        stretch_metrics = {}
        for name, image_values in metrics_of_images.items():
            value_sums = np.bincount(stretch_of_image, image_values)
            stretch_metrics[name] = value_sums / stretch_sizes
        return stretch_metrics

    def extend_curve(self) -> StretchMetrics:
        """Return `measure_stretches`, with their mean distance added to the curve."""
        metrics = self.measure_stretches()
        self.curve.append((self.steps_done, mean_metric(metrics)))
        log.info("recover: step %s, %.4f", *self.curve[-1])
        return metrics

    def make_variant(self, dense: Pretrained) -> recovery_record.RecoveredVariant:
        """Describe the result; `dense` is the teacher."""
        student = self.fit.student
        recipe = self.fit.recipe
        distance_change = mean_difference(
            self.metrics_after["distance"], self.metrics_before["distance"]
        )
        agreement_before = 100 * mean_metric(self.metrics_before, "agreement")
        agreement_after = 100 * mean_metric(self.metrics_after, "agreement")
        learned_values = {}
        learned_digests = self.image_split.digests
        if student.recovered_variant:  # it started from the values of its last recovery
            learned_values |= student.recovered_variant.values
            learned_digests = student.recovered_variant.learned + learned_digests
        if self.trained_params is not None:
            learned_values |= recovery_record.flatten_params(self.trained_params)
        return recovery_record.RecoveredVariant(
            reduction=student.reduction or DENSE_REDUCTION,
            images=len(self.image_split.training),
            held_out=len(self.image_split.held_out),
            parameters=recipe.parameters,
            steps=self.steps_done,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            seconds=round(time.monotonic() - self.start_time, 1),
            measure=self.fit.comparison.distance_name,
            off_the_shelf=mean_metric(self.off_the_shelf_metrics),
            before=mean_metric(self.metrics_before),
            after=mean_metric(self.metrics_after),
            interval=(distance_change.low, distance_change.high),
            agreement=(agreement_before, agreement_after),
            lr=self.lr,
            curve=tuple(self.curve),
            stopped=bool(self.stop_signals),
            changed=self.trained_params is not None,
            image_size=student.image_size,
            depth=student.model.depth,
            weights=dense.origin.name or None,  # None: a model made in memory
            share=student.gmacs / dense.gmacs,
            learned=learned_digests,
            values=learned_values,
        )


def mean_metric(metrics: StretchMetrics, name: str = "distance") -> float:
    """Mean of a metric; infinity for NaN, so that NaN is never better."""
    return float(np.nan_to_num(metrics[name].mean(), nan=np.inf, posinf=np.inf))
