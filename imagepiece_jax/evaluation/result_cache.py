"""Measured results, stored as JSON lines; `compare` writes points.jsonl.

A result's key is everything that decides it, and a key is measured once. A result is on
disk before the next measurement starts, so a stopped command resumes after it.
"""

import base64
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.files import AnyPath
from imagepiece_jax.common.progress import log
from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.evaluation.labeled_images import LabeledImages
from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import model_record
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike

POINTS_FILE_NAME = "points.jsonl"


class ResultCache:
    """Results of measurements in a folder's file, by everything that decides them.

    versions: versions of libraries and the device, stored with new results
    """

    def __init__(self, folder: AnyPath, versions: Any = None) -> None:
        self.path = pathlib.Path(folder, POINTS_FILE_NAME)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()  # makes the file, or fails here if it cannot be written
        self.versions = versions or {}
        self._results: dict[str, dict] = {}
        # A killed process leaves half a line, whose result is measured again.
        for point in files.read_json_lines(self.path):
            if isinstance(point, dict) and point.keys() >= {"setting", "result"}:
                self._results[_encode_key(point["setting"])] = point["result"]

    def measure_once(self, key: Mapping, measure: Callable, subject: str = "") -> dict:
        """Return a key's stored result, or that of `measure`, which is stored.

        Keys and results are JSON values; `subject` is for the log.
        """
        key_text = _encode_key(key)
        if key_text not in self._results:
            log.info(f"measuring {subject or 'a point'} ..")
            result = measure()
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            point = {"setting": key, "result": result, "versions": self.versions}
            point |= {"git": files.git_revision(), "time": now}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(point) + "\n")
            # As it will be read from the file: with lists for tuples.
            self._results[key_text] = json.loads(json.dumps(result))
        return self._results[key_text]


def _encode_key(key):
    return json.dumps(key, sort_keys=True)


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredWeights:
    """Accuracy or fidelity of weights, measured once per reduction."""

    pretrained: Pretrained  # of `load`
    images: LabeledImages
    cache: ResultCache | None = None  # where results are stored; None: nothing is kept
    seed: int | None = None  # for random reducers; None: the weights' seed
    name: str = ""  # for the log; "": the reduction
    # whose dense outputs others are compared with; None: accuracy is measured
    reference: "MeasuredWeights | None" = None
    control: str = ""  # of `compare_outputs`; "": images and outputs as they are
    smaller_side: int | None = None  # to which devices shrink images; None: no change
    # compiled evaluation steps; weights of one model may share the dict
    compiled_steps: dict = dataclasses.field(default_factory=dict)

    def measure_reduction(self, reduction: Reduction) -> dict[str, Any]:
        """Metrics with a reduction, as JSON values; "right" has a bit per image."""
        measure = functools.partial(self._measure_uncached, reduction)
        if self.cache is None:
            return measure()
        kind = "fidelity" if self.reference else "accuracy"
        key = self.make_result_key(kind, reduction)
        subject = f"{self.name or reduction}, {counted_noun(key['images'], 'image')}"
        return self.cache.measure_once(key, measure, subject)

    def _measure_uncached(self, reduction):
        """Metrics and token counts with a reduction, as JSON values."""
        # The weights' seed draws selectors that they lack.
        seed = self.pretrained.origin.seed
        reduced = self.pretrained.with_reduction(reduction, seed=seed)
        if self.reference is None:
            eval_result = self.measure_images(reduced)
            right_bits = encode_bits(eval_result.image_metrics["right"])
            metrics = {**eval_result.metrics, "right": right_bits}
        else:
            dense_outputs = self.reference.dense_outputs
            if self.control == compare_outputs.SHUFFLED_CONTROL:  # needs no pass
                outputs = compare_outputs.shuffle_outputs(dense_outputs)
            else:
                outputs = self.measure_images(reduced).image_metrics["outputs"]
            fidelity = compare_outputs.measure_fidelity(
                outputs, dense_outputs, reduced.config.head.has_classes
            )
            metrics = {"images": len(outputs), "fidelity": fidelity}
        metrics["untrained_selectors"] = "selectors" in reduced.untrained_kinds
        return metrics | describe_plan(reduced.model)

    @functools.cached_property
    def dense_outputs(self) -> np.ndarray:
        """Logits, or vectors of a model without a head, of the dense model."""
        # With a reference, a pass gives outputs.
        dense_weights = dataclasses.replace(self, reference=self)
        dense = self.pretrained.with_reduction(None)
        return dense_weights.measure_images(dense).image_metrics["outputs"]

    def measure_images(self, reduced: Pretrained) -> accuracy.EvalResult:
        """One pass over the images; reduced: these weights with any reduction."""
        variables = parallel.replicate(reduced.variables)
        batches = self.images.read_batches()
        # `change` takes the images of one device: batches are [devices, images, ..].
        if change := compare_outputs.IMAGE_CONTROLS.get(self.control):
            batches = (
                {**batch, "image": np.stack([*map(change, batch["image"])])}
                for batch in batches
            )
        step = self._compiled_step(reduced.model)
        return accuracy.evaluate_model(step, variables, batches)

    def make_result_key(self, kind: str, reduction: Reduction) -> dict[str, Any]:
        """Everything that decides a result, as JSON values."""
        model = self.pretrained.reduced_model(reduction)
        key = {
            "kind": kind,
            **model_record(self.pretrained, model),
            "reduction": str(dataclasses.replace(reduction, prop_attn=model.prop_attn)),
            "use": name_use(self.pretrained, reduction),
            "trained_as": str(self.pretrained.reduction),
            "seed": self.pretrained.origin.seed,  # draws missing selectors
            **self.images.facts,
        }
        if self.smaller_side:
            key["smaller"] = (self.smaller_side, self.smaller_side)  # height, width
        if self.control:
            key["change"] = self.control
        if self.seed not in (None, self.pretrained.origin.seed):
            key["reducer_seed"] = self.seed
        return key

    def _compiled_step(self, model):
        """A model's evaluation step, which compiles at its first call and is kept."""
        seed = self.pretrained.origin.seed if self.seed is None else self.seed
        step_key = model, seed, bool(self.reference)
        if step_key not in self.compiled_steps:
            # A program takes up to 2,500 memory maps, and Linux allows 65,530.
            if len(self.compiled_steps) == 16:
                self.compiled_steps.clear()
                jax.clear_caches()
            alter_images = None
            if self.smaller_side:
                alter_images = functools.partial(shrink_images, self.smaller_side)
            measure_outputs = _read_outputs if self.reference else None
            self.compiled_steps[step_key] = accuracy.make_eval_step(
                model, seed, measure_outputs, alter_images
            )
        return self.compiled_steps[step_key]


def _read_outputs(outputs, batch):
    return {"outputs": outputs.logits}  # vectors of a model without a head


def shrink_images(side: int, images: jax.Array, *_ignored: Any) -> jax.Array:
    """Shrink normalized images to `side` pixels by antialiased bicubic weights."""
    shape = (images.shape[0], side, side, images.shape[3])
    return jax.image.resize(images, shape, "cubic", antialias=True)


def name_use(pretrained: Pretrained, reduction: ReductionLike) -> str:
    """Name results with `reduction`: "as trained" or "off-the-shelf"."""
    is_same = pretrained.reduced_model(reduction).reduction == pretrained.reduction
    return "as trained" if is_same else "off-the-shelf"


def describe_plan(model: ViT) -> dict[str, Any]:
    """GMACs, tokens in attention and MLP per block, and tokens at the end."""
    token_counts = [[block.attn_tokens, block.mlp_tokens] for block in model.plan]
    return {
        "gmacs": model_macs(model) / 1e9,
        "tokens_per_block": token_counts,
        "tokens": model.plan[-1].mlp_tokens,
    }


def encode_bits(is_right: Bool[np.ndarray, " images"]) -> str:
    """Encode bits in base64."""
    return base64.b64encode(np.packbits(is_right).tobytes()).decode()


def decode_bits(encoded_bits: str, count: int) -> Bool[np.ndarray, " {count}"]:
    """Decode the bits of `encode_bits`."""
    packed_bits = np.frombuffer(base64.b64decode(encoded_bits), np.uint8)
    return np.unpackbits(packed_bits)[:count].astype(bool)
