"""The images of a run, its length in steps, and the batches of both."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.common.progress import working
from imagepiece_jax.config.run import RunConfig, config_path
from imagepiece_jax.data import class_names
from imagepiece_jax.data.batches import BatchSequence, EvalBatches, Reader
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError, inside, renamed
from imagepiece_jax.input import loader, worker_pool
from imagepiece_jax.input.eval_images import EvalImages

# Arguments of `open_source` by the fields of a config that have them.
FIELDS = {
    "data_dir": "config.data.dir",
    "name": "config.data.name",
    "num_classes": "config.num_classes",
}


@dataclasses.dataclass(frozen=True)
class Length:
    """The length of a run in steps, and the steps after which it is evaluated."""

    steps_per_epoch: int
    epochs: int
    eval_every_epochs: Mapping[str, int]  # {name of a set: epochs between evaluations}

    @property
    def steps(self):
        return self.steps_per_epoch * self.epochs

    def due(self, step: int) -> list[str]:
        """The names of the sets to evaluate after a step; after the last, all."""
        if step == self.steps:
            return [*self.eval_every_epochs]
        epoch, rest = divmod(step, self.steps_per_epoch)
        if rest:
            return []
        sets = self.eval_every_epochs.items()
        return [name for name, every in sets if epoch % every == 0]


def length(run: RunConfig, images: int) -> Length:
    """The length of `run` over `images` training images; a partial batch is left out.

    Raises InputError where they fill no batch.
    """
    with inside("config"):
        steps = loader.steps_per_epoch(images, run.optim.batch_size)
    sets = run.eval.sets.items()
    intervals = {}
    for name, eval_set in sets:
        intervals[name] = eval_set.every_epochs or run.eval_every_epochs
    return Length(steps, run.optim.epochs, intervals)


def check_training(run: RunConfig, placement: Placement) -> None:
    """Raise InputError for a config that cannot be trained.

    Such are models without classes, float16, which would need a scaled loss, and
    batches that cannot be split over devices and micro-batches.
    """
    if not run.num_classes:
        run.refuse("num_classes", "1 or more in training")
    if run.model.dtype == "float16":
        allowed = "float32, bfloat16"
        problem = "is 'float16', in which small gradients vanish in training"
        raise InputError(config_path("dtype"), "float16", allowed, problem=problem)
    with inside("config"):
        placement.positions(run.optim.batch_size)
    micro = run.optim.batch_size // run.grad_accum_steps
    mixes = (run.mixup > 0 or run.cutmix > 0) and run.mixup_prob > 0
    if mixes and micro % 2:
        allowed = f"even micro-batches, not {micro}: mixup and cutmix pair images"
        run.optim.refuse("batch_size", allowed)


def open_images(
    run: RunConfig, split: str, labels_by_name: Mapping[str, int] | None = None
) -> Source:
    """The images of a split, "train" or "val".

    Labels are not read where the loss does not need them.

    labels_by_name: labels of the run's classes, as `open_source` takes them
    Raises InputError where they cannot be opened or do not fit the config.
    """
    with renamed(FIELDS):
        return run.data.source(
            split,
            num_classes=run.num_classes,
            labeled=not run.distill.unlabeled,
            labels_by_name=labels_by_name,
        )


def eval_source(run: RunConfig, name: str, names: class_names.Names | None) -> Source:
    """The images of an evaluation of a run.

    They may have no labels where the loss does not need labels.

    name: name of the evaluation in config.eval.sets
    names: names of the run's classes, by which images get their labels
    Raises InputError where they cannot be opened or have other classes.
    """
    eval_set = run.eval.sets[name]
    images = EvalImages(
        name=eval_set.data or run.data.name,
        data_dir=run.data.dir or None,
        classes=eval_set.classes,
        labeled=not run.distill.unlabeled,
    )
    place = name and f"config.eval.sets.{name}"
    with inside(place=place), renamed({**FIELDS, "classes": f"{place}.classes"}):
        return images.open(run.num_classes, names)


class Data:
    """All images of a run, and this process's share of their batches.

    labels_by_name: as `open_images` takes them
    train: the Source of training images
    eval_sets: {name of an evaluation: its Source}
    names: (field, its value, "training" or the name of the evaluation) of each Source
    length: Length of the run
    training: function (start_step, stop_step) -> batches of these steps
    evaluations: {name of an evaluation: batches of one pass over its images}
    readers: (number of processes, number of threads in each) that read ahead, for
        training, and as many for an evaluation
    Raises InputError where images do not fit the config, or the run cannot be trained
        on the devices of `placement`.
    """

    def __init__(
        self,
        run: RunConfig,
        placement: Placement,
        labels_by_name: Mapping[str, int] | None = None,
    ):
        check_training(run, placement)
        train_transform = run.data.train_transform(run.image_size)
        preprocessing = run.preprocessing()
        self.train = open_images(run, "train", labels_by_name)
        names = self.train.class_names
        self.eval_sets = {name: eval_source(run, name, names) for name in run.eval.sets}
        self.names = [(run.data.path("name"), run.data.name, "training")]
        for name, source in self.eval_sets.items():
            field = run.data.path("name")
            data = run.data.name
            if run.eval.sets[name].data:
                field = run.eval.path(f"sets.{name}.data")
                data = run.eval.sets[name].data
            self.names.append((field, data, name or "test"))
            class_names.check_classes(names, run.data.name, source.class_names, data)
        largest = max(map(len, self.eval_sets.values()))
        eval_batch_size = placement.whole(min(run.eval_batch_size, largest))
        # A size that does not fit shows here, not in the first step.
        self.train.try_first(train_transform, rng=np.random.default_rng(0))
        for source in self.eval_sets.values():
            source.try_first(preprocessing)
        self.length = length(run, len(self.train))
        self.readers = run.data.workers, run.data.threads
        self.training = functools.partial(
            loader.TrainBatches,
            self.train,
            train_transform,
            batch_size=run.optim.batch_size,
            seed=run.seed,
            placement=placement,
            repeats=run.data.repeats,
        )
        options = {"batch_size": eval_batch_size, "placement": placement}
        self.evaluations = {}
        for name, source in self.eval_sets.items():
            batches = EvalBatches(source, preprocessing, **options)
            self.evaluations[name] = batches

    def read(self, batches: BatchSequence) -> Reader:
        """Iterator over batches, which `readers` read ahead."""
        return loader.read_ahead(batches, *self.readers)

    def check_space(self) -> None:
        """Raise InputError for too little shared memory for training and evaluation."""
        training = self.training(start_step=0, stop_step=self.length.steps)
        evaluations = self.evaluations.values()
        most = max(loader.shared_bytes(each, *self.readers) for each in evaluations)
        needed = loader.shared_bytes(training, *self.readers) + most
        worker_pool.check_space(needed)

    @property
    def image_counts(self) -> list[int]:
        """The number of images in the training set, then in each evaluation set."""
        return [len(source) for source in (self.train, *self.eval_sets.values())]

    def digest(self) -> list[str]:
        """A digest of the content of each set; slow for files over a network."""
        with working("making a digest of the data"):
            return [x.digest for x in (self.train, *self.eval_sets.values())]
