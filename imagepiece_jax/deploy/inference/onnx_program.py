"""An exported ONNX file in onnxruntime, as the JSON beside it describes it."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.machine import cores
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.deploy.inference.program_facts import facts_file
from imagepiece_jax.deploy.weights.hub_configs import guarded
from imagepiece_jax.errors import InputError
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import create
from imagepiece_jax.models.pretrained import Pretrained, Source

KIND = "ONNX file"


class OnnxProgram:
    """A program of `export`: called with uint8 images, it returns logits.

    path: of the .onnx file, beside its JSON
    Raises InputError for a file that onnxruntime or its JSON does not explain.
    """

    def __init__(self, path: str | os.PathLike):
        extras.check("an ONNX file", "onnxruntime")
        import onnxruntime

        self.path = pathlib.Path(path).expanduser()
        self.path.stat()  # FileNotFoundError, of the file that was named
        if not facts_file(self.path).exists():
            raise InputError(
                f"{KIND} {self.path} lacks {facts_file(self.path).name}, which export "
                "writes beside it"
            )
        self.facts = read_json(facts_file(self.path))
        # The model without its weights: what it is, and how its images are prepared.
        self.vit = guarded(facts_file(self.path), _described, self.facts, self.path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        providers = onnxruntime.get_available_providers()
        try:
            self.session = onnxruntime.InferenceSession(
                str(self.path), options, providers=providers
            )
        except Exception as error:  # its errors have no common class
            reason = str(error).partition("\n")[0]
            raise InputError(f"{KIND} {self.path}: {reason}") from error
        self.image = self.facts["input"]
        self.outputs = [output.name for output in self.session.get_outputs()]

    @property
    def batch_size(self) -> int | None:
        """Images in a call; None: any number."""
        size = self.image["shape"][0]
        return size if isinstance(size, int) else None

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [B, H, W, 3] as the file takes images."""
        images = np.asarray(pixels)
        if self.image["dtype"] != "uint8":
            config = self.vit.config
            images = np.asarray(normalize(images, config.mean, config.std))
        if self.image["shape"][1] == 3:  # channels first
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return images

    def run(self, images: np.ndarray, outputs: list[str] | None = None) -> list:
        """The outputs of `prepared` images; None: all of them."""
        return self.session.run(outputs, {self.image["name"]: images})

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Logits of images. uint8 [B, H, W, 3] -> [B, classes]."""
        if "logits" not in self.outputs:
            names = ", ".join(self.outputs)
            raise InputError(f"{KIND} {self.path} returns {names}, and no logits")
        count = len(pixels)
        size = self.batch_size or count
        rows = []
        for start in range(0, count, size):
            part = np.asarray(pixels[start : start + size])
            missing = size - len(part)
            part = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0)))
            rows += self.run(self.prepared(part), ["logits"])
        return np.concatenate(rows)[:count]


def _described(facts, path):
    """The Pretrained that a file's facts describe, without weights."""
    fields = _without_names(facts["model"])
    arch = Architecture(**fields.pop("arch"))
    images = dict(facts["preprocessing"])
    images.pop("resized", None)
    images = Preprocessing(tuple(images.pop("image_size")), **images)
    config = ViTConfig(**fields | {"arch": arch, "preprocessing": images})
    return Pretrained(
        create(config, facts["method"]),
        {"params": {}},
        class_names=facts["class_names"],
        source=Source(path=path, kind=KIND, name=path.name),
    )


def _without_names(record: Any) -> Any:
    """A record of `as_json` without the names of its dataclasses."""
    if not isinstance(record, Mapping):
        return record
    return {k: _without_names(value) for k, value in record.items() if k != "is"}
