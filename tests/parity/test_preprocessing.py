import contextlib
import dataclasses
import random

import numpy as np
import pytest
import timm
import transformers
from PIL import Image
from timm.data import create_transform
from transformers.image_processing_utils import get_size_dict
from transformers.models.auto import image_processing_auto

from imagepiece_jax.common.image_size import image_sides
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.errors import InputError
from imagepiece_jax.models import registry
from imagepiece_jax.weights import transformers_config
from imagepiece_jax.weights.description import parse_config
from tests.helpers.parity_record import public_weights

SHAPES = ((61, 43), (37, 37), (40, 901), (64, 117))
CROPS = [(33, 0.95, "center"), (28, 1.0, "center"), (31, 0.875, "squash")]
CROPS += [((24, 40), 0.9, "center"), ((31, 32), 0.875, "squash")]


def noise(height, width):
    """A noise image, so a shift by one pixel shows."""
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size, crop, mode", CROPS)
def test_crops_equal_timms(shape, interpolation, size, crop, mode):
    fields = {"crop_mode": mode, "interpolation": interpolation}
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    sides = image_sides(size)
    theirs = create_transform((3, *sides), crop_pct=crop, **fields, **plain)
    image = noise(*shape)
    expected = theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0) * 255
    ours = Preprocessing(size, crop=crop, **fields)
    np.testing.assert_allclose(ours(image), expected, atol=1e-3)


def test_every_name_has_timms_crop():
    """Also without a tag, if all weights of the architecture share a crop."""
    names = public_weights()
    for name in registry.public_models():
        with contextlib.suppress(InputError):
            names.append(registry.model_config(name).name)
    for name in names:
        theirs = timm.get_pretrained_cfg(name.removesuffix("."))
        ours = registry.model_config(name)
        assert (ours.mean, ours.std) == (theirs.mean, theirs.std)
        crop = ours.preprocessing
        for field in ("crop_mode", "interpolation"):
            assert getattr(crop, field) == getattr(theirs, field)
        assert crop.crop == theirs.crop_pct


# Gray levels: torchvision keeps 15 bits of a filter's weights, Pillow 22, and each of
# two passes rounds. DINOv3's processor does not round.
ROUNDING = 2


@pytest.mark.parametrize("name", transformers_config.PROCESSOR_DEFAULTS)
def test_a_processors_missing_fields_have_transformers_defaults(name):
    processor = getattr(transformers, f"{name}ImageProcessor")()
    read = transformers_config.PROCESSOR_DEFAULTS[name]
    for field, ours in read.items():
        theirs = getattr(processor, field)
        if field in ("size", "crop_size") and ours is not None:
            ours = get_size_dict(ours) if field == "crop_size" else ours
            theirs = {k: v for k, v in dict(theirs).items() if v is not None}
        assert ours == (False if theirs is None and ours is False else theirs), field
    assert {*processor.valid_kwargs.__annotations__} == {*read} | UNREAD


# Fields of image processors that change no pixel of an RGB image; pad_size belongs to
# do_pad, which is refused.
UNREAD = {"do_convert_rgb", "pad_size", "data_format", "input_data_format", "device"}
UNREAD |= {"return_tensors", "disable_grouping", "image_seq_length"}


def test_a_model_type_without_a_processors_name_has_transformers_processor():
    names = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES
    for kind, model in transformers_config.MODEL_TYPES.items():
        kind = kind.removesuffix("_vision_model").removesuffix("_with_registers")
        assert names[kind]["torchvision"] == f"{model.processor_name}ImageProcessor"


# Fields of random files; size is drawn, too.
CHOICES = {
    "crop_size": (24, {"height": 24, "width": 24}, [31, 31]),
    "do_center_crop": (True, False, None),
    "do_resize": (True, True, False),
    "resample": (1, 2, 3),
    "do_rescale": (True, True, False),
    "rescale_factor": (1 / 255, 1 / 127.5),
    "do_normalize": (True, False, None),
    "image_mean": (0.5, [0.1, 0.2, 0.3], [0.4]),
    "do_pad": (False, None, True),
    "default_to_square": (True, False, None),
    "do_convert_rgb": (True, None),
    "pad_size": ({"height": 40, "width": 40},),
    "crop_pct": (0.9,),
    "use_square_size": (True, False),
}
SIZES = (24, [31, 31], {"height": 33, "width": 33}, {"shortest_edge": 35})
SIZES += ({"shortest_edge": 24, "longest_edge": 48}, {"height": 24, "width": 25})
SIZES += ({"longest_edge": 24}, {"max_height": 24, "max_width": 24}, None)


def test_random_files_give_transformers_pixels_or_are_refused():
    rng = random.Random(0)
    num_equal = 0
    num_refused = 0
    for _ in range(300):
        name = rng.choice([*transformers_config.PROCESSOR_DEFAULTS])
        file = {"image_processor_type": f"{name}ImageProcessor"}
        if size := rng.choice(SIZES):
            file["size"] = size
        for field in rng.sample([*CHOICES], rng.randint(0, 4)):
            file[field] = rng.choice(CHOICES[field])
        image = noise(rng.randint(17, 150), rng.randint(17, 150))
        try:
            described = parse_config({"model_type": "vit"}, file)
        except InputError:
            num_refused += 1
            continue
        processor = getattr(transformers, f"{name}ImageProcessor").from_dict(file)
        outputs = processor(Image.fromarray(image), return_tensors="np").pixel_values[0]
        side = outputs.shape[1]
        mean = described.config.mean
        std = described.config.std
        if not described.config.preprocessing.resizes:
            side = image.shape[:2]
        ours = dataclasses.replace(described.config.preprocessing, image_size=side)
        theirs = 255 * (outputs.transpose(1, 2, 0) * np.array(std) + np.array(mean))
        assert np.abs(ours(image) - theirs).max() <= ROUNDING + 1e-3, file
        num_equal += 1
    assert num_equal > 50 and num_refused > 50
