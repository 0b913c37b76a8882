"""Copies among images: found in other encodings and sizes, and nothing else is."""

import io

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data import near_duplicates
from imagepiece_jax.deploy.pictures import as_source


def pictures(count, side=40, seed=0):
    """Pictures that are no copies of each other: smooth, and large enough for JPEG."""
    draw = np.random.default_rng(seed)
    small = draw.integers(0, 256, (count, 5, 5, 3), np.uint8)
    size = (side, side)
    return [
        Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in small
    ]


def encoded(image, kind, **options):
    """An image after a file of some kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    with Image.open(file) as again:
        return again.convert("RGB")


def scaled(factor, filter=Image.Resampling.BICUBIC):
    def scale(image):
        width, height = image.size
        return image.resize((round(factor * width), round(factor * height)), filter)

    return scale


# way to copy: of 50 photographs so many are found at least
WAYS = {
    "same": (lambda image: image, 50),
    "png": (lambda image: encoded(image, "PNG", compress_level=1), 50),
    "jpeg 90": (lambda image: encoded(image, "JPEG", quality=90), 50),
    "jpeg 50": (lambda image: encoded(image, "JPEG", quality=50), 50),
    "jpeg 20": (lambda image: encoded(image, "JPEG", quality=20), 50),
    "jpeg 10": (lambda image: encoded(image, "JPEG", quality=10), 48),
    "webp 50": (lambda image: encoded(image, "WEBP", quality=50), 50),
    "256 colors": (lambda image: image.quantize(256, 2).convert("RGB"), 50),
    "gray": (lambda image: image.convert("L").convert("RGB"), 50),
    "quarter": (scaled(0.25), 50),
    "half": (scaled(0.5, Image.Resampling.LANCZOS), 50),
    "half, nearest": (scaled(0.5, Image.Resampling.NEAREST), 48),
    "1.3": (scaled(1.3), 50),
    "150 x 97": (lambda image: image.resize((150, 48)), 50),
    "mirrored": (lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 50),
    "half, jpeg 50": (
        lambda image: encoded(scaled(0.5)(image), "JPEG", quality=50),
        50,
    ),
}


@pytest.fixture(scope="module")
def photographs(assets):
    return sorted((assets / "data" / "nips2017_224_jpg" / "images").iterdir())


def form_of(path):
    with Image.open(path) as image:
        return near_duplicates.small_form(image.convert("RGB"))


@pytest.mark.parametrize("way", WAYS)
def test_copies_of_photographs_are_found(photographs, way):
    """Of odd ones; even ones chose the distance."""
    copy, least = WAYS[way]
    found = 0
    for path in photographs[1:100:2]:
        with Image.open(path) as image:
            image = image.convert("RGB")
        forms = [
            form_of(path)[None],
            near_duplicates.small_form(copy(image))[None],
        ]
        found += near_duplicates.distances(*forms).item() < near_duplicates.NEAR
    assert found >= least


def test_no_photograph_is_a_copy_of_another(photographs):
    """499,500 pairs, and as many with mirror images."""
    forms = np.stack([form_of(path) for path in photographs])
    pairs = np.triu_indices(len(forms), 1)
    between = near_duplicates.distances(forms, forms)[pairs]
    assert len(between) == 499_500
    assert between.min() == pytest.approx(0.31, abs=0.01)
    np.testing.assert_array_equal(
        near_duplicates.originals(forms), np.arange(len(forms))
    )


def test_a_distance_is_that_of_its_definition():
    one, other = (near_duplicates.small_form(image) for image in pictures(2))
    mirrored = other.reshape(16, 16)[:, ::-1].ravel()
    assert one.mean() == pytest.approx(0, abs=1e-5)
    assert one.std() == pytest.approx(1, abs=1e-5)
    by_hand = [np.sqrt(np.mean((one - each) ** 2)) for each in (other, mirrored)]
    found = near_duplicates.distances(one[None], other[None])
    assert found.item() == pytest.approx(min(by_hand), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 500])
def test_an_original_is_the_first_of_its_copies(monkeypatch, rows):
    monkeypatch.setattr(near_duplicates, "ROWS", rows)
    forms = [near_duplicates.small_form(image) for image in pictures(3)]
    forms = np.stack([forms[place] for place in (0, 1, 0, 2, 1, 0)])
    assert near_duplicates.originals(forms).tolist() == [0, 1, 0, 3, 1, 0]


def test_each_picture_counts_once_and_it_is_said(caplog):
    images = [np.asarray(image) for image in pictures(6)]
    half = np.asarray(pictures(6)[4].resize((20, 20)))
    images += [images[0], images[2][:, ::-1], half]
    source = near_duplicates.readable_originals(as_source(images))
    assert [source.name(index) for index in range(len(source))] == [
        f"image {number}" for number in range(6)
    ]
    [record] = caplog.records
    said = record.getMessage()
    assert said.startswith("3 of 9 images are copies")
    assert "image 6 of image 0" in said
    caplog.clear()
    whole = as_source(images[:6])
    assert near_duplicates.readable_originals(whole) is whole
    assert not caplog.records
