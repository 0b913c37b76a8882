"""A run's images, its length in steps, and the batches of both splits."""

import dataclasses
import functools

from imagepiece_jax.common import parallel
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.batches import Batches, BatchReader
from imagepiece_jax.data.class_names import check_classes
from imagepiece_jax.data.source import Source
from imagepiece_jax.data.sources.imagenet_tfds import CountedSource
from imagepiece_jax.errors import InputError
from imagepiece_jax.training.config import RunConfig


@dataclasses.dataclass(frozen=True)
class RunLength:
    """A run's length in steps, and its evaluation steps."""

    steps_per_epoch: int
    epochs: int
    eval_every_epochs: int

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows `step`; after the last step always."""
        epoch, remainder = divmod(step, self.steps_per_epoch)
        is_last = step == self.steps
        return is_last or (not remainder and epoch % self.eval_every_epochs == 0)


def check_training(
    config: RunConfig, placement: Placement, train_source: Source | None = None
) -> None:
    """Raise InputError for a config that cannot be trained, with a line a mistake."""
    batch_size = config.batch_size
    num_images = batch_size if train_source is None else len(train_source)
    split_mistake = ""
    try:  # a batch that does not split over devices and micro-batches
        placement.sample_positions(batch_size)
    except InputError as error:
        split_mistake = str(error)
    is_mixed = (config.mixup > 0 or config.cutmix > 0) and config.mixup_prob > 0
    is_odd = is_mixed and batch_size // config.grad_accum_steps % 2
    # Largest power of 2 that fits.
    batch_flag = f"--config.batch_size={2 ** (num_images.bit_length() - 1)}"
    warmup_flag = f"--config.warmup_epochs={config.epochs / 10:g}"
    checks = [  # (whether the config is wrong, sentence)
        (not config.num_classes, "num_classes is 0"),
        (config.model.dtype == "float16", "model.dtype is 'float16': gradients vanish"),
        (num_images < batch_size, f"batch_size is above {num_images}: {batch_flag}"),
        (
            config.warmup_epochs >= config.epochs,
            f"warmup_epochs takes all epochs: {warmup_flag}",
        ),
        (split_mistake, split_mistake),
        (is_odd, "batch_size makes odd micro-batches, but mixup needs pairs"),
    ]
    mistakes = [f"config.{sentence}" for is_wrong, sentence in checks if is_wrong]
    if mistakes:
        raise InputError("\n".join(mistakes))


def open_images(config: RunConfig, split: str, dry_run: bool = False) -> Source:
    """Open the images of a split, "train" or "val".

    dry_run: accept ImageNet's published image count in place of its images
    Raises InputError if they cannot be opened or do not fit the config.
    """
    try:
        return config.data.open_split(split, num_classes=config.num_classes)
    except InputError as error:
        if dry_run and config.data.name == "imagenet2012":
            return CountedSource(split, config.num_classes)
        raise InputError(f"config.data: {error}") from error


class RunData:
    """A run's images, and this process's share of their batches.

    `train_batches(steps=range(..))` makes Batches, `val_batches` is one pass over the
    validation images.

    Raises InputError if images do not fit the config, or the run cannot be trained on
        the devices of `placement`.
    """

    def __init__(
        self, config: RunConfig, placement: Placement, dry_run: bool = False
    ) -> None:
        self.train_source = open_images(config, "train", dry_run)
        check_training(config, placement, self.train_source)
        self.val_source = open_images(config, "val", dry_run)
        # Both splits must have the same classes, by name.
        data_name = config.data.name
        val_names = self.val_source.class_names
        check_classes(self.train_source.class_names, data_name, val_names, data_name)
        # At most the validation set, as a multiple of the devices.
        eval_batch_size = min(config.eval_batch_size, len(self.val_source))
        # An epoch has no partial batch.
        steps_per_epoch = len(self.train_source) // config.batch_size
        self.length = RunLength(
            steps_per_epoch, config.epochs, config.eval_every_epochs
        )
        # (processes, threads per process) of the reader of each pass over images
        self._worker_counts = config.data.workers, config.data.threads
        self.train_batches = functools.partial(
            Batches,
            source=self.train_source,
            transform=config.data.train_transform(config.image_size),
            batch_size=config.batch_size,
            seed=config.seed,
            placement=placement,
            repeats=config.data.repeats,
        )
        self.val_batches = Batches(
            source=self.val_source,
            transform=config.vit_config.preprocessing,
            batch_size=placement.round_up(eval_batch_size),
            placement=placement,
        )

    def read_ahead(self, batches: Batches) -> BatchReader:
        """Iterate over batches, read ahead by this pass's own processes."""
        return worker_pool.read_ahead(batches, *self._worker_counts)

    def find_digests(self) -> list[str]:
        """Content digests of both splits, equal in all processes."""
        # Only process 0 reads all images, which is slow over a network.
        with announced_work("making a digest of the data", parallel.is_main()):
            return parallel.share_main_decision(
                lambda: [self.train_source.digest, self.val_source.digest]
            )
