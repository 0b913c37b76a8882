"""The images that a run's config names."""

from collections.abc import Mapping

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data import class_names
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.input.eval_images import EvalImages

# Arguments of `open_source` by the fields of a config that have them.
FIELDS = {"name": "config.data.name", "num_classes": "config.num_classes"}


def open_images(
    run: RunConfig, split: str, labels_by_name: Mapping[str, int] | None = None
) -> Source:
    """The images of a split, "train" or "val".

    Labels are not read where the loss does not need them.

    labels_by_name: labels of the run's classes, as `open_source` takes them
    Raises InputError where they cannot be opened or do not fit the config.
    """
    try:
        return run.data.source(
            split,
            num_classes=run.num_classes,
            labeled=not run.distill.unlabeled,
            labels_by_name=labels_by_name,
        )
    except InputError as error:
        raise error.renamed(FIELDS) from error


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
    try:
        return images.open(run.num_classes, names)
    except InputError as error:
        place = name and f"config.eval.sets.{name}"
        named = {**FIELDS, "classes": f"{place}.classes"}
        raise error.renamed(named).inside(place=place) from error


def rounded_batch(run: RunConfig, placement: Placement, images: int) -> int:
    """The batch size of evaluations: a multiple of the number of devices.

    It is config.eval_batch_size, or `images` where that is less, rounded up.
    """
    return placement.whole(min(run.eval_batch_size, images))
