"""Crops of evaluation, pixel by pixel, against timm's and transformers' own."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.pretrained import hub_configs

for package in ("torch", "timm", "transformers"):
    pytest.importorskip(package)

import transformers  # noqa: E402
from timm.data import create_transform  # noqa: E402

SHAPES = ((61, 43), (43, 61), (300, 200), (37, 37), (40, 901))


def picture(height, width):
    noise = np.random.default_rng(height).integers(0, 256, (height // 8 + 1, 9, 3))
    image = Image.fromarray(noise.astype(np.uint8)).resize((width, height))
    return np.asarray(image)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "size, crop, mode",
    [
        (32, 0.9, "center"),
        (33, 0.95, "center"),
        (28, 1.0, "center"),
        (32, 1.0, "squash"),
        (31, 0.875, "squash"),
    ],
)
def test_timms_crops(shape, interpolation, size, crop, mode):
    theirs = create_transform(
        (3, size, size),
        crop_pct=crop,
        crop_mode=mode,
        interpolation=interpolation,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    image = picture(*shape)
    wanted = theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0) * 255
    ours = Preprocessing(size, crop=crop, crop_mode=mode, interpolation=interpolation)
    np.testing.assert_allclose(ours(image), wanted, atol=1e-3)


SQUARE = {"height": 32, "width": 32}
PROCESSORS = {
    "vit": transformers.ViTImageProcessorPil(size=SQUARE),
    "deit": transformers.DeiTImageProcessorPil(
        size={"height": 37, "width": 37}, crop_size=SQUARE
    ),
    "dinov2": transformers.BitImageProcessorPil(
        size={"shortest_edge": 36}, crop_size=SQUARE, resample=3
    ),
    "clip_vision_model": transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SQUARE
    ),
    "siglip_vision_model": transformers.SiglipImageProcessorPil(size=SQUARE),
}


# Where half a pixel is left, theirs goes to the other side of torchvision's.
WHOLE = ((300, 200), (37, 37), (40, 900), (60, 40))


@pytest.mark.parametrize("shape", WHOLE)
@pytest.mark.parametrize("kind", PROCESSORS)
def test_transformers_processors(shape, kind):
    processor, image = PROCESSORS[kind], picture(*shape)
    found = hub_configs.parse({"model_type": kind}, processor.to_dict())
    pixels = processor(image, return_tensors="np", do_normalize=False).pixel_values[0]
    wanted = pixels.transpose(1, 2, 0) * 255
    ours = Preprocessing(32, **found.crop)(image)
    np.testing.assert_allclose(ours, wanted, atol=1e-3)
