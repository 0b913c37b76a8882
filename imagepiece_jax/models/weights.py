"""Tensors of trained weights by timm's names, fitted to a model's variables."""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from imagepiece_jax.errors import InputError
from imagepiece_jax.models import convert, hub, run_files
from imagepiece_jax.models.layouts import Recognized, read_weights
from imagepiece_jax.models.positions import Positions
from imagepiece_jax.models.state_dict import read_state_dict


def tensors(
    path: str | os.PathLike, checkpoint: str = "best", averaged: bool = False
) -> Mapping[str, np.ndarray]:
    """Those of a weights file, of a published model, or of a run's checkpoint.

    averaged: over the steps of the training, instead of those after its last.
    """
    path = hub.existing(path)
    if path.is_dir() and hub.is_published(path):
        return published(path, averaged).tensors
    if path.is_dir():
        return run_files.read_checkpoint(path, checkpoint, averaged)
    return read_weights(path, averaged).tensors


def published(folder: pathlib.Path, averaged: bool = False) -> Recognized:
    """As `layouts.read_weights`, of a folder, with what a saved reduction learned."""
    found = read_weights(hub.weights_file(folder), averaged)
    learned = folder / hub.SELECTORS
    if learned.exists():
        found = found._replace(tensors=found.tensors | read_state_dict(learned))
    return found


def fit(path, tensors, like, fresh=(), hint=False, positions=None):
    """As `restore`, of tensors that have been read from `path`."""
    try:
        return convert.from_timm(tensors, like, fresh, hint, positions)
    except InputError as error:
        path = hub.local(path)
        run = path.is_dir() and not hub.is_published(path)
        kind = "run " if run else "" if path.is_dir() else "weights file "
        raise InputError(f"{kind}{path}: {error}") from error


def restore(
    path: str | os.PathLike,
    like: Mapping[str, Any],
    fresh: Iterable[str] | None = None,
    checkpoint: str = "best",
    positions: Positions | None = None,
):
    """Variables of the shapes of `like` from whatever has weights.

    `fresh` names the parts that keep what `like` has for them; None: there are none,
    and errors suggest none; position embeddings are resized to `positions`. InputError
    for anything else that is missing, left over or of another shape.
    """
    hint = fresh is not None
    found = tensors(path, checkpoint)
    return fit(path, found, like, fresh or (), hint, positions)
