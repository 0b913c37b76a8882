import jax.numpy as jnp
import numpy as np

from experiments.masking import SIDE, draw_corners, hide_squares
from experiments.published import MASKS

INDEX = np.array([[3, 0, 7]])


def test_squares_depend_on_seed_and_image():
    corners = draw_corners(INDEX, 50, 1, 224)
    assert corners.shape == (1, 3, 50, 2)
    assert (draw_corners(np.array([7]), 50, 1, 224)[0] == corners[0, 2]).all()
    for different in (draw_corners(INDEX, 50, 2, 224), np.roll(corners, 1, axis=1)):
        assert (different != corners).any()
    for count in MASKS:  # larger numbers add squares
        assert (draw_corners(INDEX, count, 1, 224) == corners[..., :count, :]).all()


def test_squares_lie_anywhere_inside():
    corners = draw_corners(np.arange(400), 50, 0, 224)
    assert (corners.min(), corners.max()) == (0, 224 - SIDE)
    counts = np.bincount(corners.ravel(), minlength=209)
    assert counts.min() > 0.6 * counts.mean()  # 40,000 draws of 209 places


def test_covers_equal_slow_loops():
    images = np.random.default_rng(0).normal(size=(2, 40, 40, 3)).astype(np.float32)
    corners = np.array([[[0, 24], [10, 3]], [[24, 24], [-SIDE, -SIDE]]], np.int32)
    batch = {"corners": jnp.asarray(corners), "index": jnp.asarray([4, 9])}
    hidden = np.asarray(hide_squares(jnp.asarray(images), batch, None))
    is_covered = np.zeros((2, 40, 40), bool)
    for image, squares in enumerate(corners):
        for row, column in squares[squares[:, 0] >= 0].reshape(-1, 2):
            is_covered[image, row : row + SIDE, column : column + SIDE] = True
    assert (hidden[~is_covered] == images[~is_covered]).all()
    assert not hidden[is_covered].any()
