import numpy as np
import pytest

from imagepiece_jax.data.pictures import as_source
from imagepiece_jax.data.preprocessing import Preprocessing
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.recovery import recovery_images
from imagepiece_jax.recovery.recovery_images import read_image_batches
from tests.helpers.picture_files import write_images
from tests.helpers.recovery_trials import noise, source_names, split_only


def test_the_last_batch_of_an_evaluation_is_padded():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 6, 3), np.uint8)
    batches = read_image_batches(ArraySource(pixels), Preprocessing(6), batch_size=8)
    assert [batch["mask"].sum() for batch in batches] == [8, 3]
    assert batches[0]["image"].shape == batches[1]["image"].shape
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    indices = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    assert sorted(indices) == [*range(11)]
    np.testing.assert_array_equal(images, pixels[indices])


@pytest.mark.parametrize("count, held_out", [(32, 16), (103, 20), (4000, 500)])
def test_runs_of_neighboring_images_are_held_out(count, held_out):
    pixels = np.arange(count, dtype=np.uint16).view(np.uint8).reshape(count, 1, 2, 1)
    source = ArraySource(np.repeat(pixels, 3, axis=3))
    parts = recovery_images.split_images(source, 16)
    assert (len(parts.held_out), len(parts.training)) == (held_out, count - held_out)
    indices = parts.held_out.indices
    assert not {*indices} & {*parts.training.indices}
    starts = np.flatnonzero(np.diff(indices, prepend=-2) > 1)
    assert len(starts) == 16
    np.testing.assert_array_equal(
        parts.runs, np.cumsum(np.diff(indices, prepend=-2) > 1) - 1
    )


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


def test_at_most_max_images_are_read(vit, shown, monkeypatch, caplog):
    monkeypatch.setattr(recovery_images, "MAX_IMAGES", 40)
    learned, held_out = split_only(monkeypatch, vit, noise(60))
    assert len(learned) + len(held_out) == 40
    assert "40 of the 60 images are taken" in caplog.text
