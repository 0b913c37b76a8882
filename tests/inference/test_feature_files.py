"""A folder of photographs as files of vectors: rows, resumption, refusals."""

import json
import os
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.common import parallel
from imagepiece_jax.data import pictures
from imagepiece_jax.inference import feature_files, feature_folder, optimize
from imagepiece_jax.inference.feature_files import write_features
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
    return [*pictures.listed([str(folder)])]


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
    normalized = imagepiece_jax.normalize(pixels, vit.model.mean, vit.model.std)
    model = vit.model
    want["logits"] = tiny.logits(model)(vit.variables, normalized)
    assert [*result.shapes] == [*ARRAYS]
    for name in ARRAYS:
        rows = np.load(folder / f"{name}.npy", mmap_mode="r")
        assert rows.dtype == np.float16
        assert [*rows.shape] == result.shapes[name]
        np.testing.assert_allclose(rows[readable], want[name], rtol=2e-3, atol=2e-3)
        assert np.isnan(rows[[*DAMAGED]]).all()


@pytest.mark.parametrize("dtype, most", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_a_stem_may_join_pixels_as_on_gpus(monkeypatch, dtype, most):
    """What its first convolution adds are the same products, and zeros."""
    vit = tiny.pretrained(tiny.EVIT, stem="conv").analyzed(dtype)
    pixels = np.random.default_rng(0).integers(
        0, 256, (4, *[tiny.SIDE] * 2, 3), np.uint8
    )
    found = []
    for joined in (1, vit.model.patch_size):
        monkeypatch.setattr(optimize, "joined_pixels", lambda *_, n=joined: n)
        run = feature_files.Extractor(vit, vit.model, ["pooled"])
        kernel = run._weights["params"]["patch_embed"]["conv_0"]["kernel"]
        assert kernel.shape[-1] == 3 * joined
        found.append(np.float32(run(pixels)["pooled"]))
    np.testing.assert_allclose(*found, rtol=most, atol=most)


def test_damaged_files_and_the_dense_model(vit, photographs, written):
    folder, result = written
    lines = (folder / "damaged.csv").read_text().splitlines()
    reason = "cannot be read (no known image format)"
    named = [f"{row},{photographs[row]},{reason}" for row in DAMAGED]
    assert lines == ["row,path,reason", *named]
    assert result.damaged == 3
    images = [path for row, path in enumerate(photographs) if row not in DAMAGED]
    ours = np.asarray(imagepiece_jax.features(vit, images).pooled)
    dense = imagepiece_jax.features(vit.with_reduction(None), images)
    theirs = np.asarray(dense.pooled)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = np.sum(ours * theirs, axis=1) / lengths
    assert result.compared.images == len(images)
    assert result.compared.mean == pytest.approx(cosines.mean(), abs=1e-5)
    assert result.compared.worst == pytest.approx(cosines.min(), abs=1e-5)
    assert result.compared.path == images[cosines.argmin()]
    assert cosines.min() < 0.999
    info = json.loads((folder / "info.json").read_text())
    assert info["weights"]["digest"] == vit.digest
    assert info["reduction"]["keep_rate"] == tiny.EVIT["keep_rate"]
    assert info["preprocessing"] == vit.preprocessing.as_json


def row_bytes(name, shapes):
    return 2 * int(np.prod(shapes[name][1:]))


# Rows that a killed process left of each of ARRAYS, in halves of a row: none at all,
# files alone, a row and a half, a batch, arrays that differ, all of one.
LEFT = [
    None,
    (0, 0, 0),
    (3, 3, 2),
    (8, 8, 8),
    (24, 24, 16),
    (44, 44, 39),
]


@pytest.mark.parametrize("halves", LEFT)
def test_a_killed_process_is_gone_on_with(
    vit, photographs, written, tmp_path, monkeypatch, halves
):
    """To the same bits, damaged rows and the comparison included.

    Batches are those of an uninterrupted process, so that a GPU gives its bits, too.
    """
    starts = []
    batches = feature_files.Reading.batches

    def noted(reading, start, stop):
        starts.append(start)
        return batches(reading, start, stop)

    monkeypatch.setattr(feature_files.Reading, "batches", noted)
    whole, result = written
    folder = tmp_path / "killed"
    shutil.copytree(whole, folder)
    info = json.loads((folder / "info.json").read_text())
    (folder / "info.json").write_text(json.dumps(info | {"complete": False}))
    (folder / ".0123.tmp").touch()
    table = (folder / "damaged.csv").read_bytes()
    (folder / "damaged.csv").write_bytes(table[:-9])  # amid the last line
    for name, left in zip(ARRAYS, halves or 3 * [0], strict=True):
        file = folder / f"{name}.npy"
        part = folder / f"{name}.npy.unfinished"
        head = file.stat().st_size - COUNT * row_bytes(name, result.shapes)
        if halves is None:
            file.unlink()
        elif left < 2 * COUNT:
            file.rename(part)
            os.truncate(part, head + left * row_bytes(name, result.shapes) // 2)
    again = write_features(vit, photographs, folder, **OPTIONS)
    assert again == result
    assert content(folder) == content(whole)
    assert all(start % 4 == 0 for start in starts if start < COUNT)


def test_a_process_may_go_on_with_damaged_files_alone(vit, photographs, tmp_path):
    """Where all else was done before, they are no wrong folder."""
    damaged = [photographs[row] for row in DAMAGED]
    images = [*photographs[:4], *damaged]
    write_features(vit, images, tmp_path / "whole", batch_size=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    info = json.loads((tmp_path / "part" / "info.json").read_text())
    (tmp_path / "part" / "info.json").write_text(json.dumps(info | {"complete": False}))
    part = tmp_path / "part" / "pooled.npy.unfinished"
    (tmp_path / "part" / "pooled.npy").rename(part)
    os.truncate(part, part.stat().st_size - 3 * 2 * tiny.WIDTH)
    write_features(vit, images, tmp_path / "part", batch_size=4)
    assert content(tmp_path / "part") == content(tmp_path / "whole")


def test_a_complete_folder_is_computed_no_more(vit, photographs, written, monkeypatch):
    folder, result = written
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    monkeypatch.setattr(feature_files.Reading, "batches", None)
    assert write_features(vit, photographs, folder, **OPTIONS) == result
    after = {file: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    assert before == after


@pytest.mark.parametrize("change", ["cut", "longer", "other", "text", "empty"])
def test_a_file_that_is_no_whole_array_is_named(
    vit, photographs, written, tmp_path, change
):
    """Once it is removed, the same arguments write it anew."""
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
    elif change == "text":
        file.write_text("mine")
    else:
        file.write_bytes(b"")
    before = content(folder)
    with refused(file, None, "is damaged, or was changed", "float16", "remove it"):
        write_features(vit, photographs, folder, **OPTIONS)
    assert content(folder) == before
    file.unlink()
    assert write_features(vit, photographs, folder, **OPTIONS) == written[1]
    assert content(folder) == content(written[0])


def test_a_process_that_is_killed_before_its_first_row_is_gone_on_with(
    vit, photographs, written, tmp_path
):
    """After each of the files that are written before it."""
    whole = content(written[0])
    with feature_folder.FeatureFolder(tmp_path) as started:
        key = started.info
    started = {"info.json": json.dumps(key).encode(), "paths.txt": whole["paths.txt"]}
    for number, names in enumerate((["info.json"], [*started])):
        folder = tmp_path / f"{number}" / "killed"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(started[name])
        write_features(vit, photographs, folder, **OPTIONS)
        assert content(folder) == whole


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


def test_another_argument_on_a_started_folder(vit, photographs, written):
    folder, _ = written
    before = content(folder)

    def check(field, value, *texts, vit=vit, images=photographs, **options):
        with refused(field, value, *texts):
            write_features(vit, images, folder, **OPTIONS | options)

    tome = vit.with_reduction({"name": "tome", "r": 2})
    check("reduction", "tome r=2", f"but {folder} was started with evit", vit=tome)
    changed = imagepiece_jax.Pretrained(
        vit.model, tiny.variables(vit.model, seed=1), vit.preprocessing
    )
    check("weights", f"None ({changed.digest})", vit.digest, vit=changed)
    check("storage", "float32", "started with float16", storage="float32")
    check("arrays", "pooled, logits", "logits, patches", patches=False)
    list_of_paths = str(folder / "paths.txt")
    check("images", 21, "others than the 22", list_of_paths, images=photographs[1:])
    assert content(folder) == before


def test_folders_that_are_not_its_own(vit, photographs, tmp_path):
    def check(field, value, *texts, images=photographs):
        with refused(field, value, *texts):
            write_features(vit, images, tmp_path)

    (tmp_path / "notes.txt").touch()
    check("folder", "notes.txt", f"{tmp_path} holds notes.txt")
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "info.json").write_text("{}")
    check("folder", "info.json", f"{tmp_path} holds info.json")
    (tmp_path / "info.json").unlink()
    for name in ("paths.txt", "pooled.npy", "pooled.npy.unfinished", "damaged.csv"):
        (tmp_path / name).write_text("mine")
        check("folder", name, f"{tmp_path} holds {name}")
        (tmp_path / name).unlink()
    with feature_folder.FeatureFolder(tmp_path):
        check("folder", str(tmp_path), "in use by another process")
    check(repr("a\nb.png"), None, "a line break", images=["a\nb.png"])
    check("images", None, "is empty", images=[])
    damaged = [photographs[row] for row in DAMAGED]
    check("images", damaged[0], "none that can be read among 3", images=damaged)


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


def test_listed_names(tmp_path, monkeypatch):
    """Folders, tables by their column, lists by their lines, and images."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "inside").mkdir(parents=True)
    for name in ("b.jpg", "a.png", "inside/c.webp", "notes.txt"):
        (tmp_path / "photos" / name).touch()
    (tmp_path / "photos" / "set.csv").write_text("label, filename\n1,b.jpg\n2,no.jpg\n")
    (tmp_path / "list.txt").write_bytes(b"photos/a.png\r\n\n\xff.jpg\n")
    in_folder = ["photos/a.png", "photos/b.jpg", "photos/inside/c.webp"]
    assert [*pictures.listed(["photos"])] == in_folder
    assert [*pictures.listed(["folder:photos"])] == in_folder
    of_table = ["photos/b.jpg", "photos/no.jpg"]
    assert [*pictures.listed(["csv:photos/set.csv"])] == of_table
    found = [*pictures.listed(["list.txt", "x.jpg"])]
    assert found == ["photos/a.png", "\udcff.jpg", "x.jpg"]
    with refused("images", "no.csv", "does not exist"):
        pictures.check_there(["photos", "no.csv"])
    (tmp_path / "set.csv").write_text("file,label\nb.jpg,1\n")
    with refused("set.csv", None, "no column 'filename' (found: file, label)"):
        [*pictures.listed(["set.csv"])]
