"""Features of a folder's photographs in files: rows, comparisons, errors."""

import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.common import parallel
from imagepiece_jax.data import pictures
from imagepiece_jax.inference import feature_files, optimize
from imagepiece_jax.inference.feature_files import write_features
from tests.helpers import tiny_vit
from tests.helpers.feature_folders import (
    ARRAY_NAMES,
    DAMAGED_ROWS,
    PHOTOGRAPH_COUNT,
    assert_folders_close,
    load_arrays,
)
from tests.helpers.picture_files import noise
from tests.helpers.refused_calls import refused

pytestmark = pytest.mark.usefixtures("extractors_compiled_once")


def test_rows_have_their_paths_features(vit, photographs, written):
    folder, result = written
    assert (folder / "paths.txt").read_text().splitlines() == photographs
    readable = [row for row in range(PHOTOGRAPH_COUNT) if row not in DAMAGED_ROWS]
    images = [photographs[row] for row in readable]
    expected = imagepiece_jax.features(vit, images)._asdict()
    pixels = np.stack([vit.preprocessing(np.array(Image.open(i))) for i in images])
    normalized = imagepiece_jax.normalize(pixels, vit.config.mean, vit.config.std)
    expected["logits"] = tiny_vit.logits(vit.model)(vit.variables, normalized)
    assert [*result.shapes] == [*ARRAY_NAMES]
    for name in ARRAY_NAMES:
        rows = np.load(folder / f"{name}.npy", mmap_mode="r")
        assert rows.dtype == np.float16
        assert [*rows.shape] == result.shapes[name]
        np.testing.assert_allclose(rows[readable], expected[name], rtol=2e-3, atol=2e-3)
        assert np.isnan(rows[[*DAMAGED_ROWS]]).all()


def test_vectors_are_compared_with_dense_ones(
    write, tmp_path, vit, photographs, capsys
):
    write(tmp_path / "f")
    printed = "".join(capsys.readouterr())
    pattern = r"on (\d+) photographs; the worst is (.*)"
    ((count, path),) = {*re.findall(pattern, printed)}
    row = re.search(r"^\| evit.*$", printed, re.MULTILINE)[0]
    _, _, mean, worst, kept, _ = row.split("|")
    images = [
        photographs[row] for row in range(PHOTOGRAPH_COUNT) if row not in DAMAGED_ROWS
    ]
    vectors = []
    for model in (vit, vit.with_reduction(None)):
        pooled = np.asarray(imagepiece_jax.features(model, images).pooled)
        vectors.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
    cosines = np.sum(vectors[0] * vectors[1], axis=1)
    assert int(count) == len(images)
    assert float(mean) == pytest.approx(cosines.mean(), abs=1e-3)
    assert float(worst) == pytest.approx(cosines.min(), abs=1e-3)
    assert path == images[cosines.argmin()]
    assert cosines.min() < 0.99
    near = [np.argsort(-rows @ rows.T, axis=1)[:, 1:11] for rows in vectors]
    shares = [10 * len({*a} & {*b}) for a, b in zip(*near, strict=True)]
    assert float(kept.split()[0]) == pytest.approx(np.mean(shares), abs=0.6)
    assert "| shuffled |" in printed


def test_a_stem_may_join_pixels_like_on_gpus(monkeypatch):
    """Its first convolution adds the same products and zeros."""
    vit = tiny_vit.pretrained(tiny_vit.EVIT, stem="conv")
    pixels = noise(4, tiny_vit.SIDE, tiny_vit.SIDE)
    vectors = []
    for num_joined in (1, vit.model.config.patch_size):
        monkeypatch.setattr(optimize, "count_joined_pixels", lambda *_, n=num_joined: n)
        run = feature_files.Extractor(vit, ["pooled"])
        kernel = run._weights["params"]["patch_embed"]["conv_0"]["kernel"]
        assert kernel.shape[-1] == 3 * num_joined
        vectors.append(np.asarray(run(pixels)["pooled"]))
    np.testing.assert_allclose(*vectors, rtol=1e-5, atol=1e-5)


def test_damaged_files_are_listed(vit, photographs, written):
    folder, result = written
    lines = (folder / "damaged.csv").read_text().splitlines()
    reason = "cannot be read (no known image format)"
    named = [f"{row},{photographs[row]},{reason}" for row in DAMAGED_ROWS]
    assert lines == ["row,path,reason", *named]
    assert result.num_damaged == 3
    info = json.loads((folder / "info.json").read_text())
    assert info["made_by"]["weights"] == vit.digest
    assert info["made_by"]["preprocessing"] == vit.preprocessing.as_json
    assert info["rows"] == PHOTOGRAPH_COUNT


def test_a_name_with_a_line_break_is_left_out(write, collection, tmp_path, capsys):
    (collection / "00.png").rename(collection / "0\n0.png")
    (collection / "01.png").rename(collection / "0\u20281.png")
    paths = pictures.find_images([collection])
    assert write(tmp_path / "out", paths).shapes["pooled"][0] == 4
    assert repr(str(collection / "0\n0.png")) in capsys.readouterr().err
    with refused("images is empty"):
        write(tmp_path / "no", [path for path in paths if "\n" in path])


def test_two_devices_write_equal_files(write, written, tmp_path, monkeypatch):
    devices = jax.local_devices()[:2]
    assert len(devices) == 2
    monkeypatch.setattr(parallel, "local_devices", lambda process=None: devices)
    monkeypatch.setattr(parallel, "device_count", lambda: 2)
    write(tmp_path / "two", batch_size=2, storage="float32")
    assert_folders_close(tmp_path / "two", written[0])
    assert load_arrays(tmp_path / "two")["patches"].dtype == np.float32


def test_numbers_beyond_the_stored_type_are_listed(vit, photographs, tmp_path):
    params = vit.variables["params"]
    norm = jax.tree.map(lambda leaf: 1e6 * leaf, params["norm"])
    large = imagepiece_jax.Pretrained(vit.model, {"params": params | {"norm": norm}})
    assert write_features(large, photographs[:4], tmp_path / "f").num_damaged == 4
    assert np.isnan(np.load(tmp_path / "f" / "pooled.npy")).all()
    assert "float16" in (tmp_path / "f" / "damaged.csv").read_text()
