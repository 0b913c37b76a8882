"""Measured results, stored as JSON lines; `compare` writes points.jsonl.

A setting is the key: everything that decides a result. It is measured once. A result is
on disk before the next measurement starts, so a stopped command resumes after it.
"""

import base64
import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.progress import log
from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation import accuracy
from imagepiece_jax.inference.compare_outputs import (
    Annotations,
    measure_fidelity,
    shuffle_outputs,
)
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.models.record import model_record
from imagepiece_jax.reduction.reduction import Reduction, ReductionLike

POINTS_FILE_NAME = "points.jsonl"


def read_points(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the objects in a ResultCache's file; [] without a file."""
    try:
        # The last piece is empty, or a line that a killed process left unfinished.
        *lines, _ = pathlib.Path(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    objects = []
    for number, line in enumerate(lines, start=1):
        try:
            objects.append(dict(json.loads(line)))
        except (TypeError, ValueError) as error:
            text = f"{path}: line {number} is not a JSON object ({error})"
            raise InputError(text) from error
    return objects


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
    ):
        super().__init__()
        self.versions = versions or {}
        self._results = {}
        path = pathlib.Path(folder, name)
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.locked_folder("folder", folder))
            self._file = stack.enter_context(open(path, "ab", buffering=0))
            for line in read_points(path):
                if line.keys() >= {"setting", "result"}:
                    self._results[_settings_text(line["setting"])] = line["result"]
            # Cut off an unfinished last line, which a killed process left.
            os.ftruncate(self._file.fileno(), path.read_bytes().rfind(b"\n") + 1)
            self.push(stack.pop_all())

    def append(self, value: Mapping[str, Any]):
        """Write an object as the last line, to disk. Raises RunError without room."""
        files.append_line(self._file, json.dumps(value))
        with files.where_supported():
            os.fsync(self._file.fileno())

    def result(
        self, setting: dict, measure: Callable[[], dict], task: str = "a point"
    ) -> dict:
        """Return a setting's stored result, or measure and store it.

        setting: everything that decides the result, as JSON values
        measure: returns a dict of JSON values
        task: subject of the measurement, for the log
        """
        key = _settings_text(setting)
        if key in self._results:
            return self._results[key]
        began = time.monotonic()
        log.info(f"measuring {task} ..")
        try:
            result = measure()
        finally:
            seconds = time.monotonic() - began
            log.info(f"took {seconds:.0f} s")
        line = {
            "setting": setting,
            "result": result,
            "versions": self.versions,
            "git": files.git_revision(),
            "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        self.append(line)
        return self._results.setdefault(key, json.loads(json.dumps(result)))


def _settings_text(setting):
    return json.dumps(setting, sort_keys=True)


class MeasuredImages(NamedTuple):
    """Images to measure on."""

    # everything that decides figures on these images, as JSON; "images" is their count
    setting: Mapping[str, Any]
    batches: Callable[[], Iterable[Mapping[str, Any]]]  # makes one pass's batches
    # change of images on the device, as `alter` of accuracy.model_step
    alter: Callable | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class MeasuredWeights:
    """Accuracy or fidelity of weights, measured once per reduction."""

    vit: Pretrained  # a model of `load`
    images: (
        MeasuredImages  # the images to evaluate on, or an object with the same fields
    )
    cache: ResultCache | None = None  # where results are stored
    seed: int | None = None  # for random reducers; None: the weights' seed
    name: str = ""  # for the log; "": the reduction
    # makes the dense model's outputs [images, D] and what these images show, for
    # fidelity instead of accuracy
    reference: Callable[[], tuple[np.ndarray, Annotations]] | None = None
    is_shuffled: bool = False  # the dense model's outputs in another order: chance
    # compiled evaluation steps; weights of one model may share the dict
    programs: dict = dataclasses.field(default_factory=dict)

    def evaluate(self, reduction: Reduction) -> dict[str, Any]:
        """Figures with a reduction, as JSON values; "right" has a bit per image."""

        def measure():
            vit = self.vit.with_reduction(reduction, seed=self.vit.origin.seed)
            if self.reference:
                dense, known = self.reference()
                if self.is_shuffled:
                    outputs = shuffle_outputs(dense)
                else:
                    outputs = self.run(vit).per_image["outputs"]
                near = measure_fidelity(
                    outputs, dense, vit.config.head.has_classes, known
                )
                figures = {"images": len(outputs), "fidelity": near}
            else:
                result = self.run(vit)
                right = encode_bits(result.per_image["right"])
                figures = result.figures | {"right": right}
            return {
                **figures,
                "untrained_selectors": "selectors" in vit.untrained,
                **plan_facts(vit.model),
            }

        task = "fidelity" if self.reference else "accuracy"
        setting = self.setting(task, reduction)
        count = counted_noun(setting["images"], "image")
        subject = f"{self.name or reduction}, {count}"
        return self.cache.result(setting, measure, subject)

    def run(self, vit: Pretrained) -> accuracy.EvalResult:
        """One pass over the images; vit: these weights with any reduction."""
        variables = parallel.replicate(vit.variables)
        batches = self.images.batches()
        return accuracy.evaluate_model(self._step(vit.model), variables, batches)

    def setting(self, task: str, reduction: Reduction) -> dict[str, Any]:
        """Everything that decides a result, as JSON values."""
        setting = {
            "kind": task,
            **model_record(self.vit, self.vit.model_with(reduction)),
            "reduction": self.text(reduction),
            "use": name_use(self.vit, reduction),
            "trained_as": str(self.vit.reduction),
            "seed": self.vit.origin.seed,  # draws missing selectors
            **self.images.setting,
        }
        if self.seed not in (None, self.vit.origin.seed):
            setting["reducer_seed"] = self.seed
        return setting

    def text(self, reduction: Reduction) -> str:
        """Reduction as text, with its model's attention."""
        prop_attn = self.vit.model_with(reduction).prop_attn
        return str(dataclasses.replace(reduction, prop_attn=prop_attn))

    def _step(self, model):
        """Compiled evaluation of a model, kept for other weights and images."""
        alter = self.images.alter
        seed = self.seed
        if seed is None:
            seed = self.vit.origin.seed
        measure = self.reference and _logit_rows
        key = model, seed, alter, measure
        if key not in self.programs:
            while self.programs and parallel.are_memory_maps_scarce():
                self.programs.pop(next(iter(self.programs)))
                parallel.forget_programs()
            self.programs[key] = accuracy.model_step(
                model, seed, measure=measure, alter=alter
            )
        return self.programs[key]


def _logit_rows(outputs, batch):
    return {"outputs": outputs.logits}  # vectors of a model without a head


def name_use(vit: Pretrained, reduction: ReductionLike) -> str:
    """Name results with `reduction`: "as trained" or "off-the-shelf"."""
    same = vit.model_with(reduction).reduction == vit.reduction
    return "as trained" if same else "off-the-shelf"


def plan_facts(model) -> dict[str, Any]:
    """GMACs, tokens in attention and MLP per block, and tokens at the end."""
    return {
        "gmacs": model_macs(model) / 1e9,
        "tokens_per_block": [[p.attn_tokens, p.mlp_tokens] for p in model.plan],
        "tokens": model.plan[-1].mlp_tokens,
    }


def encode_bits(right) -> str:
    """Encode bool [n] as bits in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def decode_bits(text: str, count: int) -> np.ndarray:
    """Decode bool [count] from `encode_bits`; ValueError for another length."""
    bits = np.frombuffer(base64.b64decode(text), np.uint8)
    if len(bits) != -(-count // 8):
        raise ValueError(f"{8 * len(bits)} bits")
    return np.unpackbits(bits)[:count].astype(bool)
