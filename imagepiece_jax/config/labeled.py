"""The images with labels that a trained model is evaluated on."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from imagepiece_jax.common import parallel
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.common.progress import notes
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.class_names import check_classes
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import Source
from imagepiece_jax.errors import InputError
from imagepiece_jax.input import registry, worker_pool
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.problem_type import check_single_label


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Images with labels, and how they are read, resized and cropped."""

    name: str  # of the data, as `open_source` takes it
    source: Source
    preprocessing: Preprocessing
    limit: int | None = None  # how many were asked for
    batch: int = 512  # images at once, over all devices
    workers: int = 8  # processes that read and decode; 0: this one
    threads: int = 2  # that do in each of them; 0: none

    @property
    def batch_size(self) -> int:
        """At most half the images: the first batch compiles, and is not timed.

        Rounded up to whole devices.
        """
        half = -(-len(self.source) // 2)
        return parallel.placement().whole(min(self.batch, half))

    def batches(
        self, batch_size: int | None = None, placement: Placement | None = None
    ) -> Iterator[dict[str, Any]]:
        """The batches of one pass in this process."""
        batches = Batches(
            source=self.source,
            transform=self.preprocessing,
            batch_size=batch_size or self.batch_size,
            placement=placement or parallel.placement(),
        )
        return worker_pool.read_ahead(batches, self.workers, self.threads)

    def in_words(self, vit: Pretrained) -> list[str]:
        """How a model is evaluated on them, in words."""
        words = [self.preprocessing.text, *vit.differences_from_training()]
        if vit.source.averaged:
            words.insert(0, "averaged weights")
        return words

    def facts(self, vit: Pretrained) -> dict[str, Any]:
        """All that decides the figures of a model on them, as JSON values."""
        source = vit.source
        return {
            "preprocessing": self.preprocessing.as_json,
            "checkpoint": source.checkpoint,
            "averaged": source.averaged,
            "data": self.name,
            "limit": self.limit,
            **self.source.part,
            "num_classes": vit.config.num_classes,
            "dtype": vit.model.execution.dtype.name,
            "trained": {
                "reduction": source.reduction and str(source.reduction),
                "image_size": source.image_size or vit.image_size,
            },
            "recovered": vit.recovered and vit.recovered.form,
            "reduction": str(vit.reduction),
            "gmacs": vit.gmacs,
            "unreadable": len(self.source.unreadable),
        }

    @property
    def setting(self) -> dict[str, Any]:
        """All that decides figures on them, as JSON values."""
        return {
            "data": registry.short_name(self.name),
            "digest": self.source.whole_digest,
            "images": len(self.source),
            "limit": self.limit,
            **self.source.part,
            **self.preprocessing.as_json,
        }


def labeled_images(
    vit: Pretrained,
    data: str | None = None,
    *,
    data_dir: str | os.PathLike | None = None,
    limit: int | None = None,
    **reading: int | None,
) -> LabeledImages:
    """The images to evaluate a model of `load` on; notes on both are logged.

    data: as `open_source` takes it; None: what the weights' run was tested on
    data_dir: of imagenet2012; None: the run's own
    limit: number of images to take, evenly spaced over the set; None: all
    reading: batch, workers and threads of a LabeledImages; None: the run's or usual
    Raises InputError for weights without classes, and for images of other classes.
    """
    path = vit.source.place
    if not vit.config.num_classes:
        raise InputError(
            f"{path} has no classes; train a head, or take vectors by `features`"
        )
    check_single_label(vit.config.problem_type, path, "accuracy")
    run = vit.source.run or {}
    of_run = run.get("data", {})
    own_reading = {k: of_run[k] for k in ("workers", "threads") if k in of_run}
    if "eval_batch_size" in run:
        own_reading["batch"] = run["eval_batch_size"]
    name = registry.full_name(data or of_run.get("name", ""))
    if not name:
        raise InputError("data is missing; only a run has data of its own")
    num_classes = vit.config.num_classes
    every = registry.open_source(
        name,
        "val",
        num_classes=num_classes,
        data_dir=data_dir or of_run.get("dir") or None,
        class_names=vit.class_names,
    )
    source = every.spread(limit)
    for note in _notes(vit, name, every, source):
        notes.info(f"note: {note}")
    typed = {name: value for name, value in reading.items() if value is not None}
    return LabeledImages(
        name=name,
        source=source,
        preprocessing=vit.preprocessing,
        limit=limit,
        **own_reading | typed,
    )


def _notes(vit, name, every, source):
    """Notes on the labels and the sizes of images.

    every: all images of the data `name`
    source: those that are taken
    """
    check_classes(vit.class_names, vit.source.place, source.class_names, name)
    found = []
    if source.split:
        found.append(f"{source.split} of {name} is measured on")
    if source.part:
        found.append(f"{len(source)} of {len(every)} images are taken, evenly spaced")
    present = len(source.present_labels)
    if present < source.num_classes:
        having = "1 class has" if present == 1 else f"{present:,} classes have"
        of_all = f"the model chooses among all {source.num_classes:,}"
        found.append(f"{having} images, and {of_all}")
    if name.startswith("csv:") and every.labels.min() == 1:
        # Where they count from 1 the accuracy would be 0.
        found.append(f"no label of {name} is 0, the lowest is 1; labels count from 0")
    found.append(vit.preprocessing.note(source.some_sizes(), len(source)))
    return [note for note in found if note]
