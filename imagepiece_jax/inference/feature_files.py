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
from imagepiece_jax.common.machine import cores
from imagepiece_jax.common.progress import ProgressBar, log
from imagepiece_jax.data.batches import Batches
from imagepiece_jax.data.normalize import as_normalized
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.compare_outputs import unit
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
) -> Written:
    """Write image features into a folder, on all devices of this machine.

    A second call computes only new or changed files, and removes the rows of files no
    longer named or there. For a reduced model, the first call prints the cosine between
    its vectors and the dense model's.

    images: paths; paths with a line break are left out, because paths.txt has one line
        per photograph
    folder: new, empty, or from an earlier call
    patches, logits: whether to write patch features, and the head's outputs
    storage: "float16" or "float32"
    batch_size: photographs per device
    threads: decoding threads; None: one per core, at most 16
    Raises InputError for a folder in use, or from a call with different settings.
    """
    check_choice("storage", storage, STORAGES)
    check_range("batch_size", batch_size, 1, whole=True)
    if threads is not None:
        check_range("threads", threads, 1, whole=True)
    if logits and not vit.model.config.num_classes:
        raise InputError("logits is for weights with a head")
    xla_options.check_dtype(vit.model.execution.dtype.name)
    optional = {"logits": logits, "patches": patches}
    names = ("pooled", *filter(optional.get, optional))
    paths = _of_one_line([os.fspath(image) for image in images])
    if not paths:
        raise InputError("images is empty")
    run = Extractor(vit, names)
    record = record_of(vit, run.model, storage=storage, arrays=run.shapes)
    with feature_folder.opened(folder, record, paths, run.shapes, storage) as files:
        photographs = RecordedFiles(paths)
        count = len(paths)
        missing = photographs.subset(files.missing)
        devices = len(parallel.local_devices())
        size = min(batch_size, math.ceil(len(missing) / devices)) * devices
        threads = threads or min(16, cores())
        batches = Batches(
            source=missing,
            transform=vit.preprocessing,
            batch_size=max(1, size),
            strict=False,
        )
        existing_rows = count - len(missing)
        with (
            ProgressBar("features", count, existing_rows) as progress,
            contextlib.closing(batches.read(threads)) as reader,
        ):
            if files.leaving:
                log.warning(
                    f"note: {files.leaving} rows are removed, because their "
                    "photographs are gone or not named"
                )
            if existing_rows:
                progress.say(f"{existing_rows} of {count} rows exist already")
            elif any(layer.step for layer in run.model.plan):
                progress.say(_comparison(vit, run, photographs, size, threads))
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
        return self._step(self._weights, parallel.shard(pixels))


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


def _comparison(vit, run, photographs, size, threads):
    """Compare pooled vectors with the dense model's, in one sentence.

    run: the Extractor of `vit`
    """
    sample = photographs.evenly_spaced(COMPARED)
    dense = Extractor(vit.with_reduction(None), ["pooled"])
    batches = Batches(
        source=sample, transform=vit.preprocessing, batch_size=size, strict=False
    )
    cosines = []
    for batch in batches.read(threads):
        vectors = []
        for model in (run, dense):
            pooled = parallel.local(model(batch["image"][0])["pooled"])
            vectors.append(unit(pooled.reshape(-1, pooled.shape[-1])))
        of_batch = np.sum(vectors[0] * vectors[1], axis=1)
        for row in np.flatnonzero(batch["mask"][0]):
            cosines.append((of_batch[row], sample.name(batch["index"][0, row])))
    if not cosines:
        return f"none of {len(sample)} photographs can be compared with the dense model"
    worst, name = min(cosines)
    mean = np.mean([cosine for cosine, _ in cosines])
    return (
        f"cosine to the dense model's vectors, of {len(cosines)} photographs: mean "
        f"{mean:.4f}, worst {worst:.4f} ({name})"
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
    names = [source.name(index) for index in indices]
    reasons = {}  # by row
    for row in np.flatnonzero(batch["mask"][0, : len(names)] == 0):
        reasons[row] = f"cannot be read ({source.unreadable[names[row]]})"
    rows = {}
    for array, values in parallel.local(result).items():
        values = values.reshape(-1, *values.shape[2:])[: len(names)]
        with np.errstate(over="ignore"):
            rows[array] = values.astype(files.dtype)
        finite = np.isfinite(rows[array]).all(axis=tuple(range(1, values.ndim)))
        for row in np.flatnonzero(~finite):
            reasons.setdefault(row, f"has {array} beyond the numbers of {files.dtype}")
    for row, reason in sorted(reasons.items()):
        progress.say(f"{names[row]} {reason}: its row is NaN")
        for values in rows.values():
            values[row] = np.nan
    file_indices = source.indices[indices]
    records = []
    for row, file_index in enumerate(file_indices.tolist()):
        records.append(source.records.pop(file_index)._replace(reason=reasons.get(row)))
    files.append(file_indices, rows, records)
    progress.update(len(names))
