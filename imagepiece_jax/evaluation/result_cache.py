"""Measured results, stored as JSON lines; `compare` writes points.jsonl.

A result's key is everything that decides it, and a key is measured once. A result is on
disk before the next measurement starts, so a stopped command resumes after it.
"""

import base64
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool

from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.progress import log
from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.inference.compare_outputs import measure_fidelity, shuffle_outputs
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import model_record
from imagepiece_jax.models.vit import Outputs, ViT
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike

POINTS_FILE_NAME = "points.jsonl"


def read_points(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the objects in a ResultCache's file; [] without a file."""
    try:
        # The last piece is empty, or a line that a killed process left unfinished.
        *lines, _ = pathlib.Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    points = []
    for number, line in enumerate(lines, start=1):
        try:
            points.append(dict(json.loads(line)))
        except (TypeError, ValueError) as error:
            message = f"{path}: line {number} is not a JSON object ({error})"
            raise InputError(message) from error
    return points


class ResultCache(contextlib.ExitStack):
    """JSON objects in a file, one per line; its folder is locked until `close`.

    folder: made if missing
    versions: versions of libraries and the device, stored with new results
    Raises InputError if another process has the folder, or a line is not JSON.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        versions: dict[str, Any] | None = None,
        name: str = POINTS_FILE_NAME,
    ) -> None:
        super().__init__()
        self.versions = versions or {}
        self._results: dict[str, dict] = {}
        path = pathlib.Path(folder, name)
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.locked_folder("folder", folder))
            self._file = stack.enter_context(open(path, "ab", buffering=0))
            for point in read_points(path):
                if point.keys() >= {"setting", "result"}:
                    self._results[_encode_key(point["setting"])] = point["result"]
            # Cut off an unfinished last line, which a killed process left.
            os.ftruncate(self._file.fileno(), path.read_bytes().rfind(b"\n") + 1)
            self.push(stack.pop_all())  # closed with this object

    def append(self, line: Mapping[str, Any]) -> None:
        """Write an object as the last line."""
        self._file.write((json.dumps(line) + "\n").encode())

    def measure_once(
        self,
        key: Mapping[str, Any],
        measure: Callable[[], dict],
        subject: str = "a point",
    ) -> dict:
        """Return a key's stored result, or measure and store it.

        key: everything that decides the result, as JSON values
        measure: returns a dict of JSON values
        subject: of the measurement, for the log
        """
        key_text = _encode_key(key)
        if key_text in self._results:
            return self._results[key_text]
        start_time = time.monotonic()
        log.info(f"measuring {subject} ..")
        try:
            result = measure()
        finally:
            seconds = time.monotonic() - start_time
            log.info(f"took {seconds:.0f} s")
        point = {
            "setting": key,
            "result": result,
            "versions": self.versions,
            "git": files.git_revision(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        self.append(point)
        return self._results.setdefault(key_text, json.loads(json.dumps(result)))


def _encode_key(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


class MeasuredImages(NamedTuple):
    """Images to measure on."""

    # everything that decides metrics on these images, as JSON; "images" is their count
    facts: Mapping[str, Any]
    read_batches: Callable[[], Iterable[Mapping[str, Any]]]  # one pass's batches
    alter_images: accuracy.AlterImages | None = None  # on the device


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredWeights:
    """Accuracy or fidelity of weights, measured once per reduction."""

    vit: Pretrained  # a model of `load`
    images: MeasuredImages  # or an object with the same fields
    cache: ResultCache | None = None  # where results are stored; None: nothing is kept
    seed: int | None = None  # for random reducers; None: the weights' seed
    name: str = ""  # for the log; "": the reduction
    # makes the dense model's outputs, for fidelity instead of accuracy
    dense_reference: Callable[[], np.ndarray] | None = None
    is_shuffled: bool = False  # the dense model's outputs in another order: chance
    # compiled evaluation steps; weights of one model may share the dict
    compiled_steps: dict = dataclasses.field(default_factory=dict)

    def measure_reduction(self, reduction: Reduction) -> dict[str, Any]:
        """Metrics with a reduction, as JSON values; "right" has a bit per image."""
        if self.cache is None:
            return self._measure_uncached(reduction)
        kind = "fidelity" if self.dense_reference else "accuracy"
        key = self.make_result_key(kind, reduction)
        counted_images = counted_noun(key["images"], "image")
        subject = f"{self.name or reduction}, {counted_images}"
        measure = functools.partial(self._measure_uncached, reduction)
        return self.cache.measure_once(key, measure, subject)

    def _measure_uncached(self, reduction: Reduction) -> dict[str, Any]:
        """Metrics and token counts with a reduction, as JSON values."""
        vit = self.vit.with_reduction(reduction, seed=self.vit.origin.seed)
        if self.dense_reference:
            dense_outputs = self.dense_reference()
            if self.is_shuffled:
                outputs = shuffle_outputs(dense_outputs)
            else:
                outputs = self.measure_images(vit).image_metrics["outputs"]
            has_classes = vit.config.head.has_classes
            fidelity = measure_fidelity(outputs, dense_outputs, has_classes)
            metrics = {"images": len(outputs), "fidelity": fidelity}
        else:
            eval_result = self.measure_images(vit)
            right_bits = encode_bits(eval_result.image_metrics["right"])
            metrics = {**eval_result.metrics, "right": right_bits}
        return {
            **metrics,
            "untrained_selectors": "selectors" in vit.untrained_kinds,
            **describe_plan(vit.model),
        }

    def measure_images(self, vit: Pretrained) -> accuracy.EvalResult:
        """One pass over the images; vit: these weights with any reduction."""
        variables = parallel.replicate(vit.variables)
        batches = self.images.read_batches()
        return accuracy.evaluate_model(
            self._compiled_step(vit.model), variables, batches
        )

    def make_result_key(self, kind: str, reduction: Reduction) -> dict[str, Any]:
        """Everything that decides a result, as JSON values."""
        key = {
            "kind": kind,
            **model_record(self.vit, self.vit.reduced_model(reduction)),
            "reduction": self.format_reduction(reduction),
            "use": name_use(self.vit, reduction),
            "trained_as": str(self.vit.reduction),
            "seed": self.vit.origin.seed,  # draws missing selectors
            **self.images.facts,
        }
        if self.seed not in (None, self.vit.origin.seed):
            key["reducer_seed"] = self.seed
        return key

    def format_reduction(self, reduction: Reduction) -> str:
        """Reduction as text, with its model's attention."""
        prop_attn = self.vit.reduced_model(reduction).prop_attn
        return str(dataclasses.replace(reduction, prop_attn=prop_attn))

    def _compiled_step(self, model: ViT) -> accuracy.EvalStep:
        """A model's evaluation step, which compiles at its first call and is kept."""
        alter_images = self.images.alter_images
        seed = self.vit.origin.seed if self.seed is None else self.seed
        measure_outputs = _take_logits if self.dense_reference else None
        step_key = model, seed, alter_images, measure_outputs
        if step_key not in self.compiled_steps:
            # A program takes up to 2,500 of 65,530 memory maps.
            if len(self.compiled_steps) == 16:
                self.compiled_steps.clear()
                jax.clear_caches()
            self.compiled_steps[step_key] = accuracy.make_eval_step(
                model, seed, measure_outputs=measure_outputs, alter_images=alter_images
            )
        return self.compiled_steps[step_key]


def _take_logits(outputs: Outputs, batch: Mapping[str, Array]) -> dict[str, Array]:
    return {"outputs": outputs.logits}  # vectors of a model without a head


def name_use(vit: Pretrained, reduction: ReductionLike) -> str:
    """Name results with `reduction`: "as trained" or "off-the-shelf"."""
    is_same = vit.reduced_model(reduction).reduction == vit.reduction
    return "as trained" if is_same else "off-the-shelf"


def describe_plan(model: ViT) -> dict[str, Any]:
    """GMACs, tokens in attention and MLP per block, and tokens at the end."""
    return {
        "gmacs": model_macs(model) / 1e9,
        "tokens_per_block": [[b.attn_tokens, b.mlp_tokens] for b in model.plan],
        "tokens": model.plan[-1].mlp_tokens,
    }


def encode_bits(is_right: Bool[np.ndarray, " images"]) -> str:
    """Encode bits in base64."""
    return base64.b64encode(np.packbits(is_right).tobytes()).decode()


def decode_bits(encoded_bits: str, count: int) -> Bool[np.ndarray, " {count}"]:
    """Decode the bits of `encode_bits`; ValueError for another length."""
    packed_bits = np.frombuffer(base64.b64decode(encoded_bits), np.uint8)
    if len(packed_bits) != -(-count // 8):
        raise ValueError(f"{8 * len(packed_bits)} bits")
    return np.unpackbits(packed_bits)[:count].astype(bool)
