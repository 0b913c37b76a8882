"""Pixels by clients that follow a tower's JSON files, against the model's.

tests/fixtures/client_pixels.npz has OpenCLIP's and transformers' pixels of odd images.
"""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.data import decode
from imagepiece_jax.exporters import tower
from imagepiece_jax.exporters.export import export
from tests.helpers import tiny_vit
from tests.helpers.onnx_runs import open_session
from tools import client_pixels

CASES = client_pixels.CASES
# Gray levels: torchvision keeps 15 bits of a filter's weights, Pillow 22.
ROUNDING = 2


@pytest.fixture(scope="module")
def theirs():
    with np.load(client_pixels.FILE) as file:
        return dict(file)


def largest_gaps(case, theirs, **changes):
    """The largest difference of each image, in gray levels."""
    prepare = dataclasses.replace(client_pixels.case_preprocessing(case), **changes)
    ours = np.stack([prepare(image) for image in client_pixels.odd_pictures()])
    return np.abs(ours.astype(int) - theirs[case]).max(axis=(1, 2, 3))


@pytest.mark.parametrize("case", CASES)
def test_json_files_give_the_models_pixels(case, theirs):
    assert json.loads(str(theirs["json"]))[case] == client_pixels.case_fields(case)
    assert largest_gaps(case, theirs).max() <= ROUNDING
    # Another filter shows in every image, except images of the result's size, and a
    # crop that starts a pixel later shows in many.
    prepare = client_pixels.case_preprocessing(case)
    (other,) = {"bicubic", "bilinear"} - {prepare.interpolation}
    assert (largest_gaps(case, theirs, interpolation=other) > 2 * ROUNDING).mean() > 0.8
    if prepare.crop_mode == "center":
        (other,) = {"timm", "transformers"} - {prepare.rule}
        assert (largest_gaps(case, theirs, rule=other) > 5 * ROUNDING).sum() >= 2


def resize_like_immich(image, fields):
    """Pixels by preprocess_cfg.json, written from immich's contract.

    A PIL image -> [size, size, 3] uint8. Sizes and offsets are rounded down.
    """
    size = fields["size"][0]
    filter = Image.Resampling[fields["interpolation"].upper()]
    image = image.convert("RGB")
    if fields["resize_mode"] == "squash":
        return np.asarray(image.resize((size, size), filter))
    ratio = max(image.size) / min(image.size)
    width, height = (int(ratio * size), size)
    if image.width < image.height:
        width, height = height, width
    image = image.resize((width, height), filter)
    left = (width - size) // 2
    top = (height - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


def odd_files(folder):
    """PNG files of odd sizes, some of them gray, with a palette, or transparent."""
    files = []
    modes = ("RGB", "L", "P", "RGBA", "RGB", "1")
    sizes = client_pixels.SIZES[1:7]
    for number, (mode, size) in enumerate(zip(modes, sizes, strict=True)):
        file = folder / f"{number}.png"
        image = Image.fromarray(client_pixels.paint_waves(*size)).convert(mode)
        if mode == "RGBA":
            image.putalpha(100)
        image.save(file)
        files.append(file)
    return files


def small_tower(reduction=None, **fields):
    """A tower of SIDE pixels with immich's and transformers' crop."""
    vit = tiny_vit.pretrained(reduction, image_size=client_pixels.SIDE, num_classes=0)
    return vit.with_preprocessing(rule="transformers", **fields)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_immich_gets_the_models_pixels(tmp_path, mode, interpolation):
    vit = small_tower(crop=1.0, crop_mode=mode, interpolation=interpolation)
    fields = tower.open_clip_fields(vit)
    for file in odd_files(tmp_path):
        with Image.open(file) as image:
            theirs = resize_like_immich(image, fields)
        ours = vit.preprocessing(decode.decode_image(file, file.name))
        # Pillow resizes columns first in some images.
        assert np.abs(ours.astype(int) - theirs).max() <= 3 * ROUNDING


@pytest.mark.parametrize("reduction", [None, "tome:r=1"])
@pytest.mark.parametrize("pixels", [False, True])
def test_immichs_vectors_equal_features(tmp_path, pixels, reduction):
    vit = small_tower(reduction, crop=1.0)
    graph = export(vit, tmp_path / "out", layout="immich", pixels=pixels)
    fields = json.loads((graph.parent / "preprocess_cfg.json").read_text())
    session = open_session(graph)
    files = odd_files(tmp_path)
    vectors = []
    for file in files:
        with Image.open(file) as image:
            array = resize_like_immich(image, fields)
        if not pixels:
            array = (np.float32(array) / 255 - fields["mean"]) / fields["std"]
            array = np.float32(array).transpose(2, 0, 1)
        vectors.append(session.run(None, {"image": array[None]})[0][0])
    expected = np.asarray(imagepiece_jax.features(vit, files).pooled)
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-5)
