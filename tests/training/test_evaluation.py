"""Sample images of a run: a batch as the network sees it, and tokens."""

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from imagepiece_jax.common import token_pictures
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.data.decode import UnreadableImage
from imagepiece_jax.data.normalize import normalize
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import RunError
from imagepiece_jax.models.vit import MEAN, STD
from imagepiece_jax.training import evaluation
from imagepiece_jax.training.data import open_images
from imagepiece_jax.training.train_step import init_state
from tests import oracles, runs
from tests.runs import configured

SMALL = {"model.embed_dim": 8, "model.num_heads": 2, "pictures": 1}


class Source:
    """Ten images of one gray each; some of them cannot be read."""

    class_names = None

    def __init__(self, *unreadable):
        self.unreadable = unreadable

    def __len__(self):
        return 10

    def read(self, index):
        if index in self.unreadable:
            raise UnreadableImage(f"image {index}", "is not there")
        return np.full((16, 16, 3), 20 * index, np.uint8), index


def test_examples_are_spread_over_the_split_and_readable():
    transform = Preprocessing(16, resize="none")
    images, titles = evaluation.examples(Source(), transform, 5)
    assert titles == [f"label {n}" for n in (0, 2, 4, 6, 8)]
    assert [image[0, 0, 0] for image in images] == [0, 40, 80, 120, 160]
    _, titles = evaluation.examples(Source(0, 3, 4), transform, 5)
    assert titles == [f"label {n}" for n in (2, 6, 8)]
    assert len(evaluation.examples(Source(), transform, 99)[1]) == 10
    assert evaluation.examples(Source(), transform, 0)[1] == []
    named = Source()
    named.class_names = ("ant", "bee", None, *"cdefghi")
    assert evaluation.examples(named, transform, 5)[1] == ["ant", "label 2", *"dfh"]


@pytest.mark.parametrize(
    "count, side, shape",
    [(8, 224, (448, 896)), (5, 16, (128, 256)), (2, 30, (90, 180))],
)
def test_sheet(count, side, shape):
    """Rows of four, no image smaller than 64 pixels, white where there is none."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    got = evaluation.sheet(images)
    assert got.shape == (*shape, 3)
    assert got.dtype == np.uint8
    columns = min(count, 4)
    tile = shape[1] // columns
    for place in range(columns * (shape[0] // tile)):
        row, column = divmod(place, columns)
        corner = got[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        assert (corner == (place if place < count else 255)).all()


def test_no_pictures_no_panels_and_none_of_a_dense_model(tmp_path):
    run = RunConfig.from_config(configured(pictures=0))
    model = run.create_model()
    transform = Preprocessing(16, resize="none")
    none = evaluation.SampleImages(run, tmp_path, model, Source(), transform)
    assert none.augmented({}, 1) is None is none.tokens({})
    run = RunConfig.from_config(configured())
    rest = run.create_dense(), Source(), transform
    assert evaluation.SampleImages(run, tmp_path, *rest).tokens({}) is None
    assert not list(tmp_path.iterdir())


def test_tokens_of_a_state_without_batch_statistics(tmp_path):
    """The patch stem has none, but a state has a place for them."""
    steps = {"reduction.merge_blocks": (0,), "reduction.prune_blocks": ()}
    config = configured(SMALL, steps, **{"model.stem": "patch", "model.depth": 1})
    run = RunConfig.from_config(config)
    model = run.create_model()
    transform = Preprocessing(16, resize="none")
    samples = evaluation.SampleImages(run, tmp_path, model, Source(), transform)
    variables = runs.untrained(model, 16, seed=0)
    state = init_state(variables, optax.identity(), with_ema=False)
    assert samples.tokens(state.variables).ndim == 3


def test_picture_shows_what_became_of_every_patch(tmp_path, monkeypatch):
    """The maps it draws are those of the results, by a slow loop."""
    steps = {"reduction.merge_blocks": (0, 1), "reduction.prune_blocks": (2,)}
    config = configured(SMALL, steps, **{"model.depth": 3, "pictures": 2})
    run = RunConfig.from_config(config)
    model = run.create_model()
    source = open_images(run, "val")
    transform = Preprocessing(16, resize="none")
    workdir = tmp_path / "run"
    workdir.mkdir()
    samples = evaluation.SampleImages(run, workdir, model, source, transform)
    two_images, _ = evaluation.examples(source, transform, 2)
    variables = runs.untrained(model, 16, seed=0)
    drawn = []
    page = token_pictures.token_page

    def keep(path, images, stages, grid, titles):
        drawn.append((stages, grid))
        return page(path, images, stages, grid, titles)

    monkeypatch.setattr(token_pictures, "token_page", keep)
    assert samples.tokens(variables).shape[2] == 3
    with Image.open(workdir / evaluation.PICTURE) as picture:
        assert picture.format == "PNG"
        assert len(picture.getcolors(2**24)) > 20
    ((stages, grid),) = drawn
    assert grid == (8, 8)
    for row in stages:
        assert [title for title, _ in row] == ["block 0", "block 1", "block 2"]
        tokens = [len(set(source.tolist()) - {-1}) for _, source in row]
        assert tokens == [58, 53, 43]
        assert (row[1][1] >= 0).all()
        assert (row[2][1] == -1).any()
    out = jax.jit(model.apply)(variables, normalize(two_images, MEAN, STD))
    slots = np.tile(np.arange(64), (2, 1))
    for result in out.results:
        pairs = zip(np.asarray(result.dest), slots, strict=True)
        slots = [oracles.compose(*pair) for pair in pairs]
    np.testing.assert_array_equal(slots, [row[2][1] for row in stages])
    workdir.rename(tmp_path / "away")
    said = rf"^{workdir}/tokens.png cannot be written \(No s"
    with pytest.raises(RunError, match=said):
        samples.tokens(variables)
