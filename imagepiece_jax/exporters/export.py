"""Export of a trained model: a file that runs elsewhere, and JSON that describes it."""

import contextlib
import dataclasses
import os
import pathlib
import re
import tempfile
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from imagepiece_jax.common import extras, files, parallel
from imagepiece_jax.common.checks import check_choice, check_range
from imagepiece_jax.common.progress import announced_work
from imagepiece_jax.errors import InputError, RunError
from imagepiece_jax.exporters import (
    card,
    largest_numbers,
    program_facts,
    self_test,
    tower,
)
from imagepiece_jax.exporters.program_interface import ProgramInterface
from imagepiece_jax.inference.optimize import check_gelu
from imagepiece_jax.models import program
from imagepiece_jax.models.create import make_execution
from imagepiece_jax.models.pretrained import Pretrained, check_loaded


@dataclasses.dataclass(eq=False)
class Export:
    """The arguments of `export`, checked, and what follows from them."""

    pretrained: Pretrained  # with plain attention, which has a graph, once it is made
    out: str | os.PathLike
    batch_size: int | None = None
    gelu: str | None = None
    pixels: bool = False
    output: str = "logits"
    layout: str | None = None
    dtype: str = "float32"
    images: Any = None

    def __post_init__(self) -> None:
        check_loaded(self.pretrained)
        model = self.pretrained.model
        if self.batch_size is not None:
            check_range("batch_size", self.batch_size, 1, whole=True)
        check_gelu(model, self.gelu)
        check_choice("dtype", self.dtype, tower.DTYPE_SUFFIXES)
        if self.layout is not None:
            check_choice("layout", self.layout, tower.PROGRAM_LAYOUTS)
            check_choice("output (the layout decides it)", self.output, ["logits"])
        if self.dtype == "int8" and self.images is None:
            raise InputError("dtype is 'int8', which needs --images to calibrate")
        for block_plan in model.plan:
            # A step that keeps all tokens has no counts, and draws nothing.
            if block_plan.step and block_plan.counts:
                if block_plan.step.reducer.draws_random(block_plan.counts, train=False):
                    reduction = self.pretrained.typed_reduction
                    reason = "which draws random numbers: it has no graph"
                    raise InputError(f"reduction is {reduction}, {reason}")
        config = model.config.with_arch(gelu=self.gelu or model.config.arch.gelu)
        # int8 is made of the float32 graph.
        graph_dtype = "float32" if self.dtype == "int8" else self.dtype
        # Plain attention, because cuDNN's kernel has no graph.
        execution = make_execution(config, graph_dtype, "xla")
        model = model.clone(config=config, execution=execution)
        self.pretrained = dataclasses.replace(self.pretrained, model=model)
        self.layout_files: dict[str, Any] = {}  # {path in the folder: JSON value}
        options = {"batch_size": self.batch_size, "takes_pixels": self.pixels}
        if self.layout is None:
            self.interface = ProgramInterface(self.pretrained, self.output, **options)
            self.graph_file = choose_graph_file(self.out, self.dtype)
            self.folder = self.graph_file.parent
        else:
            program_layout = tower.PROGRAM_LAYOUTS[self.layout]
            self.interface = tower.make_interface(
                self.pretrained, self.layout, **options
            )
            self.folder = pathlib.Path(os.path.expanduser(self.out))
            layout_arguments = (self.folder, self.layout, self.pretrained)
            self.graph_file = tower.find_graph_file(*layout_arguments, self.dtype)
            tower.check_layout_folder(*layout_arguments, self.graph_file)
            for name, make_fields in program_layout.files.items():
                self.layout_files[name] = make_fields(self.pretrained)
        title = self.file_format.FORMAT_TITLE
        check_choice(f"dtype for {title}", self.dtype, self.file_format.FORMAT_DTYPES)
        if self.batch_size is None and not self.file_format.HAS_OPEN_BATCH:
            raise InputError(f"{title} needs batch_size (--batch-size 1)")

    @property
    def file_format(self) -> types.ModuleType:
        """The module of the graph's format."""
        return program.import_format(self.graph_file)

    def make_graph_and_facts(self) -> tuple[Any, dict[str, Any]]:
        """Make a float32 or float16 graph, and the facts about it."""
        with announced_work("exporting the model"):
            graph = self.file_format.build_graph(self.interface)
        facts = program_facts.collect_facts(self.interface)
        facts |= self.file_format.FORMAT_FACTS
        facts |= {"layout": self.layout, "dtype": self.dtype}
        execution = self.interface.pretrained.model.execution
        return graph, facts | {"float32_parts": list(execution.float32_parts)}

    def write_program(self, file: pathlib.Path, graph: Any, facts: dict) -> None:
        """Write a graph, its weights and its JSON; `facts` get the weights' name."""
        weights_file = self.file_format.write_graph(file, graph)
        if weights_file is not None:
            facts["external_data"] = weights_file.name
        program_facts.write_program_facts(file, facts)

    def quantize(self, float32_graph: Any, facts: dict, pixels: np.ndarray) -> Any:
        """Return the int8 graph of a float32 graph, which has these `facts`.

        pixels: calibrate it, uint8 [images, H, W, 3]
        """
        message = f"calibrating int8 with {len(pixels)} images, which takes minutes"
        with tempfile.TemporaryDirectory() as folder, announced_work(message):
            float32_file = pathlib.Path(folder, self.graph_file.name)
            # A copy: `facts` must not name the weights of a temporary file.
            self.write_program(float32_file, float32_graph, dict(facts))
            float32_program = program.open_program(float32_file)
            return self.file_format.quantize_graph(float32_program, pixels)

    def make_card(self, file: pathlib.Path, images: card.CardImages) -> dict[str, Any]:
        """Measure the program in `file` beside the dense model's, in float32.

        Raises InputError for outputs that are not finite.
        """
        with tempfile.TemporaryDirectory() as folder:
            ending = "" if self.layout else self.graph_file.suffix  # a layout: a folder
            dense_export = dataclasses.replace(
                self,
                pretrained=self.pretrained.with_reduction(None),
                out=pathlib.Path(folder, f"dense{ending}"),
                dtype="float32",
            )
            dense_file = dense_export.graph_file
            dense_file.parent.mkdir(parents=True, exist_ok=True)
            dense_export.write_program(dense_file, *dense_export.make_graph_and_facts())
            has_logits = "logits" in self.interface.output_names
            has_classes = has_logits and self.pretrained.config.head.has_classes
            file_and_dense = {"file": file, "dense": dense_file}
            facts = card.compare_with_dense_file(file_and_dense, images, has_classes)
        return card.card_facts(self.pretrained) | facts

    def put_in_place(self, staging: pathlib.Path) -> None:
        """Move the files of a folder `staging` into the export's folder."""
        earlier_facts = program_facts.read_facts(self.graph_file)
        # The earlier weights' file, or "None", which does not match the pattern below.
        earlier_name = str(earlier_facts.get("external_data"))
        staged_graph = staging / self.graph_file.relative_to(self.folder)
        graph, *weights_files = program_facts.program_files(staged_graph)
        # A kill leaves no graph without its weights, and no JSON before its graph.
        first_files = [*weights_files, graph, program_facts.facts_file(graph)]
        all_files = filter(pathlib.Path.is_file, staging.rglob("*"))
        staged_files = dict.fromkeys([*first_files, *all_files])  # each once
        # Layout files and pages have no digest of their graph, so after a kill nothing
        # would tell that they are another graph's: they go first.
        for layout_path in self.layout_files:
            (self.folder / layout_path).unlink(missing_ok=True)
        if card.is_card_page(self.folder / card.PAGE_NAME):
            (self.folder / card.PAGE_NAME).unlink()
        for file in staged_files:
            target = self.folder / file.relative_to(staging)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
        # The name must be one of `onnx_format.write_graph`, because anyone may have
        # changed the JSON.
        pattern = rf"{re.escape(self.graph_file.name)}\.[0-9a-f]{{16}}\.data"
        is_our_name = re.fullmatch(pattern, earlier_name) is not None
        if is_our_name and earlier_name not in [file.name for file in weights_files]:
            self.graph_file.with_name(earlier_name).unlink(missing_ok=True)


@parallel.without_mesh
def export(vit: Pretrained, out: str | os.PathLike, **options: Any) -> pathlib.Path:
    """Write a model with its weights as a file that runs without this package.

    FILE.json beside it describes image preparation and outputs. It also names the
    second file for weights above 2 GB. With `images` the file is measured, and the
    JSON and a README.md have its card. Files are put in place together at the end.

    out: an .onnx file, a .tflite file for LiteRT, or a folder, which gets a model.onnx.
        Only an earlier export is replaced. With a `layout`, always a folder.
    options: fields of Export:
        batch_size: images per call, which a .tflite file needs; None: any number
        gelu: the GELU variant, as in `optimize`; None: the model's
        pixels: uint8 images, normalized by the program; else float32
        output: "logits" (pooled vectors of a model without classes), "features" (the
            outputs of `features`) or "patches" (only a feature per patch)
        layout: the program that loads the folder, from `tower.PROGRAM_LAYOUTS`
        dtype: of the layers, whatever the model's: "float32", "float16" or "int8",
            where products with weights are quantized. Norms, softmax, and scores and
            order of reductions are float32 in every dtype, and so are outputs. In
            float16 the stem is float32, and so are blocks with large numbers
        images: as for `recover`. Part of them calibrates int8, which needs them; the
            card is measured on others
    Returns the file's path.
    Raises InputError for a wrong argument, and for outputs that are not finite, and
        RunError if a file cannot be written. Then the folder stays as it was.
    """
    job = Export(vit, out, **options)
    vit.warn_of_untrained()
    calibrates = job.dtype == "int8"
    card_images = sampled_pixels = calibration_pixels = None
    if job.images is not None:
        extras.check_installed("a card", job.file_format.RUNTIME_MODULE)
        card.check_card(job.folder, job.graph_file, job.pretrained, job.output)
        card_images = card.read_card_images(job.pretrained, job.images, calibrates)
        sampled_pixels = calibration_pixels = card_images.calibration_pixels
        if calibration_pixels is None:
            sampled_pixels = card_images.compared_pixels
    # Seconds in float32 find numbers that are not finite before a file is written, and
    # those too large for float16.
    part_maxima = largest_numbers.find_largest_numbers(job.pretrained, sampled_pixels)
    if job.dtype == "float16":
        model = largest_numbers.with_float32_parts(job.pretrained.model, part_maxima)
        job.interface.pretrained = dataclasses.replace(job.pretrained, model=model)
    graph, facts = job.make_graph_and_facts()
    if calibration_pixels is not None:
        graph = job.quantize(graph, facts, calibration_pixels)
    facts["self_test"] = self_test.expected_facts(job.interface, job.dtype)
    with staging_folder(job) as staging:
        staged_file = staging / job.graph_file.relative_to(job.folder)
        staged_file.parent.mkdir(exist_ok=True)
        job.write_program(staged_file, graph, facts)
        if card_images is not None:
            facts["card"] = job.make_card(staged_file, card_images)
            program_facts.write_program_facts(staged_file, facts)
        for name, content in job.layout_files.items():
            files.write_json(staging / name, content)
        card.write_card_page(staging, staged_file, job.graph_file)
        job.put_in_place(staging)
    return job.graph_file


@contextlib.contextmanager
def staging_folder(job: Export) -> Iterator[pathlib.Path]:
    """Yield a new folder inside the export's, on the same disk; its end removes it.

    Raises RunError for a full disk, naming the export's file.
    """
    options = {"dir": job.folder, "prefix": ".", "suffix": ".tmp"}
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(**options) as staging:
            yield pathlib.Path(staging)
    except (OSError, RunError) as error:
        # A RunError from `files` has the OSError as its cause.
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or error
        raise RunError(f"{job.graph_file} cannot be written ({reason})") from error


def choose_graph_file(out: str | os.PathLike, dtype: str = "float32") -> pathlib.Path:
    """Choose the graph's path and check it. Only an export may be replaced.

    out: the file, or a folder, which may be new
    """
    given_path = pathlib.Path(os.path.expanduser(out))
    graph_file = given_path
    is_folder = given_path.is_dir() or not given_path.suffix
    if is_folder:
        ending = next(iter(program.FORMAT_MODULES))  # .onnx
        graph_file = given_path / f"model{tower.DTYPE_SUFFIXES[dtype]}{ending}"
    if not program.is_exported(graph_file):
        hint = f"a file ends in {' or '.join(program.FORMAT_MODULES)}, a folder in none"
        raise InputError(f"out: {given_path}; {hint}")
    file_format = program.import_format(graph_file)
    extras.check_installed(file_format.FORMAT_TITLE, file_format.WRITER_MODULE)
    if is_folder and not given_path.exists():
        files.check_writable("out", given_path, ("",))  # "": a folder has no ending
        return graph_file
    for file in (graph_file, program_facts.facts_file(graph_file)):
        files.check_writable("out", file, (graph_file.suffix.lower(), ".json"))
        if file.exists() and not program_facts.read_facts(graph_file):
            raise InputError(f"{file} already exists, and export did not write it")
    return graph_file
