"""Pixels of odd images, as OpenCLIP and transformers make them by a tower's JSON.

python -m tools.client_pixels writes tests/fixtures/client_pixels.npz, which has for
each case the JSON and the pixels of `pictures()`, [images, SIDE, SIDE, 3]. It needs
torch, open_clip and transformers.
"""

import dataclasses
import json
import pathlib
import types

import numpy as np
from PIL import Image

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.exporters import tower
from imagepiece_jax.models import registry

ROOT = pathlib.Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "fixtures" / "client_pixels.npz"
SIDE = 12
# The first and the last are longer than preprocessing resizes. Most lose an odd number
# of pixels by the crop, or have a rounded side.
SIZES = ((1, 700), (33, 31), (225, 224), (427, 640), (1200, 97), (61, 48), (50, 333))
SIZES += ((113, 58), (17, 240), (1000, 3))
CROPPED = {"crop": 0.875, "rule": "transformers"}
SQUASHED = {"crop": 1.0, "crop_mode": "squash", "interpolation": "bilinear"}
# {case: (library, fields of a Preprocessing)}
CASES = {
    "whole": ("open_clip", {"crop": 1.0}),
    "squashed": ("open_clip", SQUASHED),
    "cropped": ("transformers", CROPPED),
    "bilinear": ("transformers", CROPPED | {"crop": 1.0, "interpolation": "bilinear"}),
    "cropped after squashing": ("transformers", CROPPED | {"crop_mode": "squash"}),
}


def odd_pictures():
    """Images of SIZES, [H, W, 3] uint8: waves of five to nine periods."""
    return [paint_waves(*size) for size in SIZES]


def paint_waves(height, width):
    periods = np.array([5, 7, 9])
    rows = np.abs(np.arange(height)[:, None] * 2 * periods % (2 * height) - height)
    columns = np.abs(np.arange(width)[:, None] * 2 * periods % (2 * width) - width)
    both = rows[:, None] * 127 // height + columns[None] * 127 // width
    return both.astype(np.uint8)


def case_preprocessing(case):
    """The Preprocessing of a case."""
    return Preprocessing(SIDE, **CASES[case][1])


def case_fields(case):
    """The JSON of a case; a model gives only its mean and deviation."""
    config = registry.model_config("deit_s")
    config = dataclasses.replace(config, preprocessing=case_preprocessing(case))
    vit = types.SimpleNamespace(preprocessing=config.preprocessing, config=config)
    if CASES[case][0] == "open_clip":
        return tower.open_clip_fields(vit)
    return tower.processor_fields(vit)


def case_transform(case):
    """A library's function from a PIL image to normalized pixels, [3, SIDE, SIDE]."""
    content = case_fields(case)
    if CASES[case][0] == "open_clip":
        from open_clip import transform

        config = transform.PreprocessCfg(**content)
        return lambda image: transform.image_transform_v2(config, False)(image).numpy()
    import transformers

    processor = transformers.CLIPImageProcessor.from_dict(content)
    return lambda image: processor(image, return_tensors="np").pixel_values[0]


def compute_pixels(case):
    """The pixels of a case, uint8."""
    prepare = case_transform(case)
    normalized = [prepare(Image.fromarray(image)) for image in odd_pictures()]
    config = registry.model_config("deit_s")
    pixels = np.stack(normalized).transpose(0, 2, 3, 1) * config.std + config.mean
    return np.rint(255 * pixels).astype(np.uint8)


if __name__ == "__main__":
    contents = {case: case_fields(case) for case in CASES}
    arrays = {case: compute_pixels(case) for case in CASES}
    np.savez_compressed(FILE, json=json.dumps(contents), **arrays)
    print(f"{FILE}: {FILE.stat().st_size} bytes")
