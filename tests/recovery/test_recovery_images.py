import numpy as np
import pytest

from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.recovery import recovery_images
from imagepiece_jax.recovery.recovery_images import read_image_batches
from tests.helpers.picture_files import write_images
from tests.helpers.recovery_trials import noise


def test_the_last_batch_of_an_evaluation_is_padded():
    source = ArraySource(noise(11))
    batches = read_image_batches(source, Preprocessing(20), batch_size=8)
    assert [len(batch["image"][0]) for batch in batches] == [8, 8]
    indices = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    assert sorted(indices) == [*range(11)]


@pytest.mark.parametrize("count, held_out", [(32, 16), (103, 20), (4000, 500)])
def test_stretches_of_neighboring_images_are_held_out(count, held_out):
    pixels = np.arange(count, dtype=np.uint16).view(np.uint8).reshape(count, 1, 2, 1)
    source = ArraySource(np.repeat(pixels, 3, axis=3))
    parts = recovery_images.split_images(source, 16)
    assert (len(parts.held_out), len(parts.training)) == (held_out, count - held_out)
    indices = parts.held_out.indices
    assert not {*indices} & {*parts.training.indices}
    stretches = np.cumsum(np.diff(indices, prepend=-2) > 1) - 1
    assert stretches[-1] == 15
    np.testing.assert_array_equal(parts.stretch_of_image, stretches)


def test_damaged_images_and_copies_are_left_out(tmp_path):
    first, *_ = write_images(tmp_path, noise(49))
    first.write_bytes(b"no image")
    source = as_source([tmp_path, tmp_path / ".." / tmp_path.name])
    parts = recovery_images.split_images(source, 8)
    training, held_out = (
        {part.image_name(index)[-6:] for index in range(len(part))}
        for part in (parts.training, parts.held_out)
    )
    assert (len(training), len(held_out), len(training | held_out)) == (32, 16, 48)


def test_at_most_max_images_are_read(monkeypatch, caplog):
    monkeypatch.setattr(recovery_images, "MAX_IMAGES", 40)
    parts = recovery_images.split_images(ArraySource(noise(60)), 8)
    assert len(parts.training) + len(parts.held_out) == 40
    assert "40 of the 60 images are taken" in caplog.text
