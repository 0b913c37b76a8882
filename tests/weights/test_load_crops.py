"""A file has one crop under every name.

Values are from timm's configs; tests/parity asks timm for all.
"""

import dataclasses

import pytest

import imagepiece_jax
from configs import deit_s
from imagepiece_jax import Preprocessing, Pretrained
from imagepiece_jax.models import registry
from imagepiece_jax.models.create import create_model
from imagepiece_jax.training.config import RunConfig
from imagepiece_jax.training.initial_weights import InitialWeights
from tests.helpers import named_models, tiny_vit

SIDE = 48
TINY = "deit_tiny_patch16_224"
SQUASHED = "vit_base_patch32_clip_384.openai_ft_in12k_in1k"
CONFIG = named_models.config(TINY, depth=1, image_size=SIDE, num_classes=5)
SPELLINGS = (TINY, f"{TINY}.fb_in1k", f"{TINY}-a1311bcf", "deit_ti")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    path = tiny_vit.write(folder / "w.npz", tiny_vit.variables(create_model(CONFIG)))
    return imagepiece_jax.load(path, config=CONFIG)


def training_images(vit, **data):
    """Evaluation's image preparation in a run that starts from a Pretrained."""
    config = deit_s.get_config("deit_ti")
    config.model.depth = 1
    config.image_size = SIDE
    config.num_classes = 5
    config.data.update(data)
    config.init.weights = "w.npz"
    initial = InitialWeights(RunConfig.from_config(config), "nowhere")
    initial.initial_weights = vit  # in place of the loaded weights
    return initial.complete_config().vit_config.preprocessing


@pytest.mark.parametrize("stem", SPELLINGS)
def test_every_spelling_of_a_name_has_the_same_crop(tmp_path, stem):
    path = tmp_path / f"{stem}.npz"
    path.touch()  # no tensor is read
    assert imagepiece_jax.read_config(path).preprocessing == Preprocessing(
        224, crop=0.9
    )
    path.rename(tmp_path / f"{stem}.pth.tar")
    config = imagepiece_jax.read_config(tmp_path / f"{stem}.pth.tar")
    assert config.preprocessing == Preprocessing(224, crop=0.9)


def test_a_model_has_its_configs_crop(vit):
    squashed = Preprocessing(384, 0.95, "squash", "bicubic")
    assert registry.model_config(SQUASHED).preprocessing == squashed
    assert vit.preprocessing == Preprocessing(SIDE, crop=0.9)
    assert Pretrained(vit.model, vit.variables).preprocessing == vit.preprocessing
    path = vit.origin.path
    assert imagepiece_jax.load(path, config=CONFIG, crop=0.8).preprocessing.crop == 0.8


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"resize": "none"},
        {"crop": 0.95, "crop_mode": "squash", "interpolation": "bilinear"},
    ],
)
def test_a_saved_folder_keeps_its_crop(tmp_path, vit, chosen):
    """Also a default crop, where the name has another."""
    images = Preprocessing(SIDE, **chosen)
    changed = vit.with_preprocessing(**vars(images))
    path = imagepiece_jax.save(changed, tmp_path / "saved")
    loaded = imagepiece_jax.load(path)
    assert loaded.preprocessing == loaded.config.preprocessing == images
    if "crop" in chosen:
        recropped = imagepiece_jax.load(path, crop=0.7).preprocessing
        assert recropped == dataclasses.replace(images, crop=0.7)
    assert training_images(loaded).resizes  # images have any size


def test_a_run_takes_its_weights_crop_unless_it_has_its_own(vit):
    fields = {"crop": 0.95, "crop_mode": "squash", "interpolation": "bilinear"}
    config = CONFIG.with_preprocessing(**fields)
    vit_squashed = imagepiece_jax.load(vit.origin.path, config=config)
    assert training_images(vit_squashed) == config.preprocessing
    assert training_images(vit_squashed, eval_crop=0.8) == Preprocessing(SIDE, crop=0.8)
