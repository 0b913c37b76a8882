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
from imagepiece_jax.common.files import write_json
from imagepiece_jax.deploy import pictures
from imagepiece_jax.deploy.inference import feature_files, feature_folder, optimize
from imagepiece_jax.deploy.inference.feature_files import write_features
from imagepiece_jax.errors import RunError
from tests.models import tiny
from tests.refused import refused
from tests.training.test_full_disk import full_disk

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
    assert info["made_by"]["weights"] == vit.digest
    assert info["made_by"]["preprocessing"] == vit.preprocessing.as_json
    assert info["rows"] == COUNT


def unfinished(whole, folder, rows):
    """A copy of a complete folder, of which a killed process has counted so many rows.

    The rows behind them hold something else.
    """
    shutil.copytree(whole, folder)
    info = json.loads((folder / "info.json").read_text())
    write_json(folder / "info.json", info | {"rows": rows})
    (folder / ".0123.tmp").touch()
    for file in folder.glob("*.npy"):
        part = file.rename(f"{file}.unfinished")
        np.lib.format.open_memmap(part, "r+")[rows:] = 7


@pytest.mark.parametrize("rows", [0, 4, 8, 20, COUNT])
def test_a_killed_process_is_gone_on_with(
    vit, photographs, written, tmp_path, monkeypatch, rows
):
    """With the rows that were counted, damaged ones and the comparison included."""
    starts = []
    batches = feature_files.Reading.batches

    def noted(reading, start, stop):
        starts.append(start)
        return batches(reading, start, stop)

    monkeypatch.setattr(feature_files.Reading, "batches", noted)
    whole, result = written
    unfinished(whole, tmp_path / "killed", rows)
    again = write_features(vit, photographs, tmp_path / "killed", **OPTIONS)
    assert again == result
    assert content(tmp_path / "killed") == content(whole)
    assert starts[:1] == ([rows] if rows < COUNT else [])


def test_a_process_that_makes_its_arrays_is_gone_on_with(
    vit, photographs, written, tmp_path
):
    """One has no bytes yet, others are not there."""
    unfinished(written[0], tmp_path / "killed", 0)
    (tmp_path / "killed" / "pooled.npy.unfinished").write_bytes(b"")
    (tmp_path / "killed" / "logits.npy.unfinished").unlink()
    write_features(vit, photographs, tmp_path / "killed", **OPTIONS)
    assert content(tmp_path / "killed") == content(written[0])


def test_rows_are_counted_as_they_are_written(vit, photographs, tmp_path, monkeypatch):
    """Those before an error stay, and the next process goes on behind them."""
    monkeypatch.setattr(feature_folder, "INTERVAL", 0.0)
    counted = []
    append = feature_folder.Arrays.append

    def failing(arrays, *values):
        append(arrays, *values)
        info = json.loads((tmp_path / "f" / "info.json").read_text())
        counted.append(info["rows"])
        if len(counted) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(feature_folder.Arrays, "append", failing)
    with pytest.raises(KeyboardInterrupt):
        write_features(vit, photographs, tmp_path / "f", batch_size=4)
    write_features(vit, photographs, tmp_path / "f", batch_size=8)
    assert counted == [4, 8, 16, 22]


def test_a_process_may_go_on_with_damaged_files_alone(vit, photographs, tmp_path):
    """Where all else was done before, they are no wrong folder."""
    damaged = [photographs[row] for row in DAMAGED]
    images = [*photographs[:4], *damaged]
    write_features(vit, images, tmp_path / "whole", batch_size=4)
    unfinished(tmp_path / "whole", tmp_path / "part", 4)
    write_features(vit, images, tmp_path / "part", batch_size=4)
    assert content(tmp_path / "part") == content(tmp_path / "whole")


@pytest.mark.parametrize("rows", [8, COUNT])
def test_a_file_that_was_cut_off_is_not_filled(
    vit, photographs, written, tmp_path, rows
):
    """NumPy would give it zeros for the rows that it lacks."""
    unfinished(written[0], tmp_path / "f", rows)
    part = tmp_path / "f" / "pooled.npy.unfinished"
    os.truncate(part, part.stat().st_size - 1)
    with refused(part, "is damaged, or was changed"):
        write_features(vit, photographs, tmp_path / "f", **OPTIONS)


def test_a_disk_without_room_for_all_rows(vit, photographs, tmp_path):
    options = {"patches": True, "storage": "float32"}
    file = "patches.npy.unfinished"
    with full_disk(20_000), pytest.raises(RunError, match=f"{file} cannot be written"):
        write_features(vit, photographs, tmp_path / "f", **options)
    assert not (tmp_path / "f" / file).exists()
    write_features(vit, photographs, tmp_path / "f", **options)


def test_a_complete_folder_is_computed_no_more(vit, photographs, written, monkeypatch):
    folder, result = written
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    monkeypatch.setattr(feature_files.Reading, "batches", None)
    assert write_features(vit, photographs, folder, **OPTIONS) == result
    after = {file: file.stat().st_mtime_ns for file in folder.glob("*.npy")}
    assert before == after


@pytest.mark.parametrize(
    "facts",
    [{"rows": COUNT + 1}, {"rows": None}, {"images": None}, {"made_by": "mine"}],
    ids=str,
)
def test_facts_that_are_not_as_written_are_named(
    vit, photographs, written, tmp_path, facts
):
    """Of more rows than there are photographs none would be computed."""
    folder = tmp_path / "changed"
    shutil.copytree(written[0], folder)
    info = json.loads((folder / "info.json").read_text())
    write_json(folder / "info.json", info | facts)
    with refused(folder / "info.json", "is damaged, or was changed"):
        write_features(vit, photographs, folder, **OPTIONS)


def test_lines_of_paths_that_somebody_changed_are_written_again(
    vit, photographs, written, tmp_path
):
    folder = tmp_path / "changed"
    shutil.copytree(written[0], folder)
    paths = (folder / "paths.txt").read_text()
    (folder / "paths.txt").write_text("\n".join(reversed(paths.split("\n"))))
    write_features(vit, photographs, folder, **OPTIONS)
    assert (folder / "paths.txt").read_text() == paths


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
    with refused(file, "is damaged, or was changed"):
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
    for name in ("paths.txt", "pooled.npy", "pooled.npy.unfinished", "damaged.csv"):
        (tmp_path / name).write_text("mine")
        check("folder", f"{tmp_path} holds {name}")
        (tmp_path / name).unlink()
    with feature_folder.FeatureFolder(tmp_path):
        check("folder", tmp_path, "in use by another process")
    for character in "\n\r\f\x85\u2028":  # what str.splitlines splits at
        name = f"a{character}b.png"
        check(repr(name), "a line break", images=[name])
    check("images", "is empty", images=[])
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
    (tmp_path / "list.txt").write_bytes(b"photos/a.png\r\n\n\xff.jpg\na\rb\n")
    in_folder = ["photos/a.png", "photos/b.jpg", "photos/inside/c.webp"]
    assert [*pictures.listed(["photos"])] == in_folder
    assert [*pictures.listed(["folder:photos"])] == in_folder
    of_table = ["photos/b.jpg", "photos/no.jpg"]
    assert [*pictures.listed(["csv:photos/set.csv"])] == of_table
    found = [*pictures.listed(["list.txt", "x.jpg"])]
    assert found == ["photos/a.png", "\udcff.jpg", "a\rb", "x.jpg"]
    with refused("images", "does not exist"):
        pictures.check_there(["photos", "no.csv"])
    (tmp_path / "set.csv").write_text("file,label\nb.jpg,1\n")
    with refused("set.csv", "no column 'filename'"):
        [*pictures.listed(["set.csv"])]


def test_rows_that_measured_the_rates_count_at_once(
    vit, photographs, tmp_path, monkeypatch
):
    added = []
    monkeypatch.setattr(feature_files, "COMPARED", 8)
    monkeypatch.setattr(feature_files.Progress, "add", lambda _, n: added.append(n))
    write_features(vit, photographs, tmp_path / "vectors", **OPTIONS)
    assert added == [8, 4, 4, 4, 2]
