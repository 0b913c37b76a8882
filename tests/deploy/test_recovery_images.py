"""The images of a recovery: every image once an epoch, and what replaces a lost one."""

import threading

import numpy as np
import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import Source
from imagepiece_jax.deploy.pictures import ArraySource
from imagepiece_jax.deploy.recover import recovery_images
from imagepiece_jax.deploy.recover.recovery_images import Crops, evaluation_batches
from imagepiece_jax.errors import InputError
from tests.input.noise import Noise


class Numbered(Source):
    """Images of one pixel, whose value is their number."""

    def __init__(self, length):
        super().__init__(num_classes=0)
        self.length = length

    def __len__(self):
        return self.length

    def read(self, index):
        return np.full((1, 1, 3), index, np.uint8), -1

    def name(self, index):
        return f"image {index}"


def first_value(image, rng):
    return image


def numbers(crops, steps):
    """The images of the batches of some steps, in order of positions."""
    batches = []
    for batch in crops.batches(steps):
        flat = batch[..., 0, 0, 0].ravel()
        places = recovery_images.parallel.placement().positions(len(flat))[:, 0]
        ordered = np.empty_like(flat)
        ordered[places.ravel()] = flat
        batches.append(ordered)
    return np.concatenate(batches).tolist()


def test_every_image_comes_once_before_any_comes_again():
    crops = Crops(Numbered(20), first_value, batch_size=8, seed=3)
    seen = numbers(crops, range(5))
    assert len(seen) == 40
    assert sorted(seen[:20]) == sorted(seen[20:]) == [*range(20)]
    assert seen[:20] != seen[20:] != [*range(20)]
    assert numbers(Crops(Numbered(20), first_value, 8, seed=4), range(5)) != seen
    assert numbers(crops, range(2, 5)) == seen[16:]


def test_a_draw_is_of_its_seed_step_and_position(monkeypatch):
    def drawn(image, rng):
        return rng.integers(0, 256, (1, 1, 3), np.uint8)

    crops = Crops(Numbered(20), drawn, batch_size=8, seed=3)
    batches = [*crops.batches(range(4))]
    flat = {batch.tobytes() for batch in batches}
    assert len(flat) == 4
    monkeypatch.setattr(recovery_images, "THREADS", 7)
    monkeypatch.setattr(recovery_images, "AHEAD", 0)
    again = [*crops.batches(range(4))]
    np.testing.assert_array_equal(again, batches)
    draws = {crops.crop(*place).tobytes() for place in [(0, 0), (0, 1), (1, 0)]}
    other = Crops(Numbered(20), drawn, batch_size=8, seed=4).crop(0, 0).tobytes()
    assert len(draws | {other}) == 4


def test_an_image_that_was_lost_is_named_and_the_next_takes_its_place(caplog):
    order = recovery_images.epoch_order(0, 0, 300).tolist()
    lost = order[5]
    source = Noise(300, {lost}, size=4)
    crops = Crops(source, first_value, batch_size=8, seed=0)
    found = crops.crop(0, 5)
    np.testing.assert_array_equal(found, source.read(order[6])[0])
    assert f"{lost}.jpg cannot be read" in caplog.text
    assert "the next readable image takes its place" in caplog.text
    assert [*source.unreadable] == [f"{lost}.jpg"]


def test_images_that_are_all_lost_end_the_recovery():
    crops = Crops(Noise(30, range(30)), first_value, batch_size=8, seed=0)
    with pytest.raises(InputError, match="of 30 images cannot be read"):
        next(crops.batches(range(4)))


def test_an_end_before_the_last_step_ends_the_threads():
    before = threading.active_count()
    crops = Crops(Numbered(20), first_value, batch_size=8, seed=0)
    batches = crops.batches(range(9))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_the_last_batch_of_an_evaluation_is_padded():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), np.uint8)
    batches = evaluation_batches(ArraySource(pixels), Preprocessing(6), batch_size=8)
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    masks = [batch["mask"].sum() for batch in batches]
    assert masks == [8, 3]
    assert sorted(map(bytes, images)) == sorted(map(bytes, pixels))
    assert batches[0]["image"].shape == batches[1]["image"].shape
    for batch in batches:
        own = batch["mask"]
        named = pixels[batch["index"][own]]
        np.testing.assert_array_equal(batch["image"][own], named)


def test_an_image_that_does_not_fit_is_named():
    pixels = np.zeros((3, 6, 6, 3), np.uint8)
    preprocessing = Preprocessing(8, resize="none")
    with pytest.raises(InputError, match="image 0: the image has 6x6 pixels"):
        evaluation_batches(ArraySource(pixels), preprocessing, batch_size=8)
