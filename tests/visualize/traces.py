"""Handmade traces of two images with a grid of 2 x 3 patches, and saved ones."""

import dataclasses
import json

import numpy as np

from imagepiece_jax.visualize.trace import Stage, Trace

GRID = (2, 3)
WHOLE = np.arange(6, dtype=np.int32)
# Patches 0 and 1 merge; then patch 5 is dropped.
MERGED = np.array([0, 0, 1, 2, 3, 4], np.int32)
PRUNED = np.array([0, 0, 1, 2, 3, -1], np.int32)


def images():
    return np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)


def twice(row):
    """The same for both images."""
    return np.stack([np.asarray(row)] * 2)


def _trace(stages, tokens, attention=None, attended=None):
    top = np.array([3, 4], np.int32)
    confidence = np.array([0.25, 0.5], np.float32)
    return Trace(GRID, 4, stages, tokens, top, confidence, attention, attended)


def hard():
    """A merge in block 1 and a pruning before block 3."""
    six = np.array([0.1, 0.05, 0.2, 0.4, 0.1, 0.05], np.float32)
    five = np.array([0.1, 0.4, 0.2, 0.1, 0.1], np.float32)
    four = np.array([0.04, 0.16, 0.08, 0.64], np.float32)
    sizes = [np.array(s, np.int32) for s in ([2, 1, 1, 1, 1], [2, 1, 1, 1])]
    stages = (
        Stage(
            *(1, "mid", 5, twice(MERGED), twice(sizes[0])),
            attention=twice(six),
            attended=twice(WHOLE),
        ),
        Stage(
            *(3, "pre", 4, twice(PRUNED), twice(sizes[1])),
            attention=twice(five),
            attended=twice(MERGED),
        ),
    )
    return _trace(stages, 4, twice(four), twice(PRUNED))


def soft():
    """Two learned tokens before block 2."""
    weights = np.array([[0.5, 0.25, 0.25, 0, 0, 0], [0, 0, 0.1, 0.2, 0.3, 0.4]])
    stage = Stage(2, "pre", 2, weights=twice(weights.astype(np.float32)))
    return _trace((stage,), 2)


def dense():
    attention = np.array([0.3, 0.1, 0.1, 0.1, 0.1, 0.2], np.float32)
    return _trace((), 6, twice(attention), twice(WHOLE))


def methods():
    """(facts of each method, its Trace)"""
    facts = [
        {"label": "imagepiece", "untrained": False, "gmacs": 0.5},
        {"label": "learner (untrained selectors)", "untrained": True, "gmacs": 0.4},
        {"label": "dense", "untrained": False, "gmacs": 1.0},
    ]
    settings = [{"name": "imagepiece"}, {"name": "token_learner"}, {"name": "none"}]
    facts = [a | {"setting": b} for a, b in zip(facts, settings, strict=True)]
    return facts, [hard(), soft(), dense()]


def read_traces(folder):
    """(names of images, facts of methods, Traces) as write_traces wrote them."""
    saved = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    with np.load(folder / "provenance.npz") as archive:
        arrays = dict(archive)

    def restored(cls, prefix, facts):
        """A Stage or Trace, whose fields are arrays by name, or of its facts."""
        names = [field.name for field in dataclasses.fields(cls)]
        named = {k: arrays[f"{prefix}_{k}"] for k in names if f"{prefix}_{k}" in arrays}
        return cls(**{k: v for k, v in facts.items() if k in names} | named)

    methods = []
    traces = []
    for m, facts in enumerate(saved["methods"]):
        stages = tuple(
            restored(Stage, f"method{m}_stage{s}", stage)
            for s, stage in enumerate(facts["stages"])
        )
        facts |= {"stages": stages, "grid": tuple(facts["grid"])}
        traces.append(restored(Trace, f"method{m}", facts))
        of_traces = ("stages", "grid", "depth", "tokens")
        methods.append({k: v for k, v in facts.items() if k not in of_traces})
    return saved["images"], methods, traces
