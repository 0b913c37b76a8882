"""A recovery's split of images, and batches of held-out images."""

import numpy as np
import pytest
from PIL import Image

from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.errors import InputError
from imagepiece_jax.recovery import recovery_images
from imagepiece_jax.recovery.recovery_images import read_image_batches
from tests.helpers.picture_files import write_images
from tests.helpers.recovery_trials import noise, source_names, split_only


def test_the_last_batch_of_an_evaluation_is_padded():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), np.uint8)
    batches = read_image_batches(ArraySource(pixels), Preprocessing(6), batch_size=8)
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    assert [batch["mask"].sum() for batch in batches] == [8, 3]
    assert sorted(map(bytes, images)) == sorted(map(bytes, pixels))
    assert batches[0]["image"].shape == batches[1]["image"].shape
    for batch in batches:
        mask = batch["mask"]
        np.testing.assert_array_equal(
            batch["image"][mask], pixels[batch["index"][mask]]
        )


def test_an_image_that_does_not_fit_is_named():
    pixels = np.zeros((3, 6, 6, 3), np.uint8)
    preprocessing = Preprocessing(8, resize="none")
    with pytest.raises(InputError, match="image 0: the image has 6x6 pixels"):
        read_image_batches(ArraySource(pixels), preprocessing, batch_size=8)


# {case: (scenes of images, held-out scenes or 0 for single images, held-out images)}
SCENES = {
    "all different": (np.arange(100), 20, 20),
    "bursts": (np.repeat(np.arange(30), 8), 10, 80),
    "a few bursts": (np.repeat(np.arange(15), 10), 5, 50),
    "seven bursts": (np.repeat(np.arange(7), 8), 5, 40),
    "too few bursts": (np.repeat(np.arange(4), 30), 0, 24),
    "bursts that leave no batch": (np.repeat(np.arange(5), 7), 0, 16),
    "a fixed camera": (np.concatenate([np.zeros(180, int), np.arange(1, 21)]), 0, 40),
    "some of a fixed camera": (
        np.concatenate([np.zeros(90, int), np.arange(1, 111)]),
        40,
        40,
    ),
    "very long bursts": (np.repeat(np.arange(100), 60), 16, 500),
}


def split_scenes(monkeypatch, scenes, learned=""):
    """Split images of these scenes. The digest of image 7 is 00000007."""
    digests = [f"{image:08}" for image in range(len(scenes))]
    fake_scenes = lambda source: (source, scenes, digests)  # noqa: E731
    monkeypatch.setattr(recovery_images, "read_scenes", fake_scenes)
    source = ArraySource(np.zeros((len(scenes), 1, 1, 3), np.uint8))
    return recovery_images.split_images(source, 16, learned)


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_is_learned_or_held_out(monkeypatch, caplog, name):
    scenes, num_scenes, num_images = SCENES[name]
    parts = split_scenes(monkeypatch, scenes)
    assert (parts.num_scenes, len(parts.held_out)) == (num_scenes, num_images)
    assert ("too good" in caplog.text) == (num_scenes == 0)
    learned = parts.training.indices
    held_out = parts.held_out.indices
    assert not {*learned} & {*held_out}
    if num_images < recovery_images.MAX_HELD_OUT:
        assert len(learned) + len(held_out) == len(scenes)
    if num_scenes:
        assert not {*scenes[learned]} & {*scenes[held_out]}
        np.testing.assert_array_equal(parts.scenes, scenes[held_out])


def test_scenes_of_earlier_learned_images_are_not_held_out(monkeypatch):
    """One learned image of a scene suffices, at any place in the list."""
    scenes = np.repeat(np.arange(60), 2)
    parts = split_scenes(monkeypatch, scenes)
    assert parts.digests == "".join(f"{image:08}" for image in parts.training.indices)
    first = {*scenes[parts.held_out.indices]}
    learned = "".join(f"{image:08}" for image in range(0, 60, 2))  # scenes 0 to 29
    second = split_scenes(monkeypatch, scenes, learned)
    held_out = {*scenes[second.held_out.indices]}
    assert first & {*range(30)} and not held_out & {*range(30)}
    assert len(held_out) >= 5 and len(second.held_out) >= 24
    all_learned = "".join(f"{image:08}" for image in range(0, 120, 2))
    assert split_scenes(monkeypatch, scenes, all_learned).num_scenes == 0


def test_damaged_images_are_left_out(vit, tmp_path, monkeypatch):
    first, *_ = write_images(tmp_path, noise(49))
    first.write_bytes(b"no image")
    learned, held_out = split_only(monkeypatch, vit, tmp_path)
    assert (len(learned), len(held_out)) == (32, 16)


@pytest.mark.parametrize("kind", ["csv", "folders", "limited"])
def test_a_file_named_twice_is_learned_or_held_out(vit, tmp_path, monkeypatch, kind):
    count = 30
    write_images(tmp_path, noise(count))
    images = [tmp_path, tmp_path / ".." / tmp_path.name]
    if kind == "csv":
        rows = [f"{number % count:02}.png,0,train" for number in range(2 * count)]
        table = tmp_path / "table.csv"
        table.write_text("\n".join(["filename,label,split", *rows]))
        images = f"csv:{table}"
    if kind == "limited":
        images = as_source(images).evenly_spaced(2 * count - 1)
    parts = split_only(monkeypatch, vit, images)
    learned, held_out = ({name[-6:] for name in source_names(part)} for part in parts)
    assert not learned & held_out
    assert len(learned | held_out) == count


def test_copies_of_held_out_images_are_not_learned(vit, tmp_path, monkeypatch):
    """Copies have the same bytes, another size or another encoding. All are used."""
    for number, small in enumerate(noise(30, side=5)):
        picture = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(tmp_path / f"{number:02}.png")
        picture.save(tmp_path / f"{number:02}-again.png")
        picture.save(tmp_path / f"{number:02}.jpg", quality=60)
        picture.resize((40, 40)).save(tmp_path / f"{number:02}-small.webp")
    parts = split_only(monkeypatch, vit, tmp_path)
    start = len(str(tmp_path)) + 1
    learned, held_out = (
        {x[start : start + 2] for x in source_names(part)} for part in parts
    )
    assert not learned & held_out
    assert len(learned | held_out) == 30
    assert sum(map(len, parts)) == 120


def test_at_most_max_images_are_read(vit, shown, monkeypatch, caplog):
    monkeypatch.setattr(recovery_images, "MAX_IMAGES", 40)
    learned, held_out = split_only(monkeypatch, vit, noise(60))
    assert len(learned) + len(held_out) == 40
    assert "40 of the 60 images are taken" in caplog.text
