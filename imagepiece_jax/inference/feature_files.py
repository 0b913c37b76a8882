"""Compute photographs' features on all devices, into a `FeatureFolder`."""

import contextlib
import functools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.machine import default_threads
from imagepiece_jax.common.progress import ProgressBar, log
from imagepiece_jax.common.tables import rows_table
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.errors import InputError
from imagepiece_jax.inference import feature_folder, optimize
from imagepiece_jax.inference.compare_outputs import (
    fidelity_cells,
    measure_fidelities,
    unit_rows,
)
from imagepiece_jax.inference.features import feature_map
from imagepiece_jax.inference.file_records import RecordedFiles
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import model_record
from imagepiece_jax.models.vit import ViT, final_norm

STORAGE_DTYPES = ("float16", "float32")
NUM_COMPARED = 256  # photographs for the comparison with the dense model


class WrittenFeatures(NamedTuple):
    """A summary of a complete folder."""

    shapes: dict[str, list[int]]  # {array name: shape}
    num_damaged: int  # NaN rows


def write_features(
    vit: Pretrained,
    images: Sequence[str],
    folder: str | os.PathLike,
    *,
    patches: bool = False,
    logits: bool = False,
    storage: str = "float16",
    batch_size: int = 64,
    threads: int | None = None,
) -> WrittenFeatures:
    """Write image features into a folder, on all devices of this machine.

    A second call computes only new or changed files, and removes the rows of files no
    longer named or there. For a reduced model, the first call prints how near its
    vectors are to the dense model's.

    images: paths; paths with a line break are left out, because paths.txt has one line
        per photograph
    folder: new, empty, or from an earlier call
    patches, logits: whether to write patch features, and the head's outputs
    storage: "float16" or "float32"
    batch_size: photographs per device
    threads: decoding threads; None: one per core, at most 16
    Raises InputError for a folder in use, or from a call with different settings.
    """
    check_choice("storage", storage, STORAGE_DTYPES)
    check_range("batch_size", batch_size, 1, whole=True)
    if threads is not None:
        check_range("threads", threads, 1, whole=True)
    if logits and not vit.model.config.num_classes:
        raise InputError("logits is for weights with a head")
    xla_options.check_dtype(vit.model.execution.dtype.name)
    optional_arrays = {"logits": logits, "patches": patches}
    array_names = ("pooled", *filter(optional_arrays.get, optional_arrays))
    paths = _drop_multiline_paths([os.fspath(image) for image in images])
    if not paths:
        raise InputError("images is empty")
    photographs = RecordedFiles(paths)
    extractor = Extractor(vit, array_names)
    row_shapes = extractor.shapes
    record = model_record(vit, extractor.model, storage=storage, arrays=row_shapes)
    with feature_folder.open_feature_folder(
        folder, record, paths, row_shapes, storage
    ) as row_folder:
        num_paths = len(paths)
        missing_photographs = photographs.subset(row_folder.missing_indices)
        num_devices = len(parallel.local_devices())
        device_rows = min(batch_size, math.ceil(len(missing_photographs) / num_devices))
        global_batch = device_rows * num_devices
        threads = threads or default_threads()
        batches = Batches(
            source=missing_photographs,
            transform=vit.preprocessing,
            batch_size=max(1, global_batch),
            strict=False,
        )
        num_existing = num_paths - len(missing_photographs)
        with (
            ProgressBar("features", num_paths, num_existing) as progress,
            contextlib.closing(batches.read_batches(threads)) as reader,
        ):
            if row_folder.num_removed:
                log.warning(
                    f"note: {row_folder.num_removed} rows are removed, because their "
                    "photographs are gone or not named"
                )
            if num_existing:
                progress.log_line(f"{num_existing} of {num_paths} rows exist already")
            is_reduced = any(layer.step for layer in extractor.model.plan)
            if is_reduced and not num_existing:
                comparison_table = _compare_with_dense(
                    vit, extractor, photographs, global_batch, threads
                )
                progress.log_line(comparison_table)
            for batch, arrays in _extract_ahead(extractor, reader):
                _append_batch(row_folder, missing_photographs, batch, arrays, progress)
        row_folder.complete_folder()
        all_shapes = {name: [num_paths, *shape] for name, shape in row_shapes.items()}
        return WrittenFeatures(all_shapes, len(row_folder.damaged_rows))


def _drop_multiline_paths(paths: list[str]) -> list[str]:
    """Drop paths with a line break, with a note."""
    # Readers of paths.txt may split at more than "\n": Python splits at U+2028, too.
    multiline_paths = [path for path in paths if path.splitlines() != [path]]
    if multiline_paths:
        log.warning(
            f"note: names with a line break are left out: {len(multiline_paths)} of "
            f"{len(paths)}, such as {multiline_paths[0]!r}"
        )
    return [path for path in paths if path.splitlines() == [path]]


class Extractor:
    """A model on all devices: pixels -> {name: array [devices, images, ..]}.

    array_names: a choice of "pooled", "logits" and "patches"
    """

    def __init__(self, vit: Pretrained, array_names: Sequence[str]) -> None:
        device = parallel.local_devices()[0]
        attention = vit.model.execution.attention
        model = optimize.with_device_attention(vit.model, device, attention)
        model, weights = optimize.fold_and_cast(model, vit.variables, device)
        compute_arrays = functools.partial(_compute_arrays, model, tuple(array_names))
        image_spec = jax.ShapeDtypeStruct((1, *vit.preprocessing.shape, 3), jnp.uint8)
        output_specs = jax.eval_shape(compute_arrays, weights, image_spec)
        # Shapes of one row.
        self.shapes = {name: output_specs[name].shape[1:] for name in array_names}
        self.model = model  # with a folded stem
        self._program = parallel.pmap(compute_arrays, program_name="features")
        self._weights = parallel.replicate(weights)

    def __call__(
        self, pixels: UInt8[np.ndarray, "images height width 3"]
    ) -> dict[str, jax.Array]:
        return self._program(self._weights, parallel.shard_samples(pixels))


def _compute_arrays(
    model: ViT,
    array_names: tuple[str, ...],
    variables: Mapping[str, Any],
    pixels: UInt8[Array, "batch height width 3"],
) -> dict[str, Float[Array, "batch ..."]]:
    """Compute the named arrays."""
    model = model.with_execution(head_only="patches" not in array_names)
    outputs = model.apply(variables, model.config.as_normalized(pixels))
    arrays = {"pooled": outputs.pooled, "logits": outputs.logits}
    if "patches" in array_names:
        norm = final_norm(model, variables)
        arrays["patches"] = feature_map(outputs, model.config.grid, norm=norm)
    return {name: arrays[name] for name in array_names}


def _compare_with_dense(
    vit: Pretrained,
    extractor: Extractor,
    photographs: RecordedFiles,
    batch_size: int,
    threads: int,
) -> str:
    """Compare vectors with the dense model's, as a table."""
    array_name = "pooled"
    if vit.config.head.is_projection and "logits" in extractor.shapes:
        array_name = "logits"
    sample = photographs.evenly_spaced(NUM_COMPARED)
    dense_extractor = Extractor(vit.with_reduction(None), [array_name])
    extractors = {"dense": dense_extractor, vit.label: extractor}
    batches = Batches(
        source=sample, transform=vit.preprocessing, batch_size=batch_size, strict=False
    )
    vectors_by_label, indices = _collect_vectors(
        extractors, array_name, batches.read_batches(threads)
    )
    if not indices:
        return f"none of {len(sample)} photographs can be compared with the dense model"
    fidelities = measure_fidelities(vectors_by_label, False)
    unit_vectors = unit_rows(vectors_by_label[vit.label])
    cosines = np.sum(unit_vectors * unit_rows(vectors_by_label["dense"]), axis=1)
    table_rows = [
        {"vectors": name, **fidelity_cells(fidelities[name])} for name in fidelities
    ]
    return (
        f"compared with the dense model on {len(indices)} photographs; the worst is "
        f"{sample.image_name(indices[cosines.argmin()])}\n{rows_table(table_rows)}"
    )


def _collect_vectors(
    extractors: Mapping[str, Extractor], array_name: str, batches: Iterable[dict]
) -> tuple[dict[str, Float[np.ndarray, "images dim"]], list[int]]:
    """Compute vectors of the readable images whose dense vectors are finite.

    extractors: "dense" comes first
    Returns ({extractor: vectors}, the images' indices).
    """
    batch_vectors = {name: [] for name in extractors}
    indices = []
    for batch in batches:
        is_compared = batch["mask"][0] > 0
        for name, extract in extractors.items():
            vectors = parallel.local_rows(extract(batch["image"][0])[array_name])
            vectors = vectors.reshape(-1, vectors.shape[-1])
            if name == "dense":
                is_compared &= np.isfinite(vectors).all(axis=1)
            batch_vectors[name].append(vectors[is_compared])
        indices += batch["index"][0, is_compared].tolist()
    all_vectors = {name: np.concatenate(v) for name, v in batch_vectors.items()}
    return all_vectors, indices


def _extract_ahead(extractor: Extractor, batches: Iterable[dict]) -> Iterator[tuple]:
    """Yield (batch, arrays) while the devices compute the next batch."""
    pending_pair = None
    for batch in batches:
        arrays = extractor(batch["image"][0])
        if pending_pair is not None:
            yield pending_pair
        pending_pair = batch, arrays
    if pending_pair is not None:
        yield pending_pair


def _append_batch(
    folder: feature_folder.FeatureFolder,
    source: RecordedFiles,
    batch: Mapping[str, np.ndarray],
    arrays: Mapping[str, jax.Array],
    progress: ProgressBar,
) -> None:
    """Append a batch's rows; a damaged photograph's row is NaN.

    arrays: from `Extractor`, [devices, images per device, ..]
    """
    indices = batch["index"][0]
    indices = indices[indices < len(source)]  # the last batch is padded
    image_names = [source.image_name(index) for index in indices]
    reasons = {}  # by row
    for row in np.flatnonzero(batch["mask"][0, : len(image_names)] == 0).tolist():
        reasons[row] = f"cannot be read ({source.unreadable[image_names[row]]})"
    array_rows = {}
    dtype = folder.dtype
    for name, array in parallel.local_rows(arrays).items():
        array = array.reshape(-1, *array.shape[2:])[: len(image_names)]
        with np.errstate(over="ignore"):
            array_rows[name] = array.astype(dtype)
        is_finite = np.isfinite(array_rows[name]).all(axis=tuple(range(1, array.ndim)))
        for row in np.flatnonzero(~is_finite).tolist():
            reasons.setdefault(row, f"has {name} beyond the numbers of {dtype}")
    for row, reason in sorted(reasons.items()):
        progress.log_line(f"{image_names[row]} {reason}: its row is NaN")
        for array in array_rows.values():
            array[row] = np.nan
    file_indices = source.indices[indices]
    records = []
    for row, file_index in enumerate(file_indices.tolist()):
        records.append(source.records.pop(file_index)._replace(reason=reasons.get(row)))
    folder.append_rows(file_indices, array_rows, records)
    progress.update(len(image_names))
