"""Exported files in their runtimes, described by the JSON beside them."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.data.class_names import checked_names
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import program_facts
from imagepiece_jax.models.architecture import Architecture
from imagepiece_jax.models.config import ViTConfig
from imagepiece_jax.models.create import build_model
from imagepiece_jax.models.pretrained import Origin
from imagepiece_jax.models.program import ExportedProgram, import_format
from imagepiece_jax.models.vit import ViT
from imagepiece_jax.weights.folder_files import content_errors

# (prepared images, names) -> a function that computes these outputs; None: all
MakeCall = Callable[..., Callable[[], Sequence[np.ndarray]]]


@dataclasses.dataclass(eq=False, kw_only=True)
class FileProgram(ExportedProgram):
    """An `ExportedProgram` of a file."""

    path: pathlib.Path
    model: ViT
    config: ViTConfig
    class_names: tuple[str | None, ...] | None = None
    origin: Origin
    facts: Mapping[str, Any]  # the JSON beside the file
    make_call: MakeCall  # by the format's runtime
    batch_size: int | None  # images per call; None: any number

    def __call__(
        self, pixels: np.ndarray, name: str = "logits", batch_size: int | None = None
    ) -> np.ndarray:
        names = self.output_names
        if name not in names:
            raise InputError(f"{self.origin.title} has {names}, and no {name}")
        output_batches = []
        for images in self.prepared_batches(pixels, batch_size):
            output_batches += self.make_call(images, [name])()
        # A fixed batch size has padded the last batch.
        return np.concatenate(output_batches)[: len(pixels)]

    @property
    def output_names(self) -> list[str]:
        # The facts have one output, or a list.
        return [output["name"] for output in np.ravel(self.facts["output"])]

    def prepared_call(self, pixels: np.ndarray) -> Callable[[], Sequence[np.ndarray]]:
        return self.make_call(self.prepared_images(pixels), None)

    def prepared_images(self, pixels: np.ndarray) -> np.ndarray:
        """Prepare uint8 [B, H, W, 3] as the file's input."""
        images = np.asarray(pixels)
        input_facts = self.facts["input"]
        if input_facts["dtype"] != "uint8":
            images = np.asarray(normalize(images, self.config.mean, self.config.std))
        if input_facts["shape"][1] == 3:  # [B, 3, H, W]
            images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return images

    def prepared_batches(
        self, pixels: np.ndarray, batch_size: int | None = None
    ) -> Iterator[np.ndarray]:
        """Yield batches of pixels, [B, H, W, 3], by `prepared_images`."""
        batch_size = self.batch_size or batch_size or len(pixels)
        for start in range(0, len(pixels), batch_size):
            batch_pixels = np.asarray(pixels[start : start + batch_size])
            # A fixed batch size repeats the last image: black ones would extend the
            # ranges that calibrate int8.
            num_missing = batch_size - len(batch_pixels) if self.batch_size else 0
            widths = ((0, num_missing), (0, 0), (0, 0), (0, 0))  # [B, H, W, 3]
            yield self.prepared_images(np.pad(batch_pixels, widths, "edge"))


def open_described(
    path: str | os.PathLike,
    open_runtime: Callable[[pathlib.Path, Mapping[str, Any]], Any],
) -> FileProgram:
    """Open a file with the JSON beside it, which has its facts.

    open_runtime: (file, facts) -> a MakeCall of the format's runtime
    Raises InputError for a file without JSON, or with another graph's.
    """
    path = pathlib.Path(path).expanduser()
    path.stat()  # FileNotFoundError for the file itself
    file_format = import_format(path)
    facts = program_facts.read_facts(path)
    json_file = program_facts.facts_file(path)
    if facts.get("digest") != program_facts.graph_digest(path):
        raise InputError(
            f"{file_format.PROGRAM_KIND} {path} has no {json_file.name} of the same "
            "export, or of an earlier version; export the model again"
        )
    with content_errors(json_file):
        make_call = open_runtime(path, facts)
        config_fields: dict[str, Any] = _without_type_names(facts["model"])
        arch = Architecture(**config_fields.pop("arch"))
        sizes_and_crop = dict(facts["preprocessing"])
        sizes_and_crop.pop("resized", None)  # for readers: no field of Preprocessing
        image_size = tuple(sizes_and_crop.pop("image_size"))  # JSON has a list
        config_fields["preprocessing"] = Preprocessing(image_size, **sizes_and_crop)
        config = ViTConfig(arch=arch, **config_fields)
        model = build_model(config, facts["method"]).with_execution(
            dtype=np.dtype(facts["dtype"]), attention_impl=file_format.RUNTIME_TITLE
        )
        class_names = facts["class_names"]
        if class_names is not None:
            class_names = checked_names(class_names, config.num_classes)
        num_images = facts["input"]["shape"][0]  # a text if any number is taken
        return FileProgram(
            path=path,
            model=model,
            config=config,
            class_names=class_names,
            origin=Origin(path=path, kind=file_format.PROGRAM_KIND, name=path.name),
            facts=facts,
            make_call=make_call,
            batch_size=num_images if isinstance(num_images, int) else None,
        )


def _without_type_names(record):
    # "is" names a record's type, for other readers of the JSON.
    if not isinstance(record, Mapping):
        return record
    fields = [field for field in record if field != "is"]
    return {field: _without_type_names(record[field]) for field in fields}
