"""The images of a run, its length in steps, and the batches of both."""

import dataclasses
import functools

import numpy as np

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.common.progress import working
from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.batches import Batches, Reader, steps_per_epoch
from imagepiece_jax.data.class_names import check_classes
from imagepiece_jax.data.source import Source
from imagepiece_jax.data.sources.imagenet_tfds import Counted
from imagepiece_jax.errors import InputError
from imagepiece_jax.training.config import RunConfig

IMAGENET = "imagenet2012"


@dataclasses.dataclass(frozen=True)
class Length:
    """The length of a run in steps, and the steps after which it is evaluated."""

    steps_per_epoch: int
    epochs: int
    eval_every_epochs: int

    @property
    def steps(self):
        return self.steps_per_epoch * self.epochs

    def due(self, step: int) -> bool:
        """Whether an evaluation follows a step; it does after the last."""
        epoch, rest = divmod(step, self.steps_per_epoch)
        return step == self.steps or (not rest and epoch % self.eval_every_epochs == 0)


def length(run: RunConfig, images: int) -> Length:
    """The length of `run` over `images` training images; a partial batch is left out.

    Raises InputError where they fill no batch.
    """
    steps = steps_per_epoch(images, run.optim.batch_size)
    return Length(steps, run.optim.epochs, run.eval_every_epochs)


def check_training(run: RunConfig, placement: Placement) -> None:
    """Raise InputError for a config that cannot be trained.

    Such are models without classes, float16, which would need a scaled loss, and
    batches that cannot be split over devices and micro-batches.
    """
    if not run.num_classes:
        raise InputError("config.num_classes is 0; it must be 1 or more in training")
    if run.dtype == "float16":
        raise InputError(
            "config.model.dtype is 'float16', in which small gradients vanish in "
            "training; it must be 'float32' or 'bfloat16'"
        )
    placement.positions(run.optim.batch_size)
    micro = run.optim.batch_size // run.grad_accum_steps
    mixes = (run.mixup > 0 or run.cutmix > 0) and run.mixup_prob > 0
    if mixes and micro % 2:
        raise InputError(
            f"config.batch_size is {run.optim.batch_size}, which makes micro-batches "
            f"of {micro}; they must be even, as mixup and cutmix pair images"
        )


def open_images(run: RunConfig, split: str, dry_run: bool = False) -> Source:
    """The images of a split, "train" or "val".

    dry_run: whether the published number of ImageNet's images will do
    Raises InputError where they cannot be opened or do not fit the config.
    """
    try:
        return run.data.source(split, num_classes=run.num_classes)
    except InputError as error:
        if dry_run and run.data.name == IMAGENET:
            return Counted(split, run.num_classes)
        raise InputError(f"config.data: {error}") from error


class RunData:
    """All images of a run, and this process's share of their batches.

    train: the Source of training images
    test: the Source of test images
    length: Length of the run
    training: function (steps) -> Batches of a range of steps
    evaluation: Batches of one pass over the test images
    readers: (number of processes, number of threads in each) that read ahead, for
        training, and as many for an evaluation
    dry_run: as for `open_images`
    Raises InputError where images do not fit the config, or the run cannot be trained
        on the devices of `placement`.
    """

    def __init__(self, run: RunConfig, placement: Placement, dry_run: bool = False):
        check_training(run, placement)
        train_transform = run.data.train_transform(run.image_size)
        preprocessing = run.model.preprocessing
        self.train = open_images(run, "train", dry_run)
        self.test = open_images(run, "val", dry_run)
        data = run.data.name
        check_classes(self.train.class_names, data, self.test.class_names, data)
        batch_size = placement.whole(min(run.eval_batch_size, len(self.test)))
        # A size that does not fit shows here, not in the first step.
        self.train.try_first(train_transform, rng=np.random.default_rng(0))
        self.test.try_first(preprocessing)
        self.length = length(run, len(self.train))
        self.readers = run.data.workers, run.data.threads
        self.training = functools.partial(
            Batches,
            source=self.train,
            transform=train_transform,
            batch_size=run.optim.batch_size,
            seed=run.seed,
            placement=placement,
            repeats=run.data.repeats,
        )
        self.evaluation = Batches(
            source=self.test,
            transform=preprocessing,
            batch_size=batch_size,
            placement=placement,
        )

    def read(self, batches: Batches) -> Reader:
        """Iterator over batches, which `readers` read ahead."""
        return worker_pool.read_ahead(batches, *self.readers)

    def check_space(self) -> None:
        """Raise InputError for too little shared memory for training and evaluation."""
        training = self.training(steps=range(self.length.steps))
        needed = worker_pool.shared_bytes(training, *self.readers)
        needed += worker_pool.shared_bytes(self.evaluation, *self.readers)
        worker_pool.check_space(needed)

    @property
    def image_counts(self) -> list[int]:
        """The number of training images and of test images."""
        return [len(self.train), len(self.test)]

    def digest(self) -> list[str]:
        """A digest of the content of both sets; slow for files over a network."""
        with working("making a digest of the data"):
            return [self.train.digest, self.test.digest]
