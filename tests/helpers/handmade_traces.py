"""Handmade traces of two images with a grid of 2 x 3 patches, and saved ones."""

import json

import numpy as np

from imagepiece_jax.visualize.trace import Stage, Trace

GRID = (2, 3)
# Patches 0 and 1 merge; then patch 5 is dropped.
MERGED = np.array([0, 0, 1, 2, 3, 4], np.int32)
PRUNED = np.array([0, 0, 1, 2, 3, -1], np.int32)


def images():
    return np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)


def _trace(stages, tokens):
    top = np.array([3, 4], np.int32)
    return Trace(GRID, stages, tokens, top, np.array([0.25, 0.5], np.float32))


def hard_trace():
    """A merge in block 1 and a pruning before block 3."""
    stages = (
        Stage(1, "mid", 5, np.stack([MERGED] * 2)),
        Stage(3, "pre", 4, np.stack([PRUNED] * 2)),
    )
    return _trace(stages, 4)


def all_methods():
    """(facts of each method, its Trace)"""
    learner = "learner (untrained selectors)"
    facts = [
        {"label": "imagepiece", "gmacs": 0.5, "setting": "imagepiece"},
        {"label": learner, "gmacs": 0.4, "setting": "token_learner"},
        {"label": "dense", "gmacs": 1.0, "setting": "none"},
    ]
    soft = _trace((Stage(2, "pre", 2),), 2)  # two learned tokens before block 2
    return facts, [hard_trace(), soft, _trace((), 6)]


def read_traces(folder):
    """(image names, the methods' dicts) from `write_traces`'s file."""
    saved = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return saved["images"], saved["methods"]
