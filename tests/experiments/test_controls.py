"""ImagePiece's controls: its counts, pairs by chance, and ToMe's matching."""

import itertools

import numpy as np
import pytest

from experiments import controls
from imagepiece_jax.reduction.methods import METHODS
from imagepiece_jax.reduction.methods.imagepiece import ImagePiece
from imagepiece_jax.reduction.reducers import Bipartite
from tests.models import tiny
from tests.reduction.methods.test_imagepiece import (
    FIELDS,
    block_counts,
    first_step,
    taps,
)
from tests.reduction.steps import decide


@pytest.mark.parametrize("name", controls.CONTROLS)
@pytest.mark.parametrize("fields", FIELDS)
def test_a_control_has_the_same_counts_in_every_block(name, fields):
    ours = ImagePiece(**fields)
    control = controls.CONTROLS[name](**fields)
    for n0, depth in ((196, 12), (64, 12), (25, 4), (3, 4)):
        assert block_counts(ours, n0, depth) == block_counts(control, n0, depth)


def test_all_steps_are_tomes_matching():
    found = controls.ImagePieceMatched().steps(12)
    assert {step.reducer for step in found} == {Bipartite("key")}
    assert len(found) == 9


def test_random_pairs_are_of_candidates_and_of_all_pairs_alike():
    n = 20
    images = 3000
    method = controls.ImagePieceRandom(candidate_ratio=0.3)
    reducer, counts = first_step(n, method)
    seen = taps(images, n)
    result = decide(reducer, seen, counts)
    left = np.asarray(result.index.absorbed)
    partner = np.take_along_axis(
        np.asarray(result.index.keep), np.asarray(result.index.target), axis=1
    )
    order = np.argsort(seen.cls_attn, axis=1)[:, :6][:, ::-1]  # most attended first
    place = {}
    for image in range(images):
        at = {token: i for i, token in enumerate(order[image])}
        for pair in zip(left[image], partner[image], strict=True):
            pair = at[pair[0]], at[pair[1]]
            place[pair] = place.get(pair, 0) + 1
    assert set(place) == {*itertools.product((0, 2, 4), (1, 3, 5))}
    expected = images * (n - counts.n_out) / 9
    assert all(abs(times / expected - 1) < 0.15 for times in place.values())


def test_controls_are_methods_while_they_are_registered():
    """By name in a model, whose outputs are finite."""
    with controls.registered():
        for name, kind in controls.CONTROLS.items():
            vit = tiny.pretrained(tiny.IMAGEPIECE | {"name": name})
            assert type(vit.reduction.method) is kind
            run = tiny.compiled(vit.model.apply)
            assert np.isfinite(run(vit.variables, tiny.images()).logits).all()
    assert not {*METHODS} & {*controls.CONTROLS}
