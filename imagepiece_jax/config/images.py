"""The images that a run's config names, and the batches of a pass over test images."""

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from imagepiece_jax.common.placement import Placement
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data import class_names
from imagepiece_jax.data.batches import EvalBatches
from imagepiece_jax.data.folder import split_folder
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.input import loader
from imagepiece_jax.models.problem import check_single_label

if TYPE_CHECKING:
    from imagepiece_jax.models.pretrained import Pretrained


def open_images(
    run: RunConfig, split: str, labels_by_name: Mapping[str, int] | None = None
) -> Source:
    """The images of a split, "train" or "val".

    Labels are not read where the loss does not need them.

    labels_by_name: labels of the run's classes, as `open_source` takes them
    Raises InputError where they cannot be opened or do not fit the config.
    """
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
    place = name and f"config.eval.sets.{name}"
    data = dataclasses.replace(run.data, name=eval_set.data or run.data.name)
    wanted = None
    labels = class_names.labels_by_name(names, run.num_classes)
    if eval_set.classes is not None:
        given = eval_set.classes.items()
        wanted = {class_names.normalized(name): label for name, label in given}
        labels = wanted or labels
    try:
        source = open_images(dataclasses.replace(run, data=data), "val", labels)
    except InputError as error:
        raise error.inside(place=place) from error
    if wanted is not None:
        found = {k: i for i, k in enumerate(source.class_names or ()) if k}
        if found != wanted:
            raise InputError(
                field=f"{place}.classes",
                value=eval_set.classes,
                allowed=f"{found}",
            )
        source.class_names = names
    return source


def labeled_images(
    run: RunConfig, vit: "Pretrained", limit: int | None = None
) -> Source:
    """The images to evaluate a model of `load` on; notes on both are printed.

    limit: number of images to take, evenly spaced over the set; None: all
    Raises InputError for weights without classes, and for images of other classes.
    """
    path = str(vit.source.path)
    data = run.data.name
    names = vit.class_names
    if not run.num_classes:
        raise InputError(
            "has no classes",
            place=path,
            allowed="weights with a head (train.py --config.init.weights trains one)",
            hint="or take its vectors by the command predict with --json",
        )
    check_single_label(vit.problem_type, path, "accuracy")
    all_images = eval_source(run, run.eval.best_set, names)
    if not all_images.labeled:
        raise InputError(
            f"is {data!r}, whose test images have no labels",
            field="config.data.name",
            allowed="test images with labels, which accuracy needs",
        )
    source = all_images.spread(limit)
    names_of_data = source.class_names
    unnamed = class_names.check_classes(vit.names_of_data, path, names_of_data, data)
    notes = []
    if data.startswith("folder:"):
        folder = os.path.expanduser(data.removeprefix("folder:"))
        _, note = split_folder(folder, "val")
        notes.append(note)
    if vit.source.run:
        notes.append(unnamed)
    notes.append(class_names.mapped_classes(names_of_data, data, names))
    if source.part:
        notes.append(
            f"{len(source)} of {len(all_images)} images are taken, evenly spaced"
        )
    if data.startswith("csv:") and np.min(getattr(all_images, "labels", [0])) == 1:
        # Where they count from 1 the accuracy would be 0.
        notes.append(f"no label of {data} is 0, the lowest is 1; labels count from 0")
    notes.append(run.preprocessing().note(source.some_sizes(), len(source)))
    for note in notes:
        if note:
            print(f"note: {note}", flush=True)
    return source


def rounded_batch(run: RunConfig, placement: Placement, images: int) -> int:
    """The batch size of evaluations: a multiple of the number of devices.

    It is config.eval_batch_size, or `images` where that is less, rounded up.
    """
    devices = placement.process_count * placement.local_devices
    return -(-min(run.eval_batch_size, images) // devices) * devices


def eval_batches(
    run: RunConfig,
    source: Source,
    placement: Placement,
    batch_size: int | None = None,
) -> Iterator:
    """The batches of one pass over `source` in this process."""
    sequence = EvalBatches(
        source,
        run.preprocessing(),
        batch_size=batch_size or rounded_batch(run, placement, len(source)),
        placement=placement,
    )
    return loader.read_ahead(sequence, run.data.workers, run.data.threads)
