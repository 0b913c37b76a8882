"""Compute photographs' features on all devices, into a `FeatureFolder`."""

import contextlib
import functools
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.common.machine import available_cores
from imagepiece_jax.common.progress import ProgressBar, log
from imagepiece_jax.common.tables import rows_table
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.normalize import as_normalized
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation.annotations import annotations
from imagepiece_jax.evaluation.compare_outputs import cells, fidelity_of_rows, unit
from imagepiece_jax.inference import feature_folder, optimize
from imagepiece_jax.inference.features import feature_map
from imagepiece_jax.inference.file_records import RecordedFiles
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import record_of
from imagepiece_jax.models.vit import final_norm

STORAGES = ("float16", "float32")
COMPARED = 256  # photographs for the comparison with the dense model


class Written(NamedTuple):
    """A summary of a complete folder."""

    shapes: dict[str, list[int]]  # {array name: shape}
    damaged: int  # number of NaN rows


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
    texts: str | os.PathLike | None = None,
) -> Written:
    """Write image features into a folder, on all devices of this machine.

    A second call computes only new or changed files, and removes the rows of files no
    longer named or there. For a reduced model, the first call prints how near its
    vectors are to the dense model's; with texts, every call does.

    images: paths; paths with a line break are left out, because paths.txt has one line
        per photograph
    folder: new, empty, or from an earlier call
    patches, logits: whether to write patch features, and the head's outputs
    storage: "float16" or "float32"
    batch_size: photographs per device
    threads: decoding threads; None: one per core, at most 16
    texts: a text tower's vectors, as for `compare`
    Raises InputError for a folder in use, or from a call with different settings.
    """
    check_choice("storage", storage, STORAGES)
    check_range("batch_size", batch_size, 1, whole=True)
    if threads is not None:
        check_range("threads", threads, 1, whole=True)
    if logits and not vit.model.config.num_classes:
        raise InputError("logits is for weights with a head")
    if texts is not None and vit.has_projection and not logits:
        raise InputError(
            "texts needs the vectors next to texts; give logits (--logits)"
        )
    xla_options.check_dtype(vit.model.execution.dtype.name)
    optional = {"logits": logits, "patches": patches}
    names = ("pooled", *filter(optional.get, optional))
    paths = _of_one_line([os.fspath(image) for image in images])
    if not paths:
        raise InputError("images is empty")
    photographs = RecordedFiles(paths)
    known = annotations(vit, photographs, texts)
    run = Extractor(vit, names)
    record = record_of(vit, run.model, storage=storage, arrays=run.shapes)
    with feature_folder.opened(folder, record, paths, run.shapes, storage) as files:
        count = len(paths)
        missing = photographs.subset(files.missing)
        devices = len(parallel.local_devices())
        size = min(batch_size, math.ceil(len(missing) / devices)) * devices
        threads = threads or min(16, available_cores())
        batches = Batches(
            source=missing,
            transform=vit.preprocessing,
            batch_size=max(1, size),
            strict=False,
        )
        existing_rows = count - len(missing)
        with (
            ProgressBar("features", count, existing_rows) as progress,
            contextlib.closing(batches.read_batches(threads)) as reader,
        ):
            if files.leaving:
                log.warning(
                    f"note: {files.leaving} rows are removed, because their "
                    "photographs are gone or not named"
                )
            if existing_rows:
                progress.log_line(f"{existing_rows} of {count} rows exist already")
            is_reduced = any(layer.step for layer in run.model.plan)
            if texts is not None or (is_reduced and not existing_rows):
                size = size or batch_size * devices  # nothing is missing
                comparison = _comparison(vit, run, photographs, known, size, threads)
                progress.log_line(comparison)
            for batch, result in _one_behind(run, reader):
                _append(files, missing, batch, result, progress)
        files.complete()
        shapes = {name: [count, *shape] for name, shape in run.shapes.items()}
        return Written(shapes, len(files.damaged))


def _of_one_line(paths):
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
    """A model on all devices: pixels [size, H, W, 3] -> its arrays.

    Results are {name: array [devices, size / devices, ..]}.

    names: a choice of "pooled", "logits" and "patches"
    model: the prepared model (`optimize.prepare`)
    shapes: {array name: shape of one row}
    """

    def __init__(self, vit: Pretrained, names: Sequence[str]):
        device = parallel.local_devices()[0]
        model = vit.model
        model = optimize.for_device(model, device, model.execution.attention)
        pixels = optimize.joined_pixels(model, device)
        model, weights = optimize.prepare(
            model, vit.variables, dtype=model.execution.dtype.name, pixels=pixels
        )
        run = functools.partial(_arrays, model, tuple(names))
        image = jax.ShapeDtypeStruct((1, *vit.preprocessing.shape, 3), jnp.uint8)
        outputs = jax.eval_shape(run, weights, image)
        self.shapes = {name: outputs[name].shape[1:] for name in names}
        self.model = model
        self._step = parallel.pmap(run, program="features")
        self._weights = parallel.replicate(weights)

    def __call__(self, pixels: np.ndarray) -> dict[str, jax.Array]:
        return self._step(self._weights, parallel.shard_samples(pixels))


def _arrays(model, names, variables, images):
    """Compute the named arrays of uint8 images."""
    model = model.with_execution(head_only="patches" not in names)
    outputs = model.apply(
        variables, as_normalized(images, model.config.mean, model.config.std)
    )
    arrays = {"pooled": outputs.pooled, "logits": outputs.logits}
    if "patches" in names:
        grid = patch_grid(images.shape[1:3], model.config.patch_size, cut=True)
        norm = final_norm(model, variables)
        arrays["patches"] = feature_map(outputs, grid, norm=norm)
    return {name: arrays[name] for name in names}


def _comparison(vit, run, photographs, known, size, threads):
    """Compare vectors with the dense model's, as a table.

    run: the Extractor of `vit`
    known: Annotations of the photographs
    """
    array = "pooled"
    if vit.has_projection and "logits" in run.shapes:
        array = "logits"
    sample = photographs
    if known.texts is not None:
        sample = photographs.subset(np.unique(known.described))
    sample = sample.evenly_spaced(COMPARED)
    models = {"dense": Extractor(vit.with_reduction(None), [array]), vit.label: run}
    batches = Batches(
        source=sample, transform=vit.preprocessing, batch_size=size, strict=False
    )
    parts = {name: [] for name in models}
    indices = []
    for batch in batches.read_batches(threads):
        is_compared = batch["mask"][0] > 0
        for name, model in models.items():
            vectors = parallel.local_rows(model(batch["image"][0])[array])
            vectors = vectors.reshape(-1, vectors.shape[-1])
            if name == "dense":
                is_compared &= np.isfinite(vectors).all(axis=1)
            parts[name].append(vectors[is_compared])
        indices += batch["index"][0, is_compared].tolist()
    if not indices:
        return f"none of {len(sample)} photographs can be compared with the dense model"
    rows = {name: np.concatenate(vectors) for name, vectors in parts.items()}
    known = known.subset(np.asarray(sample.indices)[indices])
    figures = fidelity_of_rows(rows, False, known)
    cosines = np.sum(unit(rows[vit.label]) * unit(rows["dense"]), axis=1)
    lines = [{"vectors": name, **cells(figures[name])} for name in figures]
    return (
        f"compared with the dense model on {len(indices)} photographs; the worst is "
        f"{sample.image_name(indices[cosines.argmin()])}\n{rows_table(lines)}"
    )


def _one_behind(run, batches):
    """Yield (batch, result) while the devices compute the next batch."""
    pending = None
    for batch in batches:
        result = run(batch["image"][0])
        if pending is not None:
            yield pending
        pending = batch, result
    if pending is not None:
        yield pending


def _append(files, source, batch, result, progress):
    """Append a batch's rows; a damaged photograph's row is NaN."""
    indices = batch["index"][0]
    indices = indices[indices < len(source)]
    names = [source.image_name(index) for index in indices]
    reasons = {}  # by row
    for row in np.flatnonzero(batch["mask"][0, : len(names)] == 0):
        reasons[row] = f"cannot be read ({source.unreadable[names[row]]})"
    rows = {}
    for array, values in parallel.local_rows(result).items():
        values = values.reshape(-1, *values.shape[2:])[: len(names)]
        with np.errstate(over="ignore"):
            rows[array] = values.astype(files.dtype)
        finite = np.isfinite(rows[array]).all(axis=tuple(range(1, values.ndim)))
        for row in np.flatnonzero(~finite):
            reasons.setdefault(row, f"has {array} beyond the numbers of {files.dtype}")
    for row, reason in sorted(reasons.items()):
        progress.log_line(f"{names[row]} {reason}: its row is NaN")
        for values in rows.values():
            values[row] = np.nan
    file_indices = source.indices[indices]
    records = []
    for row, file_index in enumerate(file_indices.tolist()):
        records.append(source.records.pop(file_index)._replace(reason=reasons.get(row)))
    files.append(file_indices, rows, records)
    progress.update(len(names))
