"""Labeled images to evaluate a trained model on."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

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
from imagepiece_jax.models.program import ExportedProgram

# Bounds and defaults of `ReadOptions`
LEAST_VALUES = {"limit": 1, "batch_size": 1, "workers": 0, "threads": 0}
DEFAULT_VALUES = {"batch_size": 512, "workers": 8, "threads": 2}
TrainedModel: TypeAlias = Pretrained | ExportedProgram


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Which images of a set are read, and how; None: the run's, or the default.

    data_dir: folder of imagenet2012's files
    limit: evenly spaced images to take; None: all
    batch_size: images at once, over all devices
    workers: worker processes; 0: read in this process
    threads: decoding threads in each process; 0: its main thread
    """

    data_dir: str | os.PathLike | None = None
    limit: int | None = None
    batch_size: int | None = None
    workers: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST_VALUES.items():
            if (value := getattr(self, name)) is not None:
                check_range(name, value, least, whole=True)

    def completed(self, run_config: Mapping[str, Any]) -> "ReadOptions":
        """These options, completed by a run's config and by the defaults."""
        data_section = run_config.get("data", {})
        run_values = {
            "data_dir": data_section.get("dir") or None,  # "" is no folder
            "batch_size": run_config.get("eval_batch_size"),
            "workers": data_section.get("workers"),
            "threads": data_section.get("threads"),
        }
        completed_values: dict[str, Any] = dict(DEFAULT_VALUES)
        for name, value in [*run_values.items(), *vars(self).items()]:  # the last wins
            if value is not None:
                completed_values[name] = value
        return ReadOptions(**completed_values)


@dataclasses.dataclass(frozen=True)
class LabeledImages:
    """Labeled images, and how to read, resize and crop them."""

    name: str  # data name for `open_source`
    source: Source
    preprocessing: Preprocessing
    options: Any  # completed ReadOptions, without None except for `limit`

    @property
    def pass_batch_size(self) -> int:
        """At most half the images, rounded up to whole devices."""
        # Half, rounded up, because the first batch compiles and is not timed.
        batch_size = min(self.options.batch_size, math.ceil(len(self.source) / 2))
        return parallel.process_placement().round_up(batch_size)

    def read_batches(
        self, placement: Placement | None = None
    ) -> Iterator[dict[str, Any]]:
        """Read this process's batches of one pass."""
        batches = Batches(
            source=self.source,
            transform=self.preprocessing,
            batch_size=self.pass_batch_size,
            placement=placement or parallel.process_placement(),
        )
        options = self.options
        return worker_pool.read_ahead(batches, options.workers, options.threads)

    def evaluation_record(self, trained_model: TrainedModel) -> dict[str, Any]:
        """Everything that decides a model's metrics on the images, as JSON values."""
        origin = trained_model.origin
        if isinstance(trained_model, Pretrained):
            reduction = trained_model.reduction
            variant = trained_model.recovered_variant
            recovered_name = variant.name if variant else None
        else:
            reduction = trained_model.facts["method"]
            recovered_name = trained_model.facts.get("recovered")
        return {
            "preprocessing": self.preprocessing.as_json,
            "checkpoint": origin.checkpoint,
            "averaged": origin.averaged,
            "data": self.name,
            "limit": self.options.limit,
            **self.source.subset_record,
            "num_classes": trained_model.config.num_classes,
            "dtype": trained_model.model.execution.dtype.name,
            "trained": {
                "reduction": origin.reduction and str(origin.reduction),
                "image_size": origin.image_size or trained_model.config.image_size,
            },
            "recovered": recovered_name,
            "reduction": str(reduction),
            "gmacs": model_macs(trained_model.model) / 1e9,
            "unreadable": len(self.source.unreadable),
        }

    @property
    def facts(self) -> dict[str, Any]:
        """Everything in the images that decides metrics, as JSON values."""
        return {
            "data": registry.short_name(self.name),  # without this machine's folders
            "digest": self.source.whole_digest,
            "images": len(self.source),
            "limit": self.options.limit,
            **self.source.subset_record,
            **self.preprocessing.as_json,
        }


def find_data_name(trained_model: TrainedModel, data: str | None = None) -> str:
    """Full name of `data`; without it, the name of the run's validation data."""
    run_config = trained_model.origin.run or {}
    name = registry.complete_name(data or run_config.get("data", {}).get("name", ""))
    if not name:
        raise InputError("data is missing; only a run names its own data")
    return name


def open_labeled_images(
    trained_model: TrainedModel,
    data: str | None = None,
    need_labels: bool = True,
    **options: Any,
) -> LabeledImages:
    """Open the images of a data set for a model.

    data: as for `open_source`; None: the run's validation data
    need_labels: False: take images without labels, too, and models without classes
    options: fields of ReadOptions
    Raises InputError for weights without classes, and for images of other classes.
    """
    title = trained_model.origin.title
    if need_labels:
        if not trained_model.config.num_classes:
            way_out = "train a head, or take vectors by `features`"
            raise InputError(f"{title} has no classes; {way_out}")
        trained_model.config.head.check_single_label(title, "accuracy")
    read_options = ReadOptions(**options).completed(trained_model.origin.run or {})
    data_name = find_data_name(trained_model, data)
    whole_source = _open_source(
        trained_model, data_name, read_options.data_dir, need_labels
    )
    source = whole_source.evenly_spaced(read_options.limit)
    check_classes(trained_model.class_names, title, source.class_names, data_name)
    _log_notes(data_name, whole_source, source)
    preprocessing = trained_model.config.preprocessing
    return LabeledImages(data_name, source, preprocessing, read_options)


def _open_source(trained_model, data_name, data_dir, need_labels):
    """Open a model's images; without labels if these are neither there nor needed."""
    options = {"data_dir": data_dir, "num_classes": trained_model.config.num_classes}
    options["class_names"] = trained_model.class_names
    if need_labels or trained_model.config.head.is_single_label:
        try:
            return registry.open_source(data_name, "val", **options)
        except NoLabels as error:
            if need_labels:
                raise NoLabels(f"{error}; `compare` needs no labels") from error
    return registry.open_source(data_name, "val", data_dir=data_dir, labeled=False)


def _log_notes(data_name, whole_source, source):
    """Note facts about labels in `source`, a part of `whole_source`."""
    if source.split:
        notes.info(f"note: images are from the split {source.split} of {data_name}")
    if source.subset_record:
        subset_text = f"{len(source)} evenly spaced images of {len(whole_source)}"
        notes.info(f"note: {subset_text} are used")
    # A source without a list of labels counts as having them all.
    num_with_images = source.num_classes
    if source.labels is not None:
        num_with_images = len({*source.labels.tolist()})
    if num_with_images < source.num_classes:
        choice_text = f"the model chooses among all {source.num_classes:,} classes"
        notes.info(f"note: {num_with_images:,} have images, and {choice_text}")
    if data_name.startswith("csv:") and whole_source.labels.min() == 1:
        # With labels from 1 the accuracy would be 0.
        lowest_text = f"the lowest label of {data_name} is 1"
        notes.info(f"note: {lowest_text}, but labels count from 0")
