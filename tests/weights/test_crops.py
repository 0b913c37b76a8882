"""One file has one crop of its images, whatever names it.

timm's values stand here as its configs have them; tests/parity asks timm for all.
"""

import dataclasses
import json
import warnings

import pytest

import imagepiece_jax
from configs import deit_s
from imagepiece_jax import Preprocessing, Pretrained
from imagepiece_jax.config.run import RunConfig
from imagepiece_jax.models import registry
from imagepiece_jax.models.config import MEAN, STD
from imagepiece_jax.training.initial_weights import InitialWeights
from tests.models import tiny
from tests.models.make import create_model
from tests.refused import refused

SIDE = 48
TINY = "deit_tiny_patch16_224"
AUGREG = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
SQUASHED = "vit_base_patch32_clip_384.openai_ft_in12k_in1k"
SEVERAL = "deit3_small_patch16_224"
HALF = (0.5, 0.5, 0.5)
# (name of the file, name that is given) of DeiT-Ti's weights
SPELLINGS = [
    (TINY, None),
    (f"{TINY}.fb_in1k", None),
    (f"{TINY}-a1311bcf", None),
    ("deit_ti", None),
    ("w", TINY),
    ("w", f"{TINY}.fb_in1k"),
    ("w", "deit_ti"),
    (TINY, "deit_ti"),
]
# What else nothing says of a file.
FACTS = {"num_heads": 3, "norm_eps": 1e-6, "gelu": "exact", "resize": "antialias"}
FACTS |= {"mean": HALF, "std": HALF, "rotary": False, "post_norm": False}
FACTS |= {"pool": "token"}


def written(folder, stem, name=TINY):
    """A weights file of a model of one block."""
    model = create_model(name, depth=1, image_size=SIDE, num_classes=5)
    return tiny.write(folder / f"{stem}.npz", tiny.fill(tiny.shapes(model)))


def full_config(**data):
    """DeiT-Ti of one block, by the recipe of its authors."""
    config = deit_s.get_config("deit_ti")
    config.model.depth = 1
    config.image_size = SIDE
    config.num_classes = 5
    config.data.update(data)
    return config


def in_training(path, workdir="nowhere", **data):
    """Evaluation's images in a run that starts from the weights at `path`."""
    config = full_config(**data)
    config.init.weights = str(path)
    run = RunConfig.from_config(config)
    taken = InitialWeights(run).crop(workdir)
    return dataclasses.replace(run.data, **taken).preprocessing(SIDE)


@pytest.mark.parametrize("stem, name", SPELLINGS)
def test_one_file_has_one_crop_by_every_name(tmp_path, stem, name):
    path = written(tmp_path, stem)
    expected = Preprocessing(SIDE, crop=0.9)
    vit = imagepiece_jax.load(path, name=name, mean=MEAN, std=STD)
    assert vit.preprocessing == expected
    saved = imagepiece_jax.save(tmp_path / "saved", vit)
    assert imagepiece_jax.load(saved).preprocessing == expected
    assert in_training(path) == expected


def test_a_model_of_ones_own_is_cropped_as_its_name_says():
    model = create_model(TINY, depth=1, image_size=SIDE, num_classes=5)
    variables = tiny.fill(tiny.shapes(model))
    for name, crop in ((TINY, 0.9), (f"{TINY}.fb_in1k", 0.9), (None, None)):
        vit = Pretrained(model, variables, name=name)
        assert vit.preprocessing == Preprocessing(SIDE, crop=crop)
    with pytest.warns(UserWarning, match="several crops: that of fb_in1k is taken"):
        Pretrained(model, variables, name=SEVERAL)


def test_an_ending_of_two_parts_hides_no_name():
    for ending in (".pth", ".pth.tar", ".safetensors"):
        assert registry.name_of_file(f"{AUGREG}{ending}") == AUGREG


def test_our_short_name_leaves_the_images_to_the_name_of_the_file(tmp_path):
    """All of them: mean and std, too."""
    vit = imagepiece_jax.load(written(tmp_path, AUGREG, AUGREG), name="deit_ti")
    assert (vit.model.config.mean, vit.model.config.std) == (HALF, HALF)
    assert vit.source.normalized
    with refused("mean", "std is None"):
        imagepiece_jax.load(tmp_path / f"{AUGREG}.npz", mean=HALF)
    with pytest.warns(UserWarning, match="how its images were normalized"):
        unknown = imagepiece_jax.load(written(tmp_path, "w"), name="deit_ti")
    assert unknown.model.config.mean == MEAN
    assert not unknown.source.normalized


def test_all_of_the_way_is_the_weights(tmp_path):
    """Not the share alone; a config with a crop of its own has all of its own.

    What it leaves open is as the weights have it.
    """
    known = Preprocessing(SIDE, 0.95, "squash", "bilinear")
    path = written(tmp_path, TINY)
    vit = dataclasses.replace(imagepiece_jax.load(path), preprocessing=known)
    path = imagepiece_jax.save(tmp_path / "saved", vit)
    assert imagepiece_jax.load(path).preprocessing == known
    assert in_training(path) == known
    images = Preprocessing(SIDE, crop=0.9, crop_mode="squash")
    squashed = dataclasses.replace(vit, preprocessing=images)
    path = imagepiece_jax.save(tmp_path / "squashed", squashed)
    assert imagepiece_jax.load(path, crop=0.8).preprocessing.crop_mode == "squash"
    own = in_training(path, eval_interpolation="bilinear")
    assert own == Preprocessing(SIDE, 0.9, "squash", "bilinear")
    assert in_training(path, eval_crop=0.8) == Preprocessing(SIDE, crop=0.8)
    assert registry.published_crop(SQUASHED) == {
        "crop": 0.95,
        "crop_mode": "squash",
        "interpolation": "bicubic",
    }


@pytest.mark.parametrize(
    "chosen", [{}, {"crop": 0.8}, {"crop_mode": "squash"}, {"resize": "none"}]
)
def test_a_saved_folder_is_cropped_as_it_was(tmp_path, chosen):
    """Also where that is a default, and the name would say something else."""
    images = Preprocessing(SIDE, **chosen)
    vit = imagepiece_jax.load(written(tmp_path, TINY))
    vit = dataclasses.replace(vit, preprocessing=images)
    path = imagepiece_jax.save(tmp_path / "saved", vit)
    assert imagepiece_jax.load(path).preprocessing == images
    of_timm = json.loads((path / "config.json").read_text())["pretrained_cfg"]
    assert in_training(path).resizes  # images of any size, whatever the weights had
    if chosen != {"resize": "none"}:
        assert of_timm["crop_pct"] == chosen.get("crop", 0.875)
        assert of_timm["crop_mode"] == chosen.get("crop_mode", "center")


def test_one_of_several_crops_is_said(tmp_path, capsys):
    """And how to choose: a tag, or the crop itself."""
    path = written(tmp_path, SEVERAL, SEVERAL)
    with pytest.warns(UserWarning, match=r"several crops: that of fb_in1k is taken"):
        vit = imagepiece_jax.load(path)
    assert vit.preprocessing.crop == 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = imagepiece_jax.load(path, name=f"{SEVERAL}.fb_in22k_ft_in1k")
        imagepiece_jax.load(path, crop=1.0)
    assert chosen.preprocessing.crop == 1.0
    assert in_training(path).crop == 0.9
    assert "several crops" in capsys.readouterr().out
    assert in_training(path, eval_crop=1.0).crop == 1.0
    assert capsys.readouterr().out == ""


def test_a_crop_that_nothing_says_is_said(tmp_path, capsys):
    path = written(tmp_path, "w")
    with pytest.warns(UserWarning, match="does not say how its images are cropped"):
        assert imagepiece_jax.load(path, **FACTS).preprocessing == Preprocessing(SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imagepiece_jax.load(path, crop=0.9, **FACTS)


def test_a_resumed_run_keeps_its_crop(tmp_path):
    """Weights that it started from may be gone; older runs wrote none into theirs."""
    for crop in (0.9, None):
        config = full_config(eval_crop=crop)
        config.init.weights = "gone.npz"
        folder = tmp_path / str(crop)
        (folder / "checkpoints" / "latest" / "1").mkdir(parents=True)
        (folder / "config.json").write_text(
            json.dumps(RunConfig.from_config(config).to_dict())
        )
        resumed = in_training("gone.npz", folder)
        assert resumed == Preprocessing(SIDE, crop=crop)
