"""Saved traces: a JSON file and an NPZ file.

The JSON file describes the methods and holds the slot maps, for any language; the NPZ
file holds all arrays. Together they restore the Traces.
"""

import dataclasses
import io
import json
import pathlib

import numpy as np

from imagepiece_jax.common.files import replace_file
from imagepiece_jax.errors import InputError
from imagepiece_jax.visualize.trace import Stage, Trace

JSON, NPZ = "provenance.json", "provenance.npz"
_OF_STAGE = ("source", "sizes", "weights", "attention", "attended")
_OF_TRACE = ("top", "confidence", "attention", "attended")


def save(folder, names, methods, traces):
    """Write both files, each whole or not at all.

    names: of the images; methods: a dict of JSON values for each of `traces`, such as
    its label. RunError where they cannot be written.
    """
    described, arrays = [], {}
    for m, (method, trace) in enumerate(zip(methods, traces, strict=True)):
        stages = []
        for s, stage in enumerate(trace.stages):
            arrays |= _arrays(f"method{m}_stage{s}", stage, _OF_STAGE)
            source = None if stage.source is None else stage.source.tolist()
            facts = {"block": stage.block, "site": stage.site, "tokens": stage.tokens}
            stages.append(facts | {"source": source})
        arrays |= _arrays(f"method{m}", trace, _OF_TRACE)
        facts = {"grid": trace.grid, "depth": trace.depth, "tokens": trace.tokens}
        described.append(method | facts | {"stages": stages})
    archive = io.BytesIO()
    np.savez_compressed(archive, **arrays)
    folder = pathlib.Path(folder)
    replace_file(folder / NPZ, archive.getvalue())
    text = json.dumps({"images": names, "methods": described}) + "\n"
    replace_file(folder / JSON, text)


def load(folder):
    """Return (names, methods, traces) as saved; InputError for anything else."""
    folder = pathlib.Path(folder)
    try:
        saved = json.loads((folder / JSON).read_text(encoding="utf-8"))
        with np.load(folder / NPZ) as archive:
            arrays = dict(archive)
        traces = [_trace(m, of, arrays) for m, of in enumerate(saved["methods"])]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} has no provenance that can be read ({error!r}); allowed is a "
            f"folder in which visualize wrote {JSON} and {NPZ}"
        ) from error
    known = {field.name for field in dataclasses.fields(Trace)}
    methods = [
        {k: v for k, v in of.items() if k not in known} for of in saved["methods"]
    ]
    return saved["images"], methods, traces


def _arrays(prefix, of, fields):
    """Arrays of a Stage or Trace by their names in the archive."""
    found = {f"{prefix}_{field}": getattr(of, field) for field in fields}
    return {name: array for name, array in found.items() if array is not None}


def _trace(m, saved, arrays):
    stages = [
        Stage(
            **{key: stage[key] for key in ("block", "site", "tokens")},
            **{f: arrays.get(f"method{m}_stage{s}_{f}") for f in _OF_STAGE},
        )
        for s, stage in enumerate(saved["stages"])
    ]
    return Trace(
        grid=tuple(saved["grid"]),
        depth=saved["depth"],
        tokens=saved["tokens"],
        stages=tuple(stages),
        **{field: arrays.get(f"method{m}_{field}") for field in _OF_TRACE},
    )
