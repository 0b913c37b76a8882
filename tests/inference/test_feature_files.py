"""A folder of photographs as files of vectors: rows, resumption, refusals."""

import json
import os
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import imagepiece_jax
from imagepiece_jax.common import files, parallel
from imagepiece_jax.common.files import write_json
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
        (folder / f"{number:02}.png").write_bytes(b"nothing %d" % number)
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
    """A folder in which a killed process has counted `rows` rows.

    It wrote half a row more, and half a line.
    """
    new = folder / ".new"
    shutil.copytree(whole, new)
    for name in ("paths.txt", "damaged.csv"):
        (new / name).unlink()
    info = json.loads((new / "info.json").read_text())
    write_json(new / "info.json", info | {"rows": None})
    (new / ".0123.tmp").touch()
    for file in new.glob("*.npy"):
        array = np.load(file)
        np.save(file, array[:rows])
        with open(file, "ab") as opened:
            opened.write(array[rows].tobytes()[::2])
    records = (new / "files.jsonl").read_bytes().splitlines(keepends=True)
    records = b"".join(records[: rows + 1])
    (new / "files.jsonl").write_bytes(records[:-9])


@pytest.fixture
def computed(monkeypatch):
    """Numbers of rows that calls compute, as they begin."""
    numbers = []
    batches = feature_files.Batches

    def noted(**options):
        numbers.append(len(options["source"]))
        return batches(**options)

    monkeypatch.setattr(feature_files, "Batches", noted)
    return numbers


@pytest.mark.parametrize("rows", [0, 4, 20])
def test_a_killed_process_is_gone_on_with(
    vit, photographs, written, tmp_path, computed, rows
):
    """With the rows that were counted, damaged ones included."""
    whole, result = written
    unfinished(whole, tmp_path / "killed", rows)
    again = write_features(vit, photographs, tmp_path / "killed", **OPTIONS)
    assert again == result
    assert computed[-1] == COUNT - rows
    killed = content(tmp_path / "killed")
    for name, expected in content(whole).items():
        if not name.endswith(".npy"):
            assert killed[name] == expected
    for name in ARRAYS:  # batches have other sizes: rounding
        ours = np.load(tmp_path / "killed" / f"{name}.npy")
        theirs = np.load(whole / f"{name}.npy")
        np.testing.assert_array_equal(ours[:rows], theirs[:rows])
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-3)


def test_what_a_killed_process_lacks_may_be_gone(
    vit, photographs, written, tmp_path, computed
):
    """Its rows are then complete, and no array is open."""
    folder = tmp_path / "killed"
    unfinished(written[0], folder, 4)
    for _ in range(2):
        result = write_features(vit, photographs[:4], folder, **OPTIONS)
        assert result.shapes["pooled"][0] == 4
    assert computed[-2:] == [0, 0]
    rows = np.load(folder / "pooled.npy")
    np.testing.assert_array_equal(rows, np.load(written[0] / "pooled.npy")[:4])


@pytest.fixture
def collection(tmp_path, photographs):
    """A folder with copies of six of the photographs, of which one is damaged."""
    folder = tmp_path / "collection"
    folder.mkdir()
    for path in photographs[:6]:
        shutil.copy(path, folder)
    return folder


def replace_and_keep_times(path, other):
    """Give a file other bytes, and its own times, as `cp -p` and rsync do."""
    status = path.stat()
    shutil.copyfile(other, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by_equal_size(folder):
    """Two files of equal sizes in bytes change places."""
    paths = [folder / "00.png", folder / "01.png"]
    pixels = np.random.default_rng(1).integers(
        0, 256, (2, tiny.SIDE, tiny.SIDE, 3), np.uint8
    )
    images = [Image.fromarray(each) for each in pixels]
    for path, image in zip(paths, images, strict=True):
        image.save(path, "BMP")


def moved(folder):
    (folder / "inside").mkdir()
    (folder / "00.png").rename(folder / "inside" / "later.png")


# {change: (function of a folder and photographs that are not in it, rows to compute)}
CHANGES = {
    "nothing": (lambda folder, others: None, 0),
    "new first": (lambda folder, others: shutil.copy(others[0], folder / "-.png"), 1),
    "new last": (lambda folder, others: shutil.copy(others[0], folder), 1),
    "gone": (lambda folder, others: (folder / "00.png").unlink(), 0),
    "replaced": (lambda folder, others: shutil.copy(others[0], folder / "03.png"), 1),
    "times kept": (
        lambda folder, others: replace_and_keep_times(folder / "03.png", others[0]),
        1,
    ),
    "touched": (lambda folder, others: os.utime(folder / "03.png", (1, 1)), 0),
    "moved": (lambda folder, others: moved(folder), 0),
    "mended": (lambda folder, others: shutil.copy(others[0], folder / "05.png"), 1),
    "damaged": (lambda folder, others: (folder / "02.png").write_bytes(b"?"), 1),
    "another order": (
        lambda folder, others: (folder / "00.png").rename(folder / "99.png"),
        0,
    ),
    "all at once": (
        lambda folder, others: (
            (folder / "00.png").unlink(),
            shutil.copy(others[0], folder / "03.png"),
            shutil.copy(others[1], folder / "-.png"),
        ),
        2,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_collection_that_changes(
    vit, photographs, collection, tmp_path, computed, change
):
    """Its rows are those of a new folder, of which only those that lack are computed.

    A row that was kept is the same to the bit.
    """
    act, lacking = CHANGES[change]
    out = tmp_path / "out"
    write_features(vit, pictures.find_images([collection]), out, **OPTIONS)
    before = content(out)
    rows = {name: np.load(out / f"{name}.npy").copy() for name in ARRAYS}
    digests = {}
    for row, line in enumerate((out / "files.jsonl").read_text().splitlines()):
        digests[json.loads(line)[4]] = row
    act(collection, photographs[6:])
    paths = pictures.find_images([collection])
    result = write_features(vit, paths, out, **OPTIONS)
    assert computed[-1] == lacking
    afresh = write_features(vit, paths, tmp_path / "fresh", **OPTIONS)
    assert result == afresh
    for name in ("paths.txt", "damaged.csv", "info.json", "files.jsonl"):
        assert content(out)[name] == content(tmp_path / "fresh")[name]
    lines = (out / "files.jsonl").read_text().splitlines()
    kept = [digests.get(json.loads(line)[4], -1) for line in lines]
    for name in ARRAYS:
        ours = np.load(out / f"{name}.npy")
        want = np.load(tmp_path / "fresh" / f"{name}.npy")
        np.testing.assert_allclose(ours, want, rtol=2e-3, atol=2e-3)
        for row, earlier in enumerate(kept):
            if earlier >= 0:
                np.testing.assert_array_equal(ours[row], rows[name][earlier])
    if change == "nothing":
        assert content(out) == before


def test_files_of_equal_sizes_are_told_apart(vit, collection, tmp_path, computed):
    replace_by_equal_size(collection)
    paths = pictures.find_images([collection])
    write_features(vit, paths, tmp_path / "out", **OPTIONS)
    first, second = paths[:2]
    both = []
    for path in (first, second):
        with open(path, "rb") as file:
            both.append(file.read())
    assert len(both[0]) == len(both[1]) and both[0] != both[1]
    before = np.load(tmp_path / "out" / "pooled.npy").copy()
    for path, data in zip((second, first), both, strict=True):
        with open(path, "wb") as file:
            file.write(data)
    write_features(vit, paths, tmp_path / "out", **OPTIONS)
    assert computed[-1] == 0
    after = np.load(tmp_path / "out" / "pooled.npy")
    np.testing.assert_array_equal(after[:2], before[1::-1])


@pytest.mark.parametrize("form", ["relative", "link", "dots"])
def test_a_path_is_the_file_that_it_names(
    vit, collection, tmp_path, computed, monkeypatch, form
):
    write_features(vit, pictures.find_images([collection]), tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(collection)
    words = {"relative": "collection", "link": tmp_path / "link"}
    words["dots"] = f"{collection}/../collection/"
    monkeypatch.setattr(
        "imagepiece_jax.inference.feature_folder.read", lambda path: 1 / 0
    )
    paths = pictures.find_images([words[form]])
    write_features(vit, paths, tmp_path / "out")
    assert computed[-1] == 0
    assert (tmp_path / "out" / "paths.txt").read_text().splitlines() == paths


def test_rows_that_leave_are_counted(vit, collection, tmp_path, capsys):
    paths = pictures.find_images([collection])
    write_features(vit, [*map(pathlib.Path, paths)], tmp_path / "out")
    capsys.readouterr()
    write_features(vit, paths[:2], tmp_path / "out")
    assert "4 rows are removed" in capsys.readouterr().err
    write_features(vit, paths[:2], tmp_path / "out")
    assert "leave" not in capsys.readouterr().err


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(0, 15, 3))
def test_a_kill_while_rows_are_replaced(
    vit, photographs, collection, tmp_path, monkeypatch, computed, call
):
    """At every rename: either set is whole, or paths.txt is absent; then it goes on."""
    out = tmp_path / "out"
    write_features(vit, pictures.find_images([collection]), out, **OPTIONS)
    old = np.load(out / "pooled.npy").copy()
    old_paths = (out / "paths.txt").read_bytes()
    (collection / "00.png").unlink()
    shutil.copy(photographs[7], collection / "-.png")
    paths = pictures.find_images([collection])
    calls = []

    def killing(rename):
        def killed(*args):
            calls.append(args)
            if len(calls) > call:
                raise Killed
            return rename(*args)

        return killed

    with monkeypatch.context() as patch:
        for name in ("rename", "replace"):
            patch.setattr(os, name, killing(getattr(os, name)))
        with pytest.raises(Killed):
            write_features(vit, paths, out, **OPTIONS)
    if (out / "paths.txt").exists() and (out / "paths.txt").read_bytes() == old_paths:
        np.testing.assert_array_equal(np.load(out / "pooled.npy"), old)
    write_features(vit, paths, out, **OPTIONS)
    write_features(vit, paths, tmp_path / "fresh", **OPTIONS)
    for name in ARRAYS:
        ours = np.load(out / f"{name}.npy")
        want = np.load(tmp_path / "fresh" / f"{name}.npy")
        np.testing.assert_allclose(ours, want, rtol=2e-3, atol=2e-3)
    assert (out / "paths.txt").read_text().splitlines() == paths
    assert not [*out.glob(".[!l]*")]


def test_a_name_with_a_line_break_is_left_out(vit, collection, tmp_path, capsys):
    (collection / "00.png").rename(collection / "0\n0.png")
    (collection / "01.png").rename(collection / "0\u20281.png")
    paths = pictures.find_images([collection])
    result = write_features(vit, paths, tmp_path / "out")
    assert result.shapes["pooled"][0] == 4
    assert repr(str(collection / "0\n0.png")) in capsys.readouterr().err
    with refused("images is empty"):
        write_features(vit, [path for path in paths if "\n" in path], tmp_path / "no")


def test_rows_are_counted_as_they_are_written(vit, photographs, tmp_path, monkeypatch):
    """Those before an error stay, and the next process goes on behind them."""
    monkeypatch.setattr(feature_folder, "INTERVAL", 0.0)
    counted = []
    append = feature_folder.FeatureFolder.append

    def failing(folder, *values):
        append(folder, *values)
        counted.append(len(np.load(tmp_path / "f" / ".new" / "pooled.npy")))
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


@pytest.mark.parametrize("line", [b"", b"[]", b"{", b"5", b'[["a"], 1, 2, 3, "d"]'])
def test_a_record_that_was_edited_is_no_row(
    vit, photographs, written, tmp_path, computed, line
):
    """Its photograph is computed, and no other row moves."""
    folder = tmp_path / "edited"
    shutil.copytree(written[0], folder)
    lines = (folder / "files.jsonl").read_bytes().split(b"\n")
    lines[3] = line
    (folder / "files.jsonl").write_bytes(b"\n".join(lines))
    assert write_features(vit, photographs, folder, **OPTIONS) == written[1]
    assert computed[-1] == 1
    for name in ARRAYS:
        rows = np.load(folder / f"{name}.npy")
        want = np.load(written[0] / f"{name}.npy")
        np.testing.assert_array_equal(np.delete(rows, 3, 0), np.delete(want, 3, 0))
        np.testing.assert_allclose(rows, want, rtol=2e-3, atol=2e-3)


def test_a_record_that_was_removed_moves_no_row(vit, photographs, written, tmp_path):
    folder = tmp_path / "edited"
    shutil.copytree(written[0], folder)
    lines = (folder / "files.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "files.jsonl").write_bytes(b"".join(lines[:3] + lines[4:]))
    write_features(vit, photographs, folder, **OPTIONS)
    for name in ARRAYS:
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
    def check(*texts):
        with refused(*texts):
            write_features(vit, photographs, tmp_path)

    (tmp_path / "notes.txt").touch()
    check("folder", f"{tmp_path} holds notes.txt")
    (tmp_path / "notes.txt").unlink()
    (tmp_path / ".DS_Store").touch()  # a system's own, which is nobody's
    for text in ("{}", '{"made_by": 5, "rows": 1}', '{"made_by": {}}'):
        (tmp_path / "info.json").write_text(text)
        check("folder", f"{tmp_path} holds info.json")
    (tmp_path / "info.json").unlink()
    for name in ("paths.txt", "pooled.npy", "damaged.csv"):
        (tmp_path / name).write_text("mine")
        check("folder", f"{tmp_path} holds {name}")
        (tmp_path / name).unlink()
    with files.locked("folder", tmp_path):
        check("folder", tmp_path, "in use by another process")


def test_what_is_no_number_of_its_type_is_named(vit, photographs, tmp_path):
    """A vector beyond float16 is no vector of infinities."""
    params = vit.variables["params"]
    norm = jax.tree.map(lambda leaf: 1e6 * leaf, params["norm"])
    large = imagepiece_jax.Pretrained(vit.model, {"params": params | {"norm": norm}})
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


def test_a_first_run_that_was_killed_before_its_record_goes_on(tmp_path):
    """It left an empty `.new`; one with foreign files is not ours."""
    (tmp_path / ".new").mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / ".new" / ".info.json.1.tmp").touch()
    feature_folder.check_folder(tmp_path)
    (tmp_path / ".new" / "notes.txt").touch()
    with refused("holds .new"):
        feature_folder.check_folder(tmp_path)
