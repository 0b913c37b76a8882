"""Batches of the images that a recovery holds out."""

import numpy as np
import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.errors import InputError
from imagepiece_jax.recover import recovery_images
from imagepiece_jax.recover.recovery_images import evaluation_batches


def test_the_last_batch_of_an_evaluation_is_padded():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), np.uint8)
    batches = evaluation_batches(ArraySource(pixels), Preprocessing(6), batch_size=8)
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    assert [batch["mask"].sum() for batch in batches] == [8, 3]
    assert sorted(map(bytes, images)) == sorted(map(bytes, pixels))
    assert batches[0]["image"].shape == batches[1]["image"].shape
    for batch in batches:
        own = batch["mask"]
        np.testing.assert_array_equal(batch["image"][own], pixels[batch["index"][own]])


def test_an_image_that_does_not_fit_is_named():
    pixels = np.zeros((3, 6, 6, 3), np.uint8)
    preprocessing = Preprocessing(8, resize="none")
    with pytest.raises(InputError, match="image 0: the image has 6x6 pixels"):
        evaluation_batches(ArraySource(pixels), preprocessing, batch_size=8)


# scenes of the images: (scenes held out, images held out); 0 scenes: single images
SCENES = {
    "all different": (np.arange(100), 20, 20),
    "bursts": (np.repeat(np.arange(30), 8), 10, 80),
    "a few bursts": (np.repeat(np.arange(15), 10), 5, 50),
    "too few bursts": (np.repeat(np.arange(14), 10), 0, 28),
    "a fixed camera": (np.concatenate([np.zeros(180, int), np.arange(1, 21)]), 0, 40),
    "some of a fixed camera": (
        np.concatenate([np.zeros(90, int), np.arange(1, 111)]),
        40,
        40,
    ),
    "very long bursts": (np.repeat(np.arange(100), 60), 16, 500),
}


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_is_learned_from_or_held_out(monkeypatch, caplog, name):
    scenes, num_scenes, num_images = SCENES[name]
    monkeypatch.setattr(
        recovery_images, "readable_scenes", lambda source: (source, scenes)
    )
    source = ArraySource(np.zeros((len(scenes), 1, 1, 3), np.uint8))
    parts = recovery_images.divided(source, batch_size=16)
    assert (parts.num_scenes, len(parts.held_out)) == (num_scenes, num_images)
    assert ("too good" in caplog.text) == (num_scenes == 0)
    learned = parts.learned.indices
    held_out = parts.held_out.indices
    assert not {*learned} & {*held_out}
    if num_images < recovery_images.MAX_HELD_OUT:
        assert len(learned) + len(held_out) == len(scenes)
    if num_scenes:
        assert not {*scenes[learned]} & {*scenes[held_out]}
        np.testing.assert_array_equal(parts.scenes, scenes[held_out])
