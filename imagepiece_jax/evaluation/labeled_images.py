"""Labeled images to evaluate a trained model on."""

import dataclasses
import functools
import os
from collections.abc import Iterator
from typing import Any

from imagepiece_jax.common import parallel
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.placement import Placement
from imagepiece_jax.common.progress import notes
from imagepiece_jax.data import worker_pool
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.class_names import check_classes
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import Source
from imagepiece_jax.data.sources import registry
from imagepiece_jax.errors import InputError, NoLabels
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.program import Program

LEAST_OPTION_VALUES = {"limit": 1, "batch_size": 1, "workers": 0, "threads": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabeledImages:
    """Labeled images, and how to read, resize and crop them."""

    name: str  # data name for `open_source`
    source: Source
    preprocessing: Preprocessing
    limit: int | None = None  # requested image count
    batch_size: int = 512  # images at once, over all devices
    workers: int = 8  # worker processes; 0: read in this process
    threads: int = 2  # decoding threads in each process; 0: its main thread

    @property
    def batch(self) -> int:
        """At most half the images, rounded up to whole devices."""
        # Half, because the first batch compiles and is not timed.
        half = -(-len(self.source) // 2)
        return parallel.process_placement().round_up(min(self.batch_size, half))

    def batches(
        self, batch_size: int | None = None, placement: Placement | None = None
    ) -> Iterator[dict[str, Any]]:
        """Read this process's batches of one pass."""
        batches = Batches(
            source=self.source,
            transform=self.preprocessing,
            batch_size=batch_size or self.batch,
            placement=placement or parallel.process_placement(),
        )
        return worker_pool.read_ahead(batches, self.workers, self.threads)

    def facts(
        self, vit: Pretrained | Program, reduction: Any, recovered: str | None
    ) -> dict[str, Any]:
        """Everything that decides a model's figures on the images, as JSON values.

        reduction: the model's, in any form with a text
        recovered: name of the recovered variant
        """
        origin = vit.origin
        return {
            "preprocessing": self.preprocessing.as_json,
            "checkpoint": origin.checkpoint,
            "averaged": origin.averaged,
            "data": self.name,
            "limit": self.limit,
            **self.source.subset_record,
            "num_classes": vit.config.num_classes,
            "dtype": vit.model.execution.dtype.name,
            "trained": {
                "reduction": origin.reduction and str(origin.reduction),
                "image_size": origin.image_size or vit.config.image_size,
            },
            "recovered": recovered,
            "reduction": str(reduction),
            "gmacs": model_macs(vit.model) / 1e9,
            "unreadable": len(self.source.unreadable),
        }

    @property
    def setting(self) -> dict[str, Any]:
        """Everything in the images that decides figures, as JSON values."""
        return {
            "data": registry.short_name(self.name),
            "digest": self.source.whole_digest,
            "images": len(self.source),
            "limit": self.limit,
            **self.source.subset_record,
            **self.preprocessing.as_json,
        }


def data_name(vit: Pretrained | Program, data: str | None = None) -> str:
    """Full name of `data`; without it, the name of the run's validation data."""
    run = vit.origin.run or {}
    name = registry.full_name(data or run.get("data", {}).get("name", ""))
    if not name:
        raise InputError("data is missing; only a run names its own data")
    return name


def open_labeled_images(
    vit: Pretrained | Program,
    data: str | None = None,
    *,
    data_dir: str | os.PathLike | None = None,
    need_labels: bool = True,
    **options: int | None,
) -> LabeledImages:
    """Open the images to evaluate a model on; notes on both are logged.

    data: as for `open_source`; None: the run's validation data
    data_dir: for imagenet2012; None: the run's
    need_labels: False: take images without labels, too, and models without classes
    options: limit, batch_size, workers and threads of LabeledImages; None: the run's or
        the default
    Raises InputError for weights without classes, and for images of other classes.
    """
    path = vit.origin.title
    if need_labels and not vit.config.num_classes:
        raise InputError(
            f"{path} has no classes; train a head, or take vectors by `features`"
        )
    if need_labels:
        vit.config.head.check_single_label(path, "accuracy")
    typed = {name: value for name, value in options.items() if value is not None}
    for name, value in typed.items():
        check_range(name, value, LEAST_OPTION_VALUES[name], whole=True)
    run = vit.origin.run or {}
    of_run = run.get("data", {})
    reading = {name: of_run[name] for name in ("workers", "threads") if name in of_run}
    if "eval_batch_size" in run:
        reading["batch_size"] = run["eval_batch_size"]
    name = data_name(vit, data)
    data_dir = data_dir or of_run.get("dir") or None
    opened = functools.partial(registry.open_source, name, "val", data_dir=data_dir)
    classes = {"num_classes": vit.config.num_classes, "class_names": vit.class_names}
    if not need_labels and not vit.config.head.is_single_label:
        classes = {"labeled": False}
    try:
        every = opened(**classes)
    except NoLabels as error:
        if need_labels:
            raise NoLabels(f"{error}; `compare` needs no labels") from error
        every = opened(labeled=False)
    source = every.evenly_spaced(typed.get("limit"))
    for note in _image_notes(vit, name, every, source):
        notes.info(f"note: {note}")
    return LabeledImages(
        name=name,
        source=source,
        preprocessing=vit.config.preprocessing,
        **reading | typed,
    )


def _image_notes(vit, name, every, source):
    """Check classes; note facts about labels and sizes in `source`, part of `every`."""
    check_classes(vit.class_names, vit.origin.title, source.class_names, name)
    texts = []
    if source.split:
        texts.append(f"images are from the split {source.split} of {name}")
    if source.subset_record:
        texts.append(f"{len(source)} evenly spaced images of {len(every)} are used")
    present = len(source.present_labels)
    if present < source.num_classes:
        having = "1 class has" if present == 1 else f"{present:,} classes have"
        of_all = f"the model chooses among all {source.num_classes:,}"
        texts.append(f"{having} images, and {of_all}")
    if name.startswith("csv:") and every.labels.min() == 1:
        # With labels from 1 the accuracy would be 0.
        texts.append(f"the lowest label of {name} is 1, but labels count from 0")
    texts.append(
        vit.config.preprocessing.enlargement_note(source.sampled_sizes(), len(source))
    )
    return [note for note in texts if note]
