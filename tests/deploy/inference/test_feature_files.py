"""A folder of photographs as files of vectors: rows, resumption, refusals."""

import json
import os
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.files import write_json
from imagepiece_jax.deploy import pictures
from imagepiece_jax.deploy.inference import feature_files, feature_folder, optimize
from imagepiece_jax.deploy.inference.feature_files import write_features
from tests.models import tiny
from tests.refused import refused

COUNT = 22  # photographs, in batches of 4
DAMAGED = (5, 9, 21)
OPTIONS = {"batch_size": 4, "patches": True, "logits": True, "threads": 2}
ARRAYS = ("pooled", "logits", "patches")


@pytest.fixture(scope="module")
def vit():
    return tiny.pretrained(tiny.EVIT)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Paths of images of noise, of which three are damaged."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (tiny.SIDE, tiny.SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    for number in DAMAGED:
        (folder / f"{number:02}.png").write_bytes(b"nothing")
    return pictures.find_images([folder])


@pytest.fixture(scope="module")
def written(vit, photographs, tmp_path_factory):
    """(a complete folder, what `write_features` returned)."""
    folder = tmp_path_factory.mktemp("features") / "whole"
    return folder, write_features(vit, photographs, folder, **OPTIONS)


def content(folder):
    """The bytes of every file of a folder, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_rows_are_the_features_of_the_lines_of_paths(vit, photographs, written):
    folder, result = written
    assert (folder / "paths.txt").read_text().splitlines() == photographs
    readable = [row for row in range(COUNT) if row not in DAMAGED]
    images = [photographs[row] for row in readable]
    want = imagepiece_jax.features(vit, images)._asdict()
    pixels = np.stack([vit.preprocessing(np.array(Image.open(i))) for i in images])
    normalized = imagepiece_jax.normalize(
        pixels, vit.model.config.mean, vit.model.config.std
    )
    model = vit.model
    want["logits"] = tiny.logits(model)(vit.variables, normalized)
    assert [*result.shapes] == [*ARRAYS]
    for name in ARRAYS:
        rows = np.load(folder / f"{name}.npy", mmap_mode="r")
        assert rows.dtype == np.float16
        assert [*rows.shape] == result.shapes[name]
        np.testing.assert_allclose(rows[readable], want[name], rtol=2e-3, atol=2e-3)
        assert np.isnan(rows[[*DAMAGED]]).all()


def test_vectors_are_compared_with_the_dense_model_s(
    vit, photographs, tmp_path, capsys
):
    write_features(vit, photographs, tmp_path / "f")
    said = "".join(capsys.readouterr())
    pattern = r"of (\d+) photographs: mean ([\d.]+), worst ([\d.]+) \((.*)\)"
    ((count, mean, worst, path),) = re.findall(pattern, said)
    images = [photographs[row] for row in range(COUNT) if row not in DAMAGED]
    vectors = []
    for form in (vit, vit.with_reduction(None)):
        pooled = np.asarray(imagepiece_jax.features(form, images).pooled)
        vectors.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
    cosines = np.sum(vectors[0] * vectors[1], axis=1)
    assert int(count) == len(images)
    assert float(mean) == pytest.approx(cosines.mean(), abs=1e-3)
    assert float(worst) == pytest.approx(cosines.min(), abs=1e-3)
    assert path == images[cosines.argmin()]
    assert cosines.min() < 0.99


@pytest.mark.parametrize("dtype, most", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_a_stem_may_join_pixels_as_on_gpus(monkeypatch, dtype, most):
    """What its first convolution adds are the same products, and zeros."""
    vit = tiny.pretrained(tiny.EVIT, stem="conv").analyzed(dtype)
    pixels = np.random.default_rng(0).integers(
        0, 256, (4, *[tiny.SIDE] * 2, 3), np.uint8
    )
    found = []
    for joined in (1, vit.model.config.patch_size):
        monkeypatch.setattr(optimize, "joined_pixels", lambda *_, n=joined: n)
        run = feature_files.Extractor(vit, ["pooled"])
        kernel = run._weights["params"]["patch_embed"]["conv_0"]["kernel"]
        assert kernel.shape[-1] == 3 * joined
        found.append(np.float32(run(pixels)["pooled"]))
    np.testing.assert_allclose(*found, rtol=most, atol=most)


def test_damaged_files_are_listed(vit, photographs, written):
    folder, result = written
    lines = (folder / "damaged.csv").read_text().splitlines()
    reason = "cannot be read (no known image format)"
    named = [f"{row},{photographs[row]},{reason}" for row in DAMAGED]
    assert lines == ["row,path,reason", *named]
    assert result.damaged == 3
    info = json.loads((folder / "info.json").read_text())
    assert info["made_by"]["weights"] == vit.digest
    assert info["made_by"]["preprocessing"] == vit.preprocessing.as_json
    assert info["rows"] == COUNT


def unfinished(whole, folder, rows):
    """A copy of a complete folder in which a killed process has counted `rows` rows.

    It wrote half a row more, and something else behind them.
    """
    shutil.copytree(whole, folder)
    info = json.loads((folder / "info.json").read_text())
    write_json(folder / "info.json", info | {"rows": rows})
    (folder / ".0123.tmp").touch()
    for file in folder.glob("*.npy"):
        array = np.lib.format.open_memmap(file, "r+")
        array[rows:] = 7
        if rows < COUNT:
            os.truncate(file, array.offset + (2 * rows + 1) * array[0].nbytes // 2)


@pytest.mark.parametrize("rows", [0, 4, 20, COUNT])
def test_a_killed_process_is_gone_on_with(
    vit, photographs, written, tmp_path, monkeypatch, rows
):
    """With the rows that were counted, damaged ones included."""
    starts = []
    batches = feature_files.Batches

    def noted(**options):
        starts.append(COUNT - len(options["source"]))
        return batches(**options)

    monkeypatch.setattr(feature_files, "Batches", noted)
    whole, result = written
    unfinished(whole, tmp_path / "killed", rows)
    if rows < COUNT:
        with pytest.raises(ValueError):  # it is not mistaken for a complete array
            np.load(tmp_path / "killed" / "pooled.npy")
    again = write_features(vit, photographs, tmp_path / "killed", **OPTIONS)
    assert again == result
    assert content(tmp_path / "killed") == content(whole)
    assert starts[-1] == rows


def test_rows_are_counted_as_they_are_written(vit, photographs, tmp_path, monkeypatch):
    """Those before an error stay, and the next process goes on behind them."""
    monkeypatch.setattr(feature_folder, "INTERVAL", 0.0)
    counted = []
    append = feature_folder.FeatureFolder.append

    def failing(folder, *values):
        append(folder, *values)
        info = json.loads((tmp_path / "f" / "info.json").read_text())
        counted.append(info["rows"])
        if len(counted) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(feature_folder.FeatureFolder, "append", failing)
    with pytest.raises(KeyboardInterrupt):
        write_features(vit, photographs, tmp_path / "f", batch_size=4)
    write_features(vit, photographs, tmp_path / "f", batch_size=8)
    assert counted == [4, 8, 16, 22]


@pytest.mark.parametrize("change", ["cut", "longer", "other", "empty", "removed"])
def test_rows_that_are_not_there_are_computed_again(
    vit, photographs, written, tmp_path, change
):
    folder = tmp_path / "changed"
    shutil.copytree(written[0], folder)
    file = folder / "logits.npy"
    whole = file.read_bytes()
    if change == "cut":
        file.write_bytes(whole[:-1])
    elif change == "longer":
        file.write_bytes(whole + b"0")
    elif change == "other":
        np.save(file, np.zeros((COUNT, 10), np.float16).T)
    elif change == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    assert write_features(vit, photographs, folder, **OPTIONS) == written[1]
    again = content(folder)
    wanted = content(written[0])
    for name in ("paths.txt", "info.json", "damaged.csv"):
        assert again[name] == wanted[name]
    for name in ARRAYS:  # batches start at another row: rounding
        rows = np.load(folder / f"{name}.npy")
        want = np.load(written[0] / f"{name}.npy")
        np.testing.assert_allclose(rows, want, rtol=2e-3, atol=2e-3)


def test_two_devices_write_the_same(vit, photographs, written, tmp_path, monkeypatch):
    devices = jax.local_devices()[:2]
    assert len(devices) == 2
    monkeypatch.setattr(parallel, "local_devices", lambda process=None: devices)
    monkeypatch.setattr(parallel, "device_count", lambda: 2)
    options = OPTIONS | {"batch_size": 2, "storage": "float32"}
    write_features(vit, photographs, tmp_path / "two", **options)
    for name in ARRAYS:
        ours = np.load(tmp_path / "two" / f"{name}.npy")
        theirs = np.load(written[0] / f"{name}.npy")
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)


def test_folders_that_are_not_its_own(vit, photographs, tmp_path):
    def check(*texts, images=photographs):
        with refused(*texts):
            write_features(vit, images, tmp_path)

    (tmp_path / "notes.txt").touch()
    check("folder", f"{tmp_path} holds notes.txt")
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "info.json").write_text("{}")
    check("folder", f"{tmp_path} holds info.json")
    (tmp_path / "info.json").unlink()
    for name in ("paths.txt", "pooled.npy", "damaged.csv"):
        (tmp_path / name).write_text("mine")
        check("folder", f"{tmp_path} holds {name}")
        (tmp_path / name).unlink()
    with files.locked("folder", tmp_path):
        check("folder", tmp_path, "in use by another process")
    for character in "\n\r\f\x85\u2028":  # what str.splitlines splits at
        name = f"a{character}b.png"
        check(repr(name), "a line break", images=[name])


def test_what_is_no_number_of_its_type_is_named(vit, photographs, tmp_path):
    """A vector beyond float16 is no vector of infinities."""
    params = vit.variables["params"]
    norm = jax.tree.map(lambda leaf: 1e6 * leaf, params["norm"])
    large = imagepiece_jax.Pretrained(
        vit.model, {"params": params | {"norm": norm}}, vit.preprocessing
    )
    result = write_features(large, photographs[:4], tmp_path / "f")
    assert result.damaged == 4
    assert np.isnan(np.load(tmp_path / "f" / "pooled.npy")).all()
    assert "float16" in (tmp_path / "f" / "damaged.csv").read_text()


def test_a_list_of_paths_stands_for_its_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "inside").mkdir(parents=True)
    for name in ("b.jpg", "a.png", "inside/c.webp", "notes.txt"):
        (tmp_path / "photos" / name).touch()
    (tmp_path / "list.txt").write_bytes(b"photos/a.png\r\n\n\xff.jpg\na\rb\n")
    in_folder = ["photos/a.png", "photos/b.jpg", "photos/inside/c.webp"]
    assert pictures.find_images(["photos"]) == in_folder
    found = pictures.find_images(["list.txt", "photos/b.jpg"])
    assert found == ["photos/a.png", "\udcff.jpg", "a\rb", "photos/b.jpg"]
    for words in (["photos", "no.csv"], [], [""]):
        with refused("images"):
            pictures.find_images(words)
