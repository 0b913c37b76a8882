"""Features of many photographs, computed on all devices into a `FeatureFolder`."""

import collections
import concurrent.futures
import functools
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagepiece_jax.common import parallel, xla_options
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.image_size import patch_grid
from imagepiece_jax.common.progress import Progress
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.normalize import as_normalized
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.deploy.inference import optimize
from imagepiece_jax.deploy.inference.feature_folder import Arrays, FeatureFolder
from imagepiece_jax.deploy.inference.features import feature_map, none_readable
from imagepiece_jax.deploy.pictures import Photographs
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import record_of
from imagepiece_jax.models.vit import ViT, final_norm

STORAGES = ("float16", "float32")
COMPARED = 256  # photographs that the dense model sees, too
AHEAD = 2  # batches that are decoded ahead


class Comparison(NamedTuple):
    """Pooled vectors of a reduced model beside those of the same weights, dense."""

    images: int
    mean: float  # cosine
    worst: float  # cosine
    path: str  # of the photograph with the worst

    def __str__(self):
        return (
            f"cosine to the dense model's vectors, of the first {self.images} "
            f"photographs: mean {self.mean:.4f}, worst {self.worst:.4f} ({self.path})"
        )


class Written(NamedTuple):
    """What a complete folder holds."""

    shapes: dict[str, list[int]]  # of the arrays, by name
    damaged: int  # rows of NaN
    compared: Comparison | None  # None: nothing is reduced, or weights are recovered


def write_features(
    vit: Pretrained,
    images: Iterable[str],
    folder: str | os.PathLike,
    *,
    patches: bool = False,
    logits: bool = False,
    storage: str = "float16",
    batch_size: int = 64,
    threads: int | None = None,
) -> Written:
    """Write features of image files into a folder, on all devices of this machine.

    A folder that the same arguments have started is completed from where it is.

    images: paths
    folder: new, empty or started
    patches, logits: whether a feature for every patch, and the head's outputs, are
        written, too
    storage: type of the numbers, "float16" or "float32"
    batch_size: photographs a device at a time
    threads: that decode; None: one per core, at most 16
    Raises InputError for a folder that was started by other arguments, or is in use;
        RunError where it cannot be written.
    """
    check_choice("storage", storage, STORAGES)
    check_range("batch_size", batch_size, 1, whole=True)
    if threads is not None:
        check_range("threads", threads, 1, whole=True)
    if logits and not vit.model.config.num_classes:
        raise InputError("logits is for weights with a head")
    model = vit.model
    xla_options.check_dtype(model.execution.dtype.name)
    wanted = {"logits": logits, "patches": patches}
    names = ("pooled", *filter(wanted.get, wanted))
    photographs = Photographs([*images])  # its mistakes, before a folder is made
    count = len(photographs)
    if not count:
        raise InputError("images is empty")
    run = Extractor(vit, model, names)
    made_by = record_of(vit, run.model, storage=storage, arrays=run.shapes)
    with FeatureFolder(folder) as files:
        files.begin(made_by, photographs, name=vit.source.name)
        shapes = {name: [count, *shape] for name, shape in run.shapes.items()}
        arrays = Arrays(files, shapes, storage)
        if arrays.rows < count:
            devices = len(parallel.local_devices())
            size = min(batch_size, math.ceil(count / devices)) * devices
            threads = threads or min(16, os.cpu_count() or 1)
            reading = Reading(photographs, vit.preprocessing, size, threads)
            _complete(vit, run, reading, arrays, files)
        arrays.finish()
        compared = files.info.get("compared")
        if compared:
            compared = Comparison(**compared)
        return Written(shapes, len(arrays.damaged), compared)


class Batch(NamedTuple):
    """Photographs that follow each other, cropped."""

    rows: range
    pixels: np.ndarray  # uint8 [size, H, W, 3], black where there is none
    damaged: list[tuple[int, str, str]]  # row, path and reason


class Reading(NamedTuple):
    """How photographs are read."""

    photographs: Photographs
    preprocessing: Preprocessing
    size: int  # photographs of a batch, over all devices
    threads: int

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the photographs from `start` on, batch by batch; threads read ahead."""
        with concurrent.futures.ThreadPoolExecutor(self.threads) as pool:
            ahead = collections.deque()
            for first in range(start, stop, self.size):
                rows = range(first, min(first + self.size, stop))
                ahead.append(self._begun(pool, rows))
                if len(ahead) > AHEAD:
                    yield _ended(*ahead.popleft())
            for begun in ahead:
                yield _ended(*begun)

    def _begun(self, pool, rows):
        """(rows, their pixels, which threads fill; a Future of `_read` for each)."""
        pixels = np.zeros((self.size, *self.preprocessing.shape, 3), np.uint8)
        futures = []
        for row, target in zip(rows, pixels, strict=False):
            futures.append(pool.submit(self._read, row, target))
        return rows, pixels, futures

    def _read(self, row, target):
        """Read a photograph into an array; (row, path, reason) where that fails."""
        try:
            pixels, _ = self.photographs.read(row)
            target[:] = self.preprocessing(pixels)
        except UnreadableImage as error:
            return row, error.name, f"cannot be read ({error.reason})"
        except InputError as error:
            return row, self.photographs.name(row), f"does not fit: {error}"
        return None


def _ended(rows, pixels, futures):
    """The Batch of a result of `Reading._begun`."""
    results = [future.result() for future in futures]
    return Batch(rows, pixels, [result for result in results if result])


class Extractor:
    """A model on all devices: called with pixels [size, H, W, 3], it gives its arrays.

    A result is {name: array [devices, size / devices, ..]}.

    names: of the arrays, in ARRAYS
    model: the form that computes
    shapes: of a row of each array
    """

    def __init__(self, vit: Pretrained, model: ViT, names: Sequence[str]):
        device = parallel.local_devices()[0]
        model = optimize.for_device(model, device, model.execution.attention)
        pixels = optimize.joined_pixels(model, device)
        model, weights = optimize.prepare(
            model, vit.variables, dtype=model.execution.dtype.name, pixels=pixels
        )
        run = functools.partial(_arrays, model, tuple(names))
        one = jax.ShapeDtypeStruct((1, *vit.preprocessing.shape, 3), jnp.uint8)
        found = jax.eval_shape(run, weights, one)
        self.shapes = {name: found[name].shape[1:] for name in names}
        self.model = model
        self._step = parallel.pmap(run, program="features")
        self._weights = parallel.replicate(weights)

    def __call__(self, pixels: np.ndarray) -> dict[str, jax.Array]:
        return self._step(self._weights, parallel.shard(pixels))


def _arrays(model, names, variables, images):
    """The arrays of uint8 images, by name."""
    model = model.with_execution(head_only="patches" not in names)
    outputs = model.apply(
        variables, as_normalized(images, model.config.mean, model.config.std)
    )
    found = {"pooled": outputs.pooled, "logits": outputs.logits}
    if "patches" in names:
        grid = patch_grid(images.shape[1:3], model.config.patch_size, cut=True)
        norm = final_norm(model, variables)
        found["patches"] = feature_map(outputs, grid, norm=norm)
    return {name: found[name] for name in names}


def _complete(vit, run, reading, arrays, files):
    """Add the rows that a folder lacks."""
    count = len(reading.photographs)
    start = arrays.rows
    with Progress("features", count, start) as progress:
        begun = _begun(run, reading, start, progress)
        if start == 0 and any(layer.step for layer in run.model.plan):
            compared = _comparison(vit, reading, begun)
            files.write_info(compared=compared and compared._asdict())
        try:
            for batch, result in begun:
                _append(arrays, reading, batch, result, progress)
            progress.update(
                arrays.rows - start
            )  # at once, as they are computed already
            for batch, result in _one_behind(run, reading.batches(arrays.rows, count)):
                _append(arrays, reading, batch, result, progress)
                progress.update(len(batch.rows))
        finally:
            arrays.count()


def _one_behind(run, batches):
    """Yield (batch, result) while the devices compute the next one."""
    pending = None
    for batch in batches:
        result = run(batch.pixels)
        if pending is not None:
            yield pending
        pending = batch, result
    if pending is not None:
        yield pending


def _begun(run, reading, start, progress):
    """(batch, result) of about COMPARED photographs, by which the rates are measured.

    They are read before the model runs, so that neither waits for the other.
    """
    stop = start + math.ceil(COMPARED / reading.size) * reading.size
    began = time.monotonic()
    batches = [*reading.batches(start, min(stop, len(reading.photographs)))]
    read = time.monotonic() - began
    if start == 0:
        _check_some(batches)
    results = [jax.block_until_ready(run(batches[0].pixels))]  # which compiles it
    again = batches[1:] or batches
    began = time.monotonic()
    results += [jax.block_until_ready(run(batch.pixels)) for batch in again]
    computed = time.monotonic() - began
    decoding = sum([len(batch.rows) for batch in batches]) / read
    model = len(again) * reading.size / computed
    slower = "the model" if model < decoding else "decoding"
    devices = parallel.local_devices()
    of_model = f"{len(devices)} x {devices[0].platform}"
    progress.say(
        f"decoding {decoding:,.0f} photographs a second ({reading.threads} threads), "
        f"the model {model:,.0f} ({of_model}): {slower} is slower"
    )
    return [*zip(batches, results, strict=False)]


def _check_some(batches):
    """Check that some photograph of these batches can be read."""
    damaged = []
    for batch in batches:
        damaged += batch.damaged
    count = sum([len(batch.rows) for batch in batches])
    if len(damaged) == count:
        _, path, reason = damaged[0]
        raise none_readable(count, path, reason)


def _append(arrays, reading, batch, result, progress):
    """Append the rows of a batch, NaN where a photograph is damaged."""
    rows = {}
    damaged = {row: (path, reason) for row, path, reason in batch.damaged}
    for name, values in parallel.local(result).items():
        values = values.reshape(-1, *values.shape[2:])[: len(batch.rows)]
        with np.errstate(over="ignore"):
            rows[name] = values.astype(arrays.dtype)
        finite = np.isfinite(rows[name]).all(axis=tuple(range(1, values.ndim)))
        for row in np.array(batch.rows)[~finite].tolist():
            reason = f"has {name} that are no numbers of {arrays.dtype}"
            damaged.setdefault(row, (reading.photographs.name(row), reason))
    lines = [(row, *damaged[row]) for row in sorted(damaged)]
    for row, path, reason in lines:
        progress.say(f"{path} {reason}: its row is NaN")
        for values in rows.values():
            values[row - batch.rows.start] = np.nan
    arrays.append(rows, lines)


def _comparison(vit, reading, begun):
    """The Comparison with the dense model; None where all photographs are damaged."""
    dense = vit.with_reduction(None)
    run = Extractor(dense, dense.model, ["pooled"])
    cosines = {}
    for batch, reduced in begun:
        ours = _vectors(reduced["pooled"])
        theirs = _vectors(run(batch.pixels)["pooled"])
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        of_batch = np.sum(ours * theirs, axis=1) / lengths
        cosines |= dict(zip(batch.rows, of_batch.tolist(), strict=False))
        for row, *_ in batch.damaged:
            del cosines[row]
    compared = {row: cosines[row] for row in cosines if row < COMPARED}
    if not compared:
        return None
    worst = min(compared, key=compared.get)
    mean = sum(compared.values()) / len(compared)
    path = reading.photographs.name(worst)
    return Comparison(len(compared), round(mean, 6), round(compared[worst], 6), path)


def _vectors(pooled):
    """Pooled vectors on all devices as float32 [size, numbers of a photograph]."""
    pooled = parallel.local(pooled).astype(np.float32)
    return pooled.reshape(pooled.shape[0] * pooled.shape[1], -1)
