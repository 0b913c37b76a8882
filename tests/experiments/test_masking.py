from unittest import mock

import jax.numpy as jnp
import numpy as np

from experiments import masking
from experiments.masking import SIDE, draw_corners, hide_squares
from experiments.models import OffTheShelf
from experiments.paper import Answers, Study
from experiments.paper_tables import DENSE
from experiments.published import MASKS
from imagepiece_jax.data.preprocessing import Preprocessing

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


class Twenty:
    """A set of twenty images."""

    preprocessing = Preprocessing(224)
    text = "twenty of a made up set"
    facts = {}

    def __len__(self):
        return 20

    def read_batches(self):
        image = np.zeros((1, 3, 224, 224, 3), np.uint8)
        return [{"image": image, "index": INDEX}]


class Fading(Study):
    """Evaluations that are right for images 0 .. 17 - masks / 5."""

    def evaluate(self, vit, reduction, images=None):
        count = 0
        if images is not None:
            (batch,) = images.read_batches()
            masks = str(images.facts), batch["corners"].tobytes()
            self.programs.setdefault(reduction.partition(":")[0], []).append(masks)
            count = images.facts["masks"]
        return Answers({}, np.arange(20) < 18 - count // 5)


def test_all_methods_get_the_same_masks(tmp_path):
    weights = mock.Mock(**{"model.config.stem": "patch"})
    weights.with_reduction = lambda reduction, seed: mock.Mock(
        untrained_kinds=["selectors"] * reduction.startswith("dynamicvit")
    )
    study = Fading(models=OffTheShelf(weights), images=Twenty(), out=tmp_path)
    masking.write_masking_page(study)
    masks_by_method = study.programs
    dense = masks_by_method.pop(DENSE.reduction)
    assert len(dense) == 18
    assert set(masks_by_method) == {"evit", "tome", "imagepiece"}
    assert all(masks == dense for masks in masks_by_method.values())
    page = (tmp_path / "masking.md").read_text()
    line = next(x for x in page.splitlines() if x.startswith("| DeiT | acc1, % (meas"))
    cells = line.split(" | ")
    assert cells[2].startswith("90.0 [")
    masked = np.mean([18 - count // 5 for count in MASKS]) / 20  # without 0 masks
    assert cells[-1].startswith(f"{100 * masked:.1f} [")
