"""Exported ONNX files in onnxruntime, described by the JSON beside them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.common.files import read_json
from imagepiece_jax.common.machine import available_cores
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.program_facts import FACTS, digest_of, facts_file
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import build_model
from imagepiece_jax.models.pretrained import Pretrained, WeightsSource
from imagepiece_jax.weights.config_json import guarded

KIND = "ONNX file"
FIRST = "1.17"  # of onnxruntime's versions, that has opset 20, and so its Gelu


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class OnnxProgram(Pretrained):
    """An exported program: called with uint8 images, it returns logits."""

    session: Any  # an onnxruntime.InferenceSession
    input_name: str
    input_dtype: str
    batch_size: int | None  # images per call; None: any number
    channels_first: bool
    recovered_name: str | None  # the recovered variant with the file's values

    @property
    def variables(self):
        """Raises InputError, because the weights are in the file."""
        raise InputError(
            f"{self.source.title} is an exported program; only evaluate and benchmark "
            "take it, so load the original weights"
        )

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """Prepare uint8 [B, H, W, 3] as the file's input."""
        images = np.asarray(pixels)
        if self.input_dtype != "uint8":
            images = np.asarray(normalize(images, self.config.mean, self.config.std))
        if self.channels_first:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return images

    def run(self, images: np.ndarray, outputs: list[str] | None = None) -> list:
        """Run `prepared` images; return the named outputs (None: all)."""
        return self.session.run(outputs, {self.input_name: images})

    @property
    def output_names(self) -> list[str]:
        return [output.name for output in self.session.get_outputs()]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Logits of images. uint8 [B, H, W, 3] -> [B, classes]."""
        names = self.output_names
        if "logits" not in names:
            title = self.source.title
            raise InputError(f"{title} returns {', '.join(names)}, and no logits")
        return self.output(pixels, "logits")

    def output(
        self, pixels: np.ndarray, name: str, size: int | None = None
    ) -> np.ndarray:
        """The named output for images. uint8 [B, H, W, 3] -> [B, ..].

        size: images per call of a file that takes any number; None: all
        """
        rows = []
        for images in self.parts(pixels, size):
            rows += self.run(images, [name])
        return np.concatenate(rows)[: len(pixels)]

    def parts(
        self, pixels: np.ndarray, size: int | None = None
    ) -> Iterator[np.ndarray]:
        """Yield images `prepared` in batches; see `output`."""
        size = self.batch_size or size or len(pixels)
        for start in range(0, len(pixels), size):
            part = np.asarray(pixels[start : start + size])
            # A fixed batch size pads the last part.
            missing = size - len(part) if self.batch_size else 0
            part = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0)), "edge")
            yield self.prepared(part)


def open_file(path: str | os.PathLike, threads: int | None = None) -> OnnxProgram:
    """Open an .onnx file, described by its JSON, as a program.

    threads: of the CPU; None: all devices, and as many threads as cores
    Raises InputError if onnxruntime cannot load the file, or export's JSON is missing.
    """
    extras.check_installed("an ONNX file", "onnxruntime")
    import onnxruntime

    path = pathlib.Path(path).expanduser()
    path.stat()  # FileNotFoundError for the file itself
    file = facts_file(path)
    facts = read_json(file) if file.exists() else {}
    if not FACTS <= {*facts}:
        raise InputError(
            f"{KIND} {path} lacks the {file.name} that export writes beside it"
        )
    if facts.get("digest") != digest_of(path):
        raise InputError(
            f"{KIND} {path} and {file.name} are not from the same export, or from an "
            "earlier version; export the model again"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    providers = onnxruntime.get_available_providers()
    if threads is not None:
        providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no class
        reason = str(error).partition("\n")[0]
        version = onnxruntime.__version__
        if [*map(int, version.split(".")[:2])] < [*map(int, FIRST.split("."))]:
            reason = (
                f"onnxruntime {version} lacks Gelu of opset {facts['opset']}, which "
                f"{FIRST} has; install a newer one"
            )
        raise InputError(f"{KIND} {path}: {reason}") from error
    return guarded(file, _program, path, facts, session)


def _program(path, facts, session):
    fields = _without_names(facts["model"])
    arch = Architecture(**fields.pop("arch"))
    images = dict(facts["preprocessing"])
    images.pop("resized", None)  # for readers: no field of Preprocessing
    images = Preprocessing(tuple(images.pop("image_size")), **images)
    config = ViTConfig(**fields | {"arch": arch, "preprocessing": images})
    batch_size, channels, *_ = facts["input"]["shape"]
    dtype = np.dtype(facts["dtype"])
    return OnnxProgram(
        model=build_model(config, facts["method"]).with_execution(dtype=dtype),
        dense_variables={"params": {}},
        class_names=facts["class_names"],
        source=WeightsSource(path=path, kind=KIND, name=path.name),
        session=session,
        input_name=facts["input"]["name"],
        input_dtype=facts["input"]["dtype"],
        batch_size=batch_size if isinstance(batch_size, int) else None,
        channels_first=channels == 3,
        recovered_name=facts["recovered"],
    )


def _without_names(record: Any) -> Any:
    """Remove the dataclass names from a record of `as_json`."""
    if not isinstance(record, Mapping):
        return record
    return {k: _without_names(value) for k, value in record.items() if k != "is"}
