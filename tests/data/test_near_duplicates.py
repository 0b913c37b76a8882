"""Copies are found in other encodings and sizes, and no other images."""

import io

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data import near_duplicates
from imagepiece_jax.data.pictures import as_source


def pictures(count):
    """Different pictures, smooth and large enough for JPEG."""
    rng = np.random.default_rng(0)
    small = map(Image.fromarray, rng.integers(0, 256, (count, 5, 5, 3), np.uint8))
    return [image.resize((40, 40), Image.Resampling.BICUBIC) for image in small]


def reencode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    with Image.open(file) as reread:
        return reread.convert("RGB")


def scaler(factor, filter=Image.Resampling.BICUBIC):
    def scale(image):
        width, height = image.size
        return image.resize((round(factor * width), round(factor * height)), filter)

    return scale


# {a way to copy: (function, least number of found copies of 50)}
WAYS = {
    "jpeg 20": (lambda image: reencode(image, "JPEG", quality=20), 50),
    "jpeg 10": (lambda image: reencode(image, "JPEG", quality=10), 48),
    "webp 50": (lambda image: reencode(image, "WEBP", quality=50), 50),
    "256 colors": (lambda image: image.quantize(256, 2).convert("RGB"), 50),
    "gray": (lambda image: image.convert("L").convert("RGB"), 50),
    "quarter": (scaler(0.25), 50),
    "half, nearest": (scaler(0.5, Image.Resampling.NEAREST), 48),
    "half, jpeg 50": (lambda x: reencode(scaler(0.5)(x), "JPEG", quality=50), 50),
    "1.3": (scaler(1.3), 50),
    "150 x 97": (lambda image: image.resize((150, 48)), 50),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 50),
}


@pytest.fixture(scope="module")
def photographs(assets):
    images = []
    for path in sorted((assets / "data" / "nips2017_224_jpg" / "images").iterdir()):
        with Image.open(path) as image:
            images.append(image.convert("RGB"))
    return images


@pytest.fixture(scope="module")
def thumbnails(photographs):
    return np.stack([near_duplicates.make_thumbnail(image) for image in photographs])


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_photographs_are_found(photographs, thumbnails, way):
    """Odd photographs; even ones chose the distance."""
    copy, least = WAYS[way]
    num_found = 0
    for index in range(1, 100, 2):
        copy_form = near_duplicates.make_thumbnail(copy(photographs[index]))
        distance = near_duplicates.thumbnail_distances(
            thumbnails[index][None], copy_form[None]
        )
        num_found += distance.item() < near_duplicates.COPY_DISTANCE
    assert num_found >= least


def test_no_photograph_is_a_copy_of_another(thumbnails):
    """499,500 pairs, with mirror images, too."""
    pairs = np.triu_indices(len(thumbnails), 1)
    distances = near_duplicates.thumbnail_distances(thumbnails, thumbnails)[pairs]
    assert len(distances) == 499_500
    assert distances.min() == pytest.approx(0.31, abs=0.01)


def test_few_unrelated_photographs_share_a_scene(thumbnails):
    """Odd photographs; even ones chose the thresholds."""
    counts = np.bincount(near_duplicates.number_scenes(thumbnails[1::2]))
    assert counts[counts > 1].sum() <= 0.05 * len(thumbnails[1::2])
    assert counts.max() <= 5


def frame(image, rng):
    """The thumbnail of an image's part, at least 0.8 of its sides, in other light."""
    side = rng.uniform(0.8, 0.92)
    left, top = rng.uniform(0, 1 - side, 2)
    box = np.array([left, top, left + side, top + side]) * [*image.size, *image.size]
    crop = image.resize((96, 96), Image.Resampling.BICUBIC, tuple(box))
    pixels = np.asarray(crop) * rng.uniform(0.9, 1.1)
    crop = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return near_duplicates.make_thumbnail(crop)


def test_frames_of_a_scene_are_found(photographs):
    """Frames are zoomed, shifted and relit; eight frames make one scene."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(100), 8)
    frames = np.stack([frame(photographs[2 * scene + 1], rng) for scene in truth])
    for order, least in ((np.arange(800), 0.97), (rng.permutation(800), 0.6)):
        numbers = near_duplicates.number_scenes(frames[order])
        scenes = [numbers[truth[order] == scene] for scene in range(100)]
        assert np.mean([len(set(scene)) == 1 for scene in scenes]) >= least
        assert np.bincount(numbers).max() <= 60


def test_likeness_is_the_largest_correlation_of_overlaps():
    rng = np.random.default_rng(0)
    large = rng.normal(size=(18, 19))
    a = large[2:, :16]
    b = large[:16, 3:]
    likeness = near_duplicates.thumbnail_likeness(a.reshape(1, -1), b.reshape(1, -1))
    assert likeness.item() == pytest.approx(1)
    stranger = rng.normal(size=(16, 16))
    correlations = []
    for down in range(-3, 4):
        for right in range(-3, 4):
            rows = range(max(0, down), min(16, 16 + down))
            columns = range(max(0, right), min(16, 16 + right))
            ours = a[np.ix_(rows, columns)].ravel()
            theirs = np.roll(stranger, (down, right), (0, 1))
            theirs = theirs[np.ix_(rows, columns)].ravel()
            correlations.append(np.corrcoef(ours, theirs)[0, 1])
    likeness = near_duplicates.thumbnail_likeness(
        a.reshape(1, -1), stranger.reshape(1, -1)
    )
    assert likeness.item() == pytest.approx(max(correlations), rel=1e-5)


def test_a_distance_equals_its_definition():
    first, second = (near_duplicates.make_thumbnail(image) for image in pictures(2))
    mirrored = second.reshape(16, 16)[:, ::-1].ravel()
    assert first.mean() == pytest.approx(0, abs=1e-5)
    assert first.std() == pytest.approx(1, abs=1e-5)
    by_hand = [np.sqrt(np.mean((first - form) ** 2)) for form in (second, mirrored)]
    distance = near_duplicates.thumbnail_distances(first[None], second[None])
    assert distance.item() == pytest.approx(min(by_hand), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 500])
def test_copies_and_mirror_images_share_a_scene(monkeypatch, rows):
    monkeypatch.setattr(near_duplicates, "CHUNK_SIZE", rows)
    images = [*pictures(3), pictures(3)[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    thumbnails = [near_duplicates.make_thumbnail(image) for image in images]
    scenes = near_duplicates.number_scenes(np.stack(thumbnails)[[0, 1, 0, 2, 3, 0]])
    same = scenes[:, None] == scenes
    truth = np.array([0, 1, 0, 2, 1, 0])
    np.testing.assert_array_equal(same, truth[:, None] == truth)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_have_scenes(count):
    thumbnails = [near_duplicates.make_thumbnail(image) for image in pictures(count)]
    scenes = near_duplicates.number_scenes(np.reshape(thumbnails, (-1, 256)))
    assert len(np.unique(scenes)) == count


def test_only_unreadable_images_are_left_out(tmp_path, caplog):
    images = pictures(6)
    for place in (0, 1, 2, 3, 4, 5, 0):
        images[place].save(tmp_path / f"{len([*tmp_path.iterdir()])}.png")
    whole = as_source(tmp_path)
    source, scenes, digests = near_duplicates.read_scenes(whole)
    assert source is whole
    assert len(scenes) == 7 and scenes[0] == scenes[6]
    assert len({*digests}) == 6 and digests[0] == digests[6]
    assert not caplog.records
    (tmp_path / "3.png").write_bytes(b"no image")
    source, scenes, _ = near_duplicates.read_scenes(as_source(tmp_path))
    assert len(source) == len(scenes) == 6
    assert "3.png" in caplog.text
