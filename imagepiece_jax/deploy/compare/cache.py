"""Measured results, stored as lines of JSON: those of `compare` in points.jsonl.

A result is measured once for each setting, which holds all that decides it. A result is
on disk before the next measurement starts, so that a stopped command resumes there.
"""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import parallel
from imagepiece_jax.common.files import append_line, git_revision, locked
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.evaluate import accuracy
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import as_json, record_of
from imagepiece_jax.reduction.reduction import Reduction

FILE = "points.jsonl"
FIELDS = ("setting", "result")  # of each of its lines
MAX_PROGRAMS = 64  # compiled evaluation steps in memory


class Lines:
    """JSON objects, a line each, in a file whose folder is locked until `close`.

    What was appended is on disk. The end of a line that a killed process tore is cut
    off.

    path: of the file; its folder is made
    needed: names of the fields that every object has, of which it begins with the first
    Raises InputError where the file cannot be written, another process has it, or a
    line is something else, and RunError where it has no room for a line's end.
    """

    def __init__(self, path: str | os.PathLike, *needed: str):
        self._stack = contextlib.ExitStack()
        folder = pathlib.Path(path).parent
        self._stack.enter_context(locked("folder", folder))
        try:
            self._file = self._stack.enter_context(open(path, "ab", buffering=0))
            self.found = read_lines(path, *needed)
            data = pathlib.Path(path).read_bytes()
            if len(self.found) > data.count(b"\n"):  # whole, but for its end
                append_line(self._file, "")
            else:
                os.ftruncate(self._file.fileno(), data.rfind(b"\n") + 1)
        except (InputError, RunError, OSError):
            self.close()
            raise

    def close(self):
        self._stack.close()

    def append(self, value: Mapping[str, Any]):
        """Write an object as the last line. Raises RunError where it has no room."""
        append_line(self._file, json.dumps(value))
        os.fsync(self._file.fileno())


def read_lines(path: str | os.PathLike, *needed: str) -> list[dict[str, Any]]:
    """The objects of a file of `Lines`, but for a torn last one; [] without a file.

    needed: names of the fields that every object has, of which it begins with the first
    Raises InputError for a file that cannot be read, and for any other line.
    """
    try:
        lines = pathlib.Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    if _is_torn(lines[-1], *needed):
        del lines[-1]
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            for name in needed:
                value[name]
        except (ValueError, KeyError, TypeError) as error:
            text = f"{path}: line {number} is not a measured result ({error!r})"
            raise InputError(f"{text}; fix or remove it") from error
        found.append(value)
    return found


def _is_torn(line, first="", *_):
    """Whether a line without an end is the beginning of an object of `Lines`.

    Anything else is not ours to cut off.
    """
    beginning = f'{{"{first}'.encode()[: len(line)]
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(beginning)
    return False


def read_results(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a folder's FILE; [] without one. InputError for any other line."""
    return read_lines(pathlib.Path(folder, FILE), *FIELDS)


class ResultCache:
    """All results in a folder, which is locked until `close` is called.

    versions: versions of libraries and the device, which new lines carry
    Raises InputError where the folder cannot be written, or another process has it.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        versions: dict[str, Any] | None = None,
    ):
        self._lines = Lines(pathlib.Path(folder, FILE), *FIELDS)
        self._results = {}
        for entry in self._lines.found:
            self._results[_key(entry["setting"])] = entry["result"]
        self.versions = versions or {}

    def close(self):
        self._lines.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def result(
        self, setting: dict, measure: Callable[[], dict], what: str = "a point"
    ) -> dict:
        """The stored result of a setting, or else that of `measure()`, which is stored.

        setting: all that decides the result, as JSON values
        measure: makes the result, a dict of JSON values
        what: what is measured, in words for stderr
        """
        key = _key(setting)
        if key in self._results:
            return self._results[key]
        began = time.monotonic()
        print(f"measuring {what} ..", file=sys.stderr, flush=True)
        try:
            result = measure()
        finally:
            seconds = time.monotonic() - began
            print(f"took {seconds:.0f} s", file=sys.stderr, flush=True)
        line = {
            "setting": setting,
            "result": result,
            "versions": self.versions,
            "git": git_revision(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        self._lines.append(line)
        return self._results.setdefault(key, json.loads(json.dumps(result)))


def _key(setting):
    """A setting as text."""
    return json.dumps(setting, sort_keys=True)


class Split(NamedTuple):
    """Images to measure on."""

    # all that decides figures on these images, as JSON values; "images": their number
    setting: Mapping[str, Any]
    batches: Callable[[], Iterable[Mapping[str, Any]]]  # makes the batches of one pass
    # changes images on the device: `alter` of accuracy.model_step
    alter: Callable | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredWeights:
    """Accuracy and speed of weights with any reduction, each measured once."""

    vit: Pretrained  # a model of `load`
    images: Split  # the images to evaluate on, or an object with the same fields
    cache: ResultCache | None = None  # where results are stored
    clock: Any = None  # a benchmark.workloads.Clock, which measures speed
    seed: int | None = None  # seed of reducers that draw; None: that of the weights
    name: str = ""  # the name in lines on stderr; "": the reduction's
    # compiled evaluation steps, which several weights of one model may share
    programs: dict = dataclasses.field(default_factory=dict)

    def evaluate(self, reduction: Reduction) -> dict[str, Any]:
        """Figures of the model with a reduction on the images, as JSON values.

        "right" has a bit for each image: whether it is classified right.
        """
        setting = self.setting("accuracy", reduction)
        name = self.name or str(reduction)
        return self.cache.result(
            setting,
            lambda: self._evaluate(reduction),
            f"{name}, {setting['images']} images",
        )

    def speed(self, reduction: Reduction) -> dict[str, float]:
        """Speed of a reduction, measured by the clock in turns with the dense model."""
        setting = {
            "kind": "speed",
            "model": as_json(self.vit.model_with(reduction)),
            "reduction": self._text(reduction),
            **self.clock.setting(self.vit),
        }
        return self.cache.result(
            setting,
            lambda: self.clock(self.vit, reduction),
            f"the speed of {reduction}",
        )

    def setting(self, kind: str, reduction: Reduction) -> dict[str, Any]:
        """All that decides a result of this kind on the images, as JSON values."""
        return {
            "kind": kind,
            **record_of(self.vit, self.vit.model_with(reduction)),
            "reduction": self._text(reduction),
            "use": self.vit.use(reduction),
            "trained_as": str(self.vit.reduction),
            "seed": self.vit.source.seed,
            **self.images.setting,
        }

    def _text(self, reduction):
        """A reduction's text; attention is that of the model with it."""
        prop_attn = self.vit.model_with(reduction).prop_attn
        return str(dataclasses.replace(reduction, prop_attn=prop_attn))

    def _evaluate(self, reduction):
        """The result of these weights with a reduction, as JSON values."""
        vit = self.vit.with_reduction(reduction, seed=self.vit.source.seed)
        model = vit.model
        variables = parallel.replicate(vit.variables)
        batches = self.images.batches()
        result = accuracy.evaluate(self._step(model), variables, batches)
        return {
            "acc1": result.acc1,
            "acc5": result.acc5,
            "loss": result.loss,
            "images": result.images,
            "untrained_selectors": "selectors" in vit.untrained_kinds,
            **plan_facts(model),
            "right": encode_bits(result.each["right"]),
        }

    def _step(self, model):
        """The compiled evaluation of a model, kept for other weights and images."""
        alter = self.images.alter
        seed = self.seed
        if seed is None:
            seed = self.vit.source.seed
        key = model, seed, alter
        if key not in self.programs:
            full = len(self.programs) >= MAX_PROGRAMS
            while self.programs and (full or parallel.are_crowded()):
                self.programs.pop(next(iter(self.programs)))
                parallel.forget_programs()
                full = False
            self.programs[key] = accuracy.model_step(model, seed, alter=alter)
        return self.programs[key]


def plan_facts(model) -> dict[str, Any]:
    """Cost of a model: GMACs, tokens into and out of each block, tokens at the end."""
    return {
        "gmacs": model_macs(model) / 1e9,
        "tokens_per_block": [[p.attn_tokens, p.mlp_tokens] for p in model.plan],
        "tokens": model.plan[-1].mlp_tokens,
    }


def encode_bits(right) -> str:
    """bool [n] as bits in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def decode_bits(text: str, count: int) -> np.ndarray:
    """bool [count] from `encode_bits`; ValueError for another number."""
    bits = np.frombuffer(base64.b64decode(text), np.uint8)
    if len(bits) != -(-count // 8):
        raise ValueError(f"{8 * len(bits)} bits")
    return np.unpackbits(bits)[:count].astype(bool)
