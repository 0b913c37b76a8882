"""Whether a reduction pays: dense and reduced programs timed in turns."""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from imagepiece_jax.common import timer
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate.statistics import Estimate, format_difference
from imagepiece_jax.inference.program import Program
from imagepiece_jax.reduction import methods, settings

INPUTS = 4  # different batches, in rotation
RULES = timer.Rules(warmup=2, repeats=5, seconds=0.2)
UNKNOWN = "accuracy not measured"
LONGEST = 1.0  # seconds of a dense batch: no larger one is tried than four times that


@dataclasses.dataclass(frozen=True)
class Advice:
    """What was measured of a reduction and the same model without it.

    speedups: how many times as fast the reduced model is, by batch size; macs: how many
    times as many MACs the dense one has; accuracy: what is known of it, in words.
    """

    label: str
    device: str
    batch_size: int
    speedups: Mapping[int, timer.Spread]
    macs: float
    accuracy: str

    def __str__(self):
        median, low, high = self.speedups[self.batch_size]
        if median >= 1:
            found = f"{median:.2f} times as fast as dense"
        else:
            found = f"slower than dense, {median:.2f} times as fast"
        if low <= 1 <= high:
            found = f"as fast as dense, {median:.2f} times"
        return (
            f"{self.label} at batch size {self.batch_size} on {self.device}: {found} "
            f"[{low:.2f}, {high:.2f}] (by MACs {self.macs:.2f}); {self._where()}; "
            f"{self.accuracy}"
        )

    def _where(self):
        """From which batch size on it is faster, of those that were measured."""
        sizes = sorted(self.speedups)
        faster = [size for size in sizes if _faster(self.speedups[size])]
        if not faster:
            return f"not faster at any batch size measured, {_listed(sizes)}"
        first = faster[0]
        slower = [size for size in sizes if size > first and size not in faster]
        if slower:
            return f"faster at batch sizes {_listed(faster)}, not at {_listed(slower)}"
        return f"faster from batch size {first} on (measured at {_listed(sizes)})"


def advise(
    make: Callable[[bool, int], Program],
    batch_size: int,
    accuracy: str = UNKNOWN,
) -> Advice:
    """Time both models at `batch_size`, and at others until it shows where one pays.

    make(reduced, batch size) -> the Program. accuracy: what is known of it, in words.
    It takes some seconds a batch size, and as long as the compiler does.
    """
    speedups, seconds = {}, {}
    first = None

    def faster(size):
        nonlocal first
        if size not in speedups:
            programs = {reduced: make(reduced, size) for reduced in (False, True)}
            jobs = {reduced: job(program) for reduced, program in programs.items()}
            found = timer.measure(jobs, RULES)
            ratios = timer.speedups(found[False], found[True])
            speedups[size] = timer.spread(ratios)
            seconds[size] = timer.spread(found[False]).median
            first = first or programs
        return _faster(speedups[size])

    if faster(batch_size):
        slow, fast = 0, batch_size  # powers of two between them are unknown
        while powers := [p for p in _powers(batch_size) if slow < p < fast]:
            middle = powers[0] if slow == 0 else powers[len(powers) // 2]
            slow, fast = (slow, middle) if faster(middle) else (middle, fast)
    else:
        size = batch_size
        # A batch that does not fit into the device's memory is none that pays.
        with contextlib.suppress(MemoryError, jax.errors.JaxRuntimeError):
            while seconds[size] < LONGEST and size < 1024 and not faster(4 * size):
                size *= 4
    dense, reduced = first[False], first[True]
    return Advice(
        label=_label(reduced.model),
        device=_device(reduced.device),
        batch_size=batch_size,
        speedups=speedups,
        macs=dense.gmacs / reduced.gmacs,
        accuracy=accuracy,
    )


def accuracy(reduction: Mapping[str, Any], results: str | os.PathLike | None) -> str:
    """What `results` say of a reduction's accuracy, in words.

    results: a file of `evaluate --json` or a sweep's sweep.jsonl, or a folder with such
    files, as a run is. InputError for a file that is neither.
    """
    if results is None:
        return UNKNOWN
    if not os.fspath(results):
        raise InputError("results is empty; allowed are a file and a folder")
    path = pathlib.Path(results)
    if os.path.isdir(path):
        files = sorted([*path.glob("*.json"), *path.glob("*.jsonl")])
        rows = [(row, file) for file in files for row in _rows_or_none(file)]
    else:
        rows = [(row, path) for row in _rows(path)]
    for row, file in rows:
        if _same(row["reduction"], reduction):
            return f"{_cost(row)}, from {file}"
    if os.path.isdir(path):
        return UNKNOWN
    raise InputError(
        f"{path} has no result of {settings.label(reduction)}; allowed are files of "
        "`evaluate --json` under this reduction, or of a sweep with it"
    )


def _label(model):
    """The reduction by what sets its cost, and by what is not the method's default."""
    reduction = model.reduction
    usual = methods.create(reduction["name"])
    cost = usual.knob(len(model.plan)).keys()
    return settings.label(
        {
            name: value
            for name, value in reduction.items()
            if name == "name" or name in cost or value != getattr(usual, name)
        }
    )


def _cost(row):
    images = f"{row['images']:,} images"
    names = ("difference", "difference_low", "difference_high")
    if not all(map(_is_number, map(row.get, names))):
        return f"acc1 {row['acc1']:.1f} % of {images}, dense not known"
    change = format_difference(Estimate(*(row[name] for name in names)))
    return f"acc1 to dense {change} (points, {images})"


def _rows_or_none(file):
    """Results in a file of a folder, which may hold anything."""
    with contextlib.suppress(InputError):
        return _rows(file)
    return []


def _rows(file) -> list[dict]:
    """Results in a file, one a line or one alone; InputError where there is none."""
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(
            f"results {file} cannot be read ({reason}); allowed is a file of "
            "`evaluate --json`, or a folder with such files"
        ) from error
    found = []
    for part in (text, *text.splitlines()):
        try:
            row = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(row, dict)
            and isinstance(row.get("reduction"), dict)
            and all(map(_is_number, (row.get("acc1"), row.get("images"))))
        ):
            found.append(row)
    if not found:
        raise InputError(
            f"{file} holds no result; allowed are files of `evaluate --json`, and a "
            "sweep's sweep.jsonl"
        )
    return found


def _is_number(value):
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max  # of NaN neither


def _same(found, reduction):
    """Whether two reductions are one, whatever fields are written out."""
    try:
        own = methods.create(**{k: settings.plain(v) for k, v in found.items()})
    except (InputError, TypeError, AttributeError):  # of another version
        return False
    return own == methods.create(**reduction)


def job(program: Program) -> timer.Job:
    """What times a program, on batches of noise that take turns."""
    kind = program.images

    def noise(key):
        if kind.dtype == jnp.uint8:
            return jax.random.randint(key, kind.shape, 0, 256, kind.dtype)
        return jax.random.normal(key, kind.shape, kind.dtype)

    images = list(map(noise, jax.random.split(jax.random.key(0), INPUTS)))
    return timer.job(lambda number: program(images[number % INPUTS]))


def _faster(speedup):
    return speedup.low > 1


def _powers(limit):
    return [2**i for i in range(limit.bit_length())]  # up to the limit


def _listed(numbers):
    return ", ".join(map(str, numbers))


def _device(device):
    return device.device_kind if device.platform != "cpu" else "this CPU"
