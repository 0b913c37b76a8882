"""Batches of the images that a recovery holds out."""

import numpy as np
import pytest

from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.errors import InputError
from imagepiece_jax.recovery import recovery_images
from imagepiece_jax.recovery.recovery_images import evaluation_batches


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


def divided(monkeypatch, scenes, learned=""):
    """Images of these scenes, divided; the digest of image 7 is 00000007."""
    digests = [f"{image:08}" for image in range(len(scenes))]
    found = lambda source: (source, scenes, digests)  # noqa: E731
    monkeypatch.setattr(recovery_images, "readable_scenes", found)
    source = ArraySource(np.zeros((len(scenes), 1, 1, 3), np.uint8))
    return recovery_images.split_images(source, 16, learned)


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_is_learned_from_or_held_out(monkeypatch, caplog, name):
    scenes, num_scenes, num_images = SCENES[name]
    parts = divided(monkeypatch, scenes)
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


def test_scenes_that_were_learned_from_are_not_held_out(monkeypatch):
    """Also where only one of their images was, in another place of the list."""
    scenes = np.repeat(np.arange(60), 2)
    parts = divided(monkeypatch, scenes)
    assert parts.digests == "".join(f"{image:08}" for image in parts.learned.indices)
    first = {*scenes[parts.held_out.indices]}
    seen = "".join(f"{image:08}" for image in range(0, 60, 2))  # scenes 0 to 29
    again = divided(monkeypatch, scenes, seen)
    held_out = {*scenes[again.held_out.indices]}
    assert first & {*range(30)} and not held_out & {*range(30)}
    assert len(held_out) >= 5 and len(again.held_out) >= 24
    every = "".join(f"{image:08}" for image in range(0, 120, 2))
    assert divided(monkeypatch, scenes, every).num_scenes == 0
