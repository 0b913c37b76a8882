"""Exported ONNX files in onnxruntime, described by the JSON beside them."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from imagepiece_jax.common import extras
from imagepiece_jax.common.machine import available_cores
from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters.program_facts import facts_file, read_program_facts
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import build_model
from imagepiece_jax.models.origin import Origin
from imagepiece_jax.models.program import ExportedProgram
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.weights.description import parse_content

PROGRAM_KIND = "ONNX file"
OLDEST_ONNXRUNTIME = (1, 17)  # the first with opset 20, and so its Gelu


@dataclasses.dataclass(eq=False, kw_only=True)
class OnnxProgram(ExportedProgram):
    """An `ExportedProgram` in onnxruntime."""

    path: pathlib.Path
    model: ViT
    config: ViTConfig
    class_names: tuple[str | None, ...] | None = None
    origin: Origin
    facts: Mapping[str, Any]  # the JSON beside the file
    session: Any  # an onnxruntime.InferenceSession
    input_name: str
    input_dtype: str
    batch_size: int | None  # images per call; None: any number
    channels_first: bool

    def __call__(
        self, pixels: np.ndarray, name: str = "logits", batch_size: int | None = None
    ) -> np.ndarray:
        """Like `ExportedProgram.__call__`."""
        output_names = [output.name for output in self.session.get_outputs()]
        if name not in output_names:
            title = self.origin.title
            raise InputError(
                f"{title} returns {', '.join(output_names)}, and no {name}"
            )
        output_batches = []
        for images in self.prepared_batches(pixels, batch_size):
            output_batches += self.session.run([name], {self.input_name: images})
        return np.concatenate(output_batches)[: len(pixels)]

    def prepared_call(self, pixels: np.ndarray) -> Callable[[], list[np.ndarray]]:
        """Like `ExportedProgram.prepared_call`, for all outputs."""
        images = {self.input_name: self.prepared_images(pixels)}
        return functools.partial(self.session.run, None, images)

    def prepared_images(self, pixels: np.ndarray) -> np.ndarray:
        """Prepare uint8 [B, H, W, 3] as the file's input."""
        images = np.asarray(pixels)
        if self.input_dtype != "uint8":
            images = np.asarray(normalize(images, self.config.mean, self.config.std))
        if self.channels_first:
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return images

    def prepared_batches(
        self, pixels: np.ndarray, batch_size: int | None = None
    ) -> Iterator[np.ndarray]:
        """Yield batches by `prepared_images`; see `ExportedProgram.__call__`."""
        batch_size = self.batch_size or batch_size or len(pixels)
        for start in range(0, len(pixels), batch_size):
            batch = np.asarray(pixels[start : start + batch_size])
            # A fixed batch size pads the last batch.
            num_missing = batch_size - len(batch) if self.batch_size else 0
            batch = np.pad(batch, ((0, num_missing), (0, 0), (0, 0), (0, 0)), "edge")
            yield self.prepared_images(batch)


def open_onnx(path: str | os.PathLike, threads: int | None = None) -> OnnxProgram:
    """Open an .onnx file, as `open_program` does."""
    extras.check_installed("an ONNX file", "onnxruntime")
    path = pathlib.Path(path).expanduser()
    path.stat()  # FileNotFoundError for the file itself
    facts = read_program_facts(path, PROGRAM_KIND)
    session = open_session(path, threads, facts.get("opset"))
    return parse_content(facts_file(path), program_from_facts, path, facts, session)


def open_session(path: pathlib.Path, threads: int | None, opset: int | None) -> Any:
    """Open an .onnx file in onnxruntime, as an InferenceSession.

    threads: as for `open_program`
    opset: the file's, for the message of an old onnxruntime
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    providers = onnxruntime.get_available_providers()
    if threads is not None:
        providers = ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no class
        reason = str(error).partition("\n")[0]
        version = onnxruntime.__version__
        if tuple(map(int, version.split(".")[:2])) < OLDEST_ONNXRUNTIME:
            reason = (
                f"onnxruntime {version} lacks Gelu of opset {opset}, which "
                f"{'.'.join(map(str, OLDEST_ONNXRUNTIME))} has; install a newer one"
            )
        raise InputError(f"{PROGRAM_KIND} {path}: {reason}") from error


def program_from_facts(
    path: pathlib.Path, facts: Mapping[str, Any], session: Any
) -> OnnxProgram:
    """Make the program of a session from the JSON beside its file."""
    config = config_from_facts(facts)
    batch_size, second_side, *_ = facts["input"]["shape"]
    dtype = np.dtype(facts["dtype"])
    model = build_model(config, facts["method"])
    class_names = facts["class_names"]
    if class_names is not None:
        class_names = checked_names(class_names, config.num_classes)
    return OnnxProgram(
        path=path,
        model=model.with_execution(dtype=dtype, attention_impl="onnxruntime"),
        config=config,
        class_names=class_names,
        origin=Origin(path=path, kind=PROGRAM_KIND, name=path.name),
        facts=facts,
        session=session,
        input_name=facts["input"]["name"],
        input_dtype=facts["input"]["dtype"],
        batch_size=batch_size if isinstance(batch_size, int) else None,
        channels_first=second_side == 3,
    )


def config_from_facts(facts: Mapping[str, Any]) -> ViTConfig:
    """Make a model's config from the JSON beside its file."""
    fields = _without_type_names(facts["model"])
    fields["arch"] = Architecture(**fields["arch"])
    preprocessing = dict(facts["preprocessing"])
    preprocessing.pop("resized", None)  # for readers: no field of Preprocessing
    image_size = tuple(preprocessing.pop("image_size"))
    fields["preprocessing"] = Preprocessing(image_size, **preprocessing)
    return ViTConfig(**fields)


def _without_type_names(record: Any) -> Any:
    """Remove the dataclass names from a record of `as_json`."""
    if not isinstance(record, Mapping):
        return record
    return {k: _without_type_names(value) for k, value in record.items() if k != "is"}
