"""Where onnxruntime's WebGPU provider runs the nodes of ONNX files.

    make .venv-webgpu/installed
    .venv-webgpu/bin/python tools/webgpu_placement.py model.onnx [MORE.onnx ..]

A line of JSON for every file: nodes on WebGPU, nodes elsewhere, copies between the
two, their operators and types, and the largest difference from the CPU's outputs on
noise, beside the spread of these outputs. The status is 1 if a node leaves WebGPU or a
file fails there, and 2 without the package or an adapter.

This file runs without imagepiece_jax: onnxruntime-webgpu and onnxruntime are the same
Python package, so each needs an environment of its own. A software Vulkan serves as
adapter: Mesa's lavapipe (Debian, Ubuntu: apt install mesa-vulkan-drivers). Debian 12's
22.3 is too old, 25.0 of its backports works.
"""

import argparse
import collections
import json
import pathlib
import sys
import tempfile

import numpy as np
import onnxruntime

WEBGPU = "WebGpuExecutionProvider"
CPU = "CPUExecutionProvider"
OPEN_SIDE = 2  # images of a graph with an open batch
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
DTYPES["tensor(uint8)"] = np.uint8
MISSING = (
    "no WebGPU here: install onnxruntime-webgpu, without onnxruntime beside it, and a "
    "Vulkan driver (Debian, Ubuntu: apt install mesa-vulkan-drivers, version 25.0 or "
    "later), or name one by VK_ICD_FILENAMES"
)


def main():
    """Print nodes, copies and differences of files, and end with the status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.onnx")
    arguments = parser.parse_args()
    # Without the package onnxruntime warns, without an adapter it prints the reason; in
    # both cases it takes the CPU.
    program = open_session(arguments.files[0], [WEBGPU, CPU])
    if WEBGPU not in program.get_providers():
        parser.exit(2, f"error: {MISSING}\n")
    stays = True
    for path in arguments.files:
        row = measure_file(path)
        print(json.dumps(row), flush=True)
        stays = stays and not (row["elsewhere"] or row["failure"])
    sys.exit(0 if stays else 1)


def measure_file(path):
    """Run a file on WebGPU and on the CPU, with noise.

    Returns a dict: file, counts (of nodes on WebGPU, on the CPU, and of copies),
    elsewhere ([operator, place, types, nodes] of what is not on WebGPU), difference,
    spread, and failure (None, or why the file does not run on WebGPU).
    """
    counts = collections.Counter({"WebGPU": 0, "CPU": 0, "copies": 0})
    row = {"file": str(path), "counts": counts, "elsewhere": [], "failure": None}
    row |= {"difference": None, "spread": None}
    reference = open_session(path, [CPU])
    feeds = noise_inputs(reference)
    reference_outputs = reference.run(None, feeds)
    with tempfile.TemporaryDirectory() as folder:
        program = open_session(path, [WEBGPU, CPU], pathlib.Path(folder, "profile"))
        try:
            outputs = program.run(None, feeds)
        except Exception as error:
            row["failure"] = str(error).strip().splitlines()[-1]
            return row
        events = json.loads(pathlib.Path(program.end_profiling()).read_text())
    elsewhere = collections.Counter()
    for event in events:
        facts = event.get("args", {})
        if "provider" not in facts or not event["name"].endswith("_kernel_time"):
            continue
        operator = facts["op_name"]
        place = "WebGPU" if facts["provider"] == WEBGPU else "CPU"
        if operator.startswith("Memcpy"):
            place = "copies"
        counts[place] += 1
        if place != "WebGPU":
            types = set().union(*facts["input_type_shape"])  # of {type: shape}
            elsewhere[operator, place, "/".join(sorted(types))] += 1
    row["elsewhere"] = [[*kind, count] for kind, count in elsewhere.most_common()]
    row["difference"], row["spread"] = largest_difference(outputs, reference_outputs)
    return row


def open_session(path, providers, profile=None):
    """Open a file; with `profile`, a path's beginning, onnxruntime times every node."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(path, options, providers=providers)


def noise_inputs(program):
    """Make inputs: normal noise, or random pixels for uint8. {name: array}"""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in program.get_inputs():
        shape = [s if isinstance(s, int) else OPEN_SIDE for s in value.shape]
        dtype = DTYPES[value.type]
        if dtype == np.uint8:
            feeds[value.name] = rng.integers(0, 256, shape, dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def largest_difference(outputs, reference_outputs):
    """(difference, spread) of the output that differs most for its spread."""
    pairs = []
    for output, reference in zip(outputs, reference_outputs, strict=True):
        reference = reference.astype(np.float64)
        # Not `max`, which may drop NaN.
        difference = np.abs(output.astype(np.float64) - reference).max()
        pairs.append((difference, np.ptp(reference) or np.finfo(np.float64).tiny))
    shares = [difference / spread for difference, spread in pairs]
    # argmax finds NaN first.
    difference, spread = pairs[np.argmax(shares)]
    return float(difference), float(spread)


if __name__ == "__main__":
    main()
