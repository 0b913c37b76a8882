import numpy as np
import pytest

from imagepiece_jax.visualize import token_pictures
from imagepiece_jax.visualize.token_pictures import paint_tokens
from tests.helpers.rounding import assert_close

DROPPED = -1


def token_of_pixels(token_of_patch, grid, height, width):
    """Every pixel's slot, by integer division."""
    slots = np.empty((height, width), int)
    for y, x in np.ndindex(height, width):
        row = y * grid[0] // height
        column = x * grid[1] // width
        slots[y, x] = token_of_patch[row * grid[1] + column]
    return slots


def distance_to_other(slots, y, x):
    """Steps along a pixel's row or column to the nearest pixel of another slot."""
    height, width = slots.shape
    for step in range(1, height + width):
        for dy, dx in ((step, 0), (-step, 0), (0, step), (0, -step)):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                if slots[y + dy, x + dx] != slots[y, x]:
                    return step
    return height + width


@pytest.mark.parametrize("grid, slots", [((3, 4), 5), ((2, 2), 4), ((4, 3), 1)])
def test_mean_colors_equal_a_slow_loop(grid, slots):
    image = np.random.default_rng(0).integers(0, 256, (12, 24, 3), np.uint8)
    token_of_patch = np.arange(grid[0] * grid[1]) % (slots + 1) + DROPPED
    pixels = token_of_pixels(token_of_patch, grid, 12, 24)
    colors = token_pictures.mean_colors(image, token_of_patch, grid)
    patches = token_of_pixels(np.arange(token_of_patch.size), grid, 12, 24)
    for patch, slot in enumerate(token_of_patch):
        # A dropped patch is alone.
        is_member = patches == patch if slot == DROPPED else pixels == slot
        expected = image[is_member].mean(axis=0)
        assert_close(colors[divmod(patch, grid[1])], expected, units=8)


def test_outlines_are_drawn_only_between_groups():
    """The image is gray, so other colors are outlines or dropped patches."""
    grid = (3, 4)
    image = np.full((18, 24, 3), 100, np.uint8)
    token_of_patch = np.array([0, 1, 1, DROPPED, 2, 0, 3, 4, 5, 5, DROPPED, 2])
    drawn = paint_tokens(image, token_of_patch, grid)
    assert (drawn.shape, drawn.dtype) == ((18, 24, 3), np.uint8)
    slots = token_of_pixels(token_of_patch, grid, 18, 24)
    sizes = {slot: (token_of_patch == slot).sum() for slot in token_of_patch}
    for y, x in np.ndindex(*slots.shape):
        slot = slots[y, x]
        if slot != DROPPED:
            outline_width = 2 if sizes[slot] > 1 else 1
            is_outline = distance_to_other(slots, y, x) <= outline_width
            assert (drawn[y, x] != 100).any() == is_outline, (y, x)


def test_a_groups_outline_keeps_one_color():
    """In all its pieces, and after a step that renumbers the slots."""
    image = np.full((16, 16, 3), 100, np.uint8)
    token_of_patch = np.array([0, 1, 2, 3, 4, 0, 5, 6, 0, 7, 7, 8, 9, 10, 11, 12])
    drawn = paint_tokens(image, token_of_patch, (4, 4))
    color = tuple(drawn[3, 3])
    assert tuple(drawn[4, 4]) == tuple(drawn[8, 0]) == color
    other = tuple(drawn[8, 4])
    assert max(color) - min(color) > 150, "a bright color"
    assert np.abs(np.subtract(color, other, dtype=int)).max() > 60
    renumbered = np.array([2, 1, 2, -1, -1, 2, 5, 6, 2, 7, 7, 8, 4, 3, 9, -1])
    redrawn = paint_tokens(image, renumbered, (4, 4))
    assert tuple(redrawn[3, 3]) == tuple(redrawn[8, 0]) == color


def test_merged_patches_take_their_mean_color():
    """By a share of 0.55, without an outline between them."""
    colors = np.zeros((2, 2, 3))
    colors[0] = [(200, 0, 100), (100, 40, 100)]
    image = np.kron(colors, np.ones((6, 6, 1))).astype(np.uint8)
    drawn = paint_tokens(image, np.array([0, 0, 1, 2]), (2, 2))
    expected = 0.45 * image[:4] + 0.55 * np.array([150, 20, 100])
    np.testing.assert_allclose(drawn[:4], expected, atol=0.5)


def test_values_are_painted_over_the_gray_image():
    """Over black the color has three quarters. A dropped patch gets no color."""
    values = np.array([0.0, 1, 0.5, np.nan, 0.25, 0.75])
    drawn = token_pictures.paint_values(np.zeros((4, 6, 3), np.uint8), values, (2, 3))
    assert drawn[0, 0].tolist() == [51, 1, 63]  # three quarters of viridis's lowest
    lightness = []
    for patch, value in enumerate(values):
        row, column = divmod(patch, 3)
        pixels = drawn[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].astype(int)
        if np.isnan(value):
            assert pixels.min() > 160
            assert np.ptp(pixels, axis=-1).max() < 15
            continue
        lightness.append((value, pixels[0, 0].sum()))
        assert (pixels == pixels[0, 0]).all()
    assert (np.diff([sum_ for _, sum_ in sorted(lightness)]) > 0).all()
