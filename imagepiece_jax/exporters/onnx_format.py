"""ONNX as a format of `models.program.FORMAT_MODULES`: every format has these names."""

import functools
import os
import pathlib
from typing import Any

from imagepiece_jax.common import extras
from imagepiece_jax.common.device import available_cores
from imagepiece_jax.errors import InputError
from imagepiece_jax.exporters import file_program
from imagepiece_jax.exporters.onnx_model import (
    ONNX_OPSET,
    build_onnx_model,
    remove_earlier_weights,
    write_onnx,
)
from imagepiece_jax.exporters.quantize import quantize_onnx

__all__ = ["remove_earlier_weights"]

build_graph = build_onnx_model
write_graph = write_onnx
quantize_graph = quantize_onnx
FORMAT_TITLE = "an ONNX file"
FORMAT_VERSION = f"ONNX opset {ONNX_OPSET}"
FORMAT_FACTS = {"opset": ONNX_OPSET}  # of every file's JSON
FORMAT_DTYPES = ("float32", "float16", "int8")
HAS_OPEN_BATCH = True  # whether a program may take any number of images
WRITER_MODULE = "onnx"  # the package that writes a file, and the one that runs it
RUNTIME_MODULE = RUNTIME_TITLE = "onnxruntime"
RUN_LINES = """\
import onnxruntime
session = onnxruntime.InferenceSession("{file}")
outputs = session.run(None, {{"{images}": images}})"""
PROGRAM_KIND = "ONNX file"
OLDEST_ONNXRUNTIME = (1, 17)  # the first with opset 20, and so its Gelu


def open_file(
    path: str | os.PathLike, threads: int | None = None
) -> file_program.FileProgram:
    """Open an .onnx file, as `open_program` does."""
    extras.check_installed(FORMAT_TITLE, RUNTIME_MODULE)

    def open_runtime(path, facts):
        session = open_session(path, threads, facts.get("opset"))
        name = facts["input"]["name"]
        return lambda images, names: functools.partial(
            session.run, names, {name: images}
        )

    return file_program.open_described(path, PROGRAM_KIND, RUNTIME_MODULE, open_runtime)


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
