"""Compute photographs' vectors on all devices, into a file of `feature_store`."""

import contextlib
import functools
import math
import os
from collections.abc import Sequence

import jax
import numpy as np

from imagepiece_jax.common import checks, parallel, progress, xla_options
from imagepiece_jax.common.device import default_threads
from imagepiece_jax.data import batches, pictures, source
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import feature_store, features, optimize
from imagepiece_jax.models import record
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.vit import final_norm


@parallel.without_mesh
def write_features(
    vit: Pretrained,
    images: pictures.AnyPath | Sequence[pictures.AnyPath],
    file: str | os.PathLike,
    *,
    patches: bool = False,
    logits: bool = False,
    batch_size: int = 64,
    threads: int | None = None,
) -> dict[str, str]:
    """Write photographs' vectors into an SQLite file, on all devices of this machine.

    A second call computes only new and changed photographs, and removes the rows of
    photographs no longer named or there.

    images: paths, or one path of a photograph or a folder
    patches: also write a map of patch features
    logits: write the head's outputs in place of pooled vectors
    batch_size: photographs per device
    threads: decoding threads; None: one per core, at most 16
    Returns {photograph without a row: reason}; the next call tries it again.
    Raises InputError for a file from a call with other settings.
    """
    checks.check_range("batch_size", batch_size, 1, whole=True)
    if threads is None:
        threads = default_threads()
    checks.check_range("threads", threads, 1, whole=True)
    if logits and not vit.model.config.num_classes:
        raise InputError("logits is for weights with a head")
    execution = vit.model.execution
    xla_options.check_dtype(execution.dtype.name)
    device, *_ = devices = parallel.local_devices()  # one kind: the first decides
    model = optimize.with_device_attention(vit.model, device, execution.attention)
    model, weights = optimize.fold_and_cast(model, vit.variables, device)
    compute_columns = functools.partial(_compute_columns, model, patches, logits)
    image_spec = jax.ShapeDtypeStruct((1, *vit.preprocessing.shape, 3), np.uint8)
    column_specs = jax.eval_shape(compute_columns, weights, image_spec)
    shapes = {name: spec.shape[1:] for name, spec in column_specs.items()}
    row_shapes = {"vector": shapes["vector"], "patches": shapes.get("map")}
    made_by = record.model_record(vit, model, logits=logits, **row_shapes)
    images, _ = pictures.list_pictures(images)  # a path stands for itself
    paths = list(dict.fromkeys([os.fspath(image) for image in images]))
    with feature_store.open_store(file, made_by, vit.typed_reduction) as store:
        new_paths, num_removed = feature_store.update_rows(store, paths)
        photographs = _RecordedFiles(new_paths)
        # Few photographs get a smaller program; 1: none still need a batch size.
        per_device = max(1, min(batch_size, math.ceil(len(new_paths) / len(devices))))
        reader = batches.Batches(
            source=photographs,
            transform=vit.preprocessing,
            batch_size=per_device * len(devices),
            strict=False,
        ).read_batches(threads)
        program = parallel.pmap(compute_columns, program_name="features")
        weights = parallel.replicate(weights)
        num_existing = len(paths) - len(new_paths)
        bar = progress.ProgressBar("features", len(paths), num_existing)
        failures = {}
        with bar, contextlib.closing(reader):
            if num_removed:
                reasons = "files changed, gone, not named"
                progress.log.info(f"{num_removed} rows removed: {reasons}")
            if num_existing:
                progress.log.info(f"{num_existing} of {len(paths)} rows exist already")
            for batch, outputs in _compute_ahead(program, weights, reader):
                # [0]: a batch's entries are [1, images], as for a single device.
                indices = batch["index"][0]
                columns = {}
                is_written = batch["mask"][0] > 0
                # Arrays are [devices, images per device, ..].
                for name, array in parallel.local_rows(outputs).items():
                    rows = array.reshape(-1, *array.shape[2:])
                    with np.errstate(over="ignore"):  # infinity is looked for below
                        columns[name] = rows.astype(feature_store.DTYPES[name])
                    is_finite = np.isfinite(columns[name]).reshape(len(rows), -1)
                    is_written &= is_finite.all(axis=1)
                # Padding has indices beyond the paths.
                for index in indices[~is_written & (indices < len(new_paths))]:
                    path = new_paths[index]
                    failures[path] = photographs.unreadable.get(path, "not finite")
                    progress.log.info(f"{path} has no row ({failures[path]})")
                files = [
                    photographs.file_of_index[each] for each in indices[is_written]
                ]
                columns = {name: rows[is_written] for name, rows in columns.items()}
                feature_store.append_rows(store, files, **columns)
                bar.update(np.sum(indices < len(new_paths)))
    return failures


class _RecordedFiles(source.FileSource):
    """Image files without labels."""

    def __init__(self, paths):
        super().__init__("", paths)
        self.file_of_index = {}  # {index: PhotographFile that was read}

    def stored_image(self, store_index):
        path, label, name = super().stored_image(store_index)
        try:
            # The name is a whole path, because this source has no folder.
            content, photograph = feature_store.read_photograph(name)
        except OSError:  # `decode` meets the error again and says the reason
            return path, label, name
        self.file_of_index[store_index] = photograph
        return content, label, name


def _compute_columns(model, patches, logits, variables, pixels):
    model = model.with_execution(head_only=not patches)
    outputs = model.apply(variables, model.config.as_normalized(pixels))
    columns = {"vector": outputs.logits if logits else outputs.pooled}
    if patches:
        norm = final_norm(model, variables)
        columns["map"] = features.feature_map(outputs, model.config.grid, norm=norm)
    return columns


def _compute_ahead(program, weights, reader):
    """Yield (batch, outputs) while the devices compute the next batch."""
    previous_pair = None
    for batch in reader:
        # [0]: a batch's images are [1, images, H, W, 3], as for a single device.
        outputs = program(weights, parallel.shard_samples(batch["image"][0]))
        if previous_pair is not None:
            yield previous_pair
        previous_pair = batch, outputs
    if previous_pair is not None:
        yield previous_pair
