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
from tests.helpers import tiny_vit
from tests.helpers.picture_files import noise, write_images
from tests.helpers.refused_calls import refused
from tests.helpers.small_photographs import write as write_photographs
from tests.inference.test_annotations import write_texts
from tests.inference.test_compare_outputs import slow_recall, votes

COUNT = 22  # photographs, in batches of 4
DAMAGED = (5, 9, 21)
OPTIONS = {"batch_size": 4, "patches": True, "logits": True, "threads": 2}
ARRAYS = ("pooled", "logits", "patches")


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Calls with equal models compile once for each size of a batch."""
    programs = {}
    pmap = parallel.pmap

    def compiled(run, **options):
        key = (*run.args, *parallel.local_devices())
        if key not in programs:
            programs[key] = pmap(run, **options)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "pmap", compiled)
        yield


@pytest.fixture(scope="module")
def vit():
    return tiny_vit.pretrained(tiny_vit.EVIT)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Paths of images of noise, of which three are damaged."""
    folder = tmp_path_factory.mktemp("photographs")
    write_images(folder, noise(COUNT, tiny_vit.SIDE, tiny_vit.SIDE))
    for number in DAMAGED:
        (folder / f"{number:02}.png").write_bytes(b"nothing %d" % number)
    return pictures.find_images([folder])


@pytest.fixture(scope="module")
def write(vit, photographs):
    """`write_features` of a folder, with OPTIONS."""

    def write(folder, paths=photographs, **options):
        return write_features(vit, paths, folder, **OPTIONS | options)

    return write


@pytest.fixture(scope="module")
def written(write, tmp_path_factory):
    """(a complete folder, what `write_features` returned)."""
    folder = tmp_path_factory.mktemp("features") / "whole"
    return folder, write(folder)


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def arrays(folder):
    """{name: all rows} of a folder."""
    return {name: np.load(folder / f"{name}.npy") for name in ARRAYS}


def close(folder, other):
    """Arrays of two folders are equal but for rounding: batches have other sizes."""
    theirs = arrays(other)
    for name, ours in arrays(folder).items():
        np.testing.assert_allclose(ours, theirs[name], rtol=2e-3, atol=2e-3)


def test_rows_are_the_features_of_the_lines_of_paths(vit, photographs, written):
    folder, result = written
    assert (folder / "paths.txt").read_text().splitlines() == photographs
    readable = [row for row in range(COUNT) if row not in DAMAGED]
    images = [photographs[row] for row in readable]
    want = imagepiece_jax.features(vit, images)._asdict()
    pixels = np.stack([vit.preprocessing(np.array(Image.open(i))) for i in images])
    normalized = imagepiece_jax.normalize(pixels, vit.config.mean, vit.config.std)
    want["logits"] = tiny_vit.logits(vit.model)(vit.variables, normalized)
    assert [*result.shapes] == [*ARRAYS]
    for name in ARRAYS:
        rows = np.load(folder / f"{name}.npy", mmap_mode="r")
        assert rows.dtype == np.float16
        assert [*rows.shape] == result.shapes[name]
        np.testing.assert_allclose(rows[readable], want[name], rtol=2e-3, atol=2e-3)
        assert np.isnan(rows[[*DAMAGED]]).all()


def test_vectors_are_compared_with_dense_ones(
    write, tmp_path, vit, photographs, capsys
):
    write(tmp_path / "f")
    said = "".join(capsys.readouterr())
    pattern = r"on (\d+) photographs; the worst is (.*)"
    ((count, path),) = {*re.findall(pattern, said)}
    row = re.search(r"^\| evit.*$", said, re.MULTILINE)[0]
    _, _, mean, worst, kept, _ = row.split("|")
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
    near = [np.argsort(-rows @ rows.T, axis=1)[:, 1:11] for rows in vectors]
    wanted = [10 * len({*a} & {*b}) for a, b in zip(*near, strict=True)]
    assert float(kept.split()[0]) == pytest.approx(np.mean(wanted), abs=0.6)
    assert "| shuffled |" in said


@pytest.mark.parametrize("head", ["none", "projection"])
def test_texts_and_classes_join_the_comparison(tmp_path, capsys, head):
    """Each call compares what texts describe, also without new photographs."""
    vit = tiny_vit.pretrained(tiny_vit.EVIT, num_classes=0)
    array = "pooled"
    if head == "projection":
        vit = tiny_vit.of_problem(tiny_vit.pretrained(tiny_vit.EVIT), head)
        array = "logits"
    paths = []
    for seed, name in enumerate(("cat", "dog")):
        folder = write_photographs(tmp_path / name, 20, seed)
        paths += [str(file) for file in sorted(folder.iterdir())]
    vectors = []
    for form in (vit, vit.with_reduction(None)):
        pixels = np.stack([form.preprocessing(np.array(Image.open(i))) for i in paths])
        pixels = imagepiece_jax.normalize(pixels, vit.config.mean, vit.config.std)
        vectors.append(np.asarray(tiny_vit.logits(form.model)(form.variables, pixels)))
    order = np.random.default_rng(0).permutation(40)[:30]
    texts = vectors[1][order] + np.random.default_rng(1).normal(size=(30, 1))
    write_texts(tmp_path, [paths[i] for i in order], texts.astype(np.float32))
    options = {"texts": tmp_path / "texts.npy", "logits": head == "projection"}
    there = np.sort(order)  # photographs without texts are not compared
    rows = vectors[0][there]
    wanted = slow_recall(rows, texts, np.searchsorted(there, order))
    classes = there // 20
    voted = 100 * np.mean(votes(rows, classes) == classes)
    for _ in range(2):
        write_features(vit, paths, tmp_path / "f", **options)
        said = "".join(capsys.readouterr())
        row = re.search(r"^\| evit.*$", said, re.MULTILINE)[0].split("|")
        assert float(row[4].split()[0]) == pytest.approx(wanted, abs=1.2)
        assert float(row[6].split()[0]) == pytest.approx(voted, abs=4)
    assert np.load(tmp_path / "f" / f"{array}.npy").shape[0] == 40
    if head == "projection":
        with refused("--logits"):
            write_features(vit, paths, tmp_path / "g", texts=options["texts"])


def test_a_stem_may_join_pixels_as_on_gpus(monkeypatch):
    """What its first convolution adds are the same products, and zeros."""
    vit = tiny_vit.pretrained(tiny_vit.EVIT, stem="conv")
    pixels = noise(4, tiny_vit.SIDE, tiny_vit.SIDE)
    found = []
    for joined in (1, vit.model.config.patch_size):
        monkeypatch.setattr(optimize, "count_joined_pixels", lambda *_, n=joined: n)
        run = feature_files.Extractor(vit, ["pooled"])
        kernel = run._weights["params"]["patch_embed"]["conv_0"]["kernel"]
        assert kernel.shape[-1] == 3 * joined
        found.append(np.asarray(run(pixels)["pooled"]))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


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
def test_a_killed_process_is_gone_on_with(write, written, tmp_path, computed, rows):
    whole, result = written
    unfinished(whole, tmp_path / "killed", rows)
    assert write(tmp_path / "killed") == result
    assert computed[-1] == COUNT - rows
    killed = content(tmp_path / "killed")
    for name, expected in content(whole).items():
        if not name.endswith(".npy"):
            assert killed[name] == expected
    theirs = arrays(whole)
    for name, ours in arrays(tmp_path / "killed").items():
        np.testing.assert_array_equal(ours[:rows], theirs[name][:rows])
    close(tmp_path / "killed", whole)


def test_what_a_kill_left_out_may_be_gone(
    write, photographs, written, tmp_path, computed
):
    folder = tmp_path / "killed"
    unfinished(written[0], folder, 4)
    for _ in range(2):
        assert write(folder, photographs[:4]).shapes["pooled"][0] == 4
    assert computed[-2:] == [0, 0]
    rows = np.load(folder / "pooled.npy")
    np.testing.assert_array_equal(rows, np.load(written[0] / "pooled.npy")[:4])


@pytest.fixture
def collection(tmp_path, photographs):
    """A folder with copies of six of the photographs, of which one is damaged.

    Two have the same number of bytes.
    """
    folder = tmp_path / "collection"
    folder.mkdir()
    for path in photographs[:6]:
        shutil.copy(path, folder)
    for path in ("00.png", "01.png"):
        with Image.open(folder / path) as image:
            image.save(folder / path, "BMP")
    return folder


def replace_and_keep_times(path, other):
    """Give a file other bytes, and its own times, as `cp -p` and rsync do."""
    status = path.stat()
    shutil.copyfile(other, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def all_at_once(folder, others):
    (folder / "00.png").unlink()
    shutil.copy(others[0], folder / "03.png")
    shutil.copy(others[1], folder / "-.png")


def moved(folder, others):
    (folder / "inside").mkdir()
    (folder / "00.png").rename(folder / "inside" / "later.png")


def swapped(folder, others):
    first, second = (folder / name for name in ("00.png", "01.png"))
    both = first.read_bytes(), second.read_bytes()
    assert len(both[0]) == len(both[1])
    second.write_bytes(both[0])
    first.write_bytes(both[1])


# {change: (function of a folder and photographs that are not in it, rows to compute)}
CHANGES = {
    "nothing": (lambda folder, others: None, 0),
    "new last": (lambda folder, others: shutil.copy(others[0], folder), 1),
    "times kept": (
        lambda folder, others: replace_and_keep_times(folder / "03.png", others[0]),
        1,
    ),
    "touched": (lambda folder, others: os.utime(folder / "03.png", (1, 1)), 0),
    "moved": (moved, 0),
    "swapped": (swapped, 0),
    "mended": (lambda folder, others: shutil.copy(others[0], folder / "05.png"), 1),
    "damaged": (lambda folder, others: (folder / "02.png").write_bytes(b"?"), 1),
    "all at once": (all_at_once, 2),
}


# {change: (function of a folder and photographs that are not in it, rows to compute)}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_collection(
    write, photographs, collection, tmp_path, computed, change
):
    """Its rows are those of a new folder, of which only those that lack are computed.

    A row that was kept is the same to the bit.
    """
    act, lacking = CHANGES[change]
    out = tmp_path / "out"
    write(out, pictures.find_images([collection]))
    before = content(out)
    rows = arrays(out)
    digests = {}
    for row, line in enumerate((out / "files.jsonl").read_text().splitlines()):
        digests[json.loads(line)[4]] = row
    act(collection, photographs[6:])
    paths = pictures.find_images([collection])
    result = write(out, paths)
    assert computed[-1] == lacking
    assert result == write(tmp_path / "fresh", paths)
    for name in ("paths.txt", "damaged.csv", "info.json", "files.jsonl"):
        assert content(out)[name] == content(tmp_path / "fresh")[name]
    lines = (out / "files.jsonl").read_text().splitlines()
    kept = [digests.get(json.loads(line)[4], -1) for line in lines]
    close(out, tmp_path / "fresh")
    for name, ours in arrays(out).items():
        for row, earlier in enumerate(kept):
            if earlier >= 0:
                np.testing.assert_array_equal(ours[row], rows[name][earlier])
    if change == "nothing":
        assert content(out) == before


@pytest.mark.parametrize("form", ["relative", "link", "dots"])
def test_a_path_is_its_file(write, collection, tmp_path, computed, monkeypatch, form):
    write(tmp_path / "out", pictures.find_images([collection]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(collection)
    words = {"relative": "collection", "link": tmp_path / "link"}
    words["dots"] = f"{collection}/../collection/"
    monkeypatch.setattr(feature_folder, "read_recorded", lambda path: 1 / 0)
    paths = pictures.find_images([words[form]])
    write(tmp_path / "out", paths)
    assert computed[-1] == 0
    assert (tmp_path / "out" / "paths.txt").read_text().splitlines() == paths


def test_rows_that_leave_are_counted(write, collection, tmp_path, capsys):
    paths = pictures.find_images([collection])
    write(tmp_path / "out", [*map(pathlib.Path, paths)])
    capsys.readouterr()
    write(tmp_path / "out", paths[:2])
    assert "4 rows are removed" in capsys.readouterr().err
    write(tmp_path / "out", paths[:2])
    assert "leave" not in capsys.readouterr().err


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", range(0, 15, 3))
def test_a_kill_while_replacing(
    write, photographs, collection, tmp_path, monkeypatch, call
):
    """Either set is whole, or paths.txt is absent; then it goes on."""
    out = tmp_path / "out"
    write(out, pictures.find_images([collection]))
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
            write(out, paths)
    if (out / "paths.txt").exists() and (out / "paths.txt").read_bytes() == old_paths:
        np.testing.assert_array_equal(np.load(out / "pooled.npy"), old)
    write(out, paths)
    write(tmp_path / "fresh", paths)
    close(out, tmp_path / "fresh")
    assert (out / "paths.txt").read_text().splitlines() == paths
    assert not [*out.glob(".[!l]*")]


def test_a_name_with_a_line_break_is_left_out(write, collection, tmp_path, capsys):
    (collection / "00.png").rename(collection / "0\n0.png")
    (collection / "01.png").rename(collection / "0\u20281.png")
    paths = pictures.find_images([collection])
    assert write(tmp_path / "out", paths).shapes["pooled"][0] == 4
    assert repr(str(collection / "0\n0.png")) in capsys.readouterr().err
    with refused("images is empty"):
        write(tmp_path / "no", [path for path in paths if "\n" in path])


def test_rows_are_counted_as_they_are_written(write, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_folder, "FLUSH_SECONDS", 0.0)
    counted = []
    append = feature_folder.FeatureFolder.append_rows

    def failing(folder, *values):
        append(folder, *values)
        counted.append(len(np.load(tmp_path / "f" / ".new" / "pooled.npy")))
        if len(counted) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(feature_folder.FeatureFolder, "append_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "f", batch_size=4)
    write(tmp_path / "f", batch_size=8)
    assert counted == [4, 8, 16, 22]


DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"0"),
    "other": lambda file: np.save(file, np.zeros((COUNT, 10), np.float16).T),
    "empty": lambda file: file.write_bytes(b""),
    "removed": lambda file: file.unlink(),
}


@pytest.mark.parametrize("change", DAMAGES)
def test_rows_that_are_not_there_are_computed_again(write, written, tmp_path, change):
    folder = tmp_path / "changed"
    shutil.copytree(written[0], folder)
    DAMAGES[change](folder / "logits.npy")
    assert write(folder) == written[1]
    again = content(folder)
    wanted = content(written[0])
    for name in ("paths.txt", "info.json", "damaged.csv"):
        assert again[name] == wanted[name]
    close(folder, written[0])


@pytest.mark.parametrize("line", [None, b"", b"[]", b'[["a"], 1, 2, 3, "d"]'])
def test_a_record_that_was_edited_is_no_row(write, written, tmp_path, computed, line):
    """Its photograph is computed, and no other row moves; all are where it is gone."""
    folder = tmp_path / "edited"
    shutil.copytree(written[0], folder)
    lines = (folder / "files.jsonl").read_bytes().split(b"\n")
    lines[3:4] = [] if line is None else [line]
    (folder / "files.jsonl").write_bytes(b"\n".join(lines))
    assert write(folder) == written[1]
    assert computed[-1] == (COUNT if line is None else 1)
    close(folder, written[0])
    want = arrays(written[0])
    for name, rows in arrays(folder).items():
        others = np.delete(want[name], 3, 0)
        np.testing.assert_array_equal(np.delete(rows, 3, 0), others)


def test_two_devices_write_the_same(write, written, tmp_path, monkeypatch):
    devices = jax.local_devices()[:2]
    assert len(devices) == 2
    monkeypatch.setattr(parallel, "local_devices", lambda process=None: devices)
    monkeypatch.setattr(parallel, "device_count", lambda: 2)
    write(tmp_path / "two", batch_size=2, storage="float32")
    close(tmp_path / "two", written[0])
    assert arrays(tmp_path / "two")["patches"].dtype == np.float32


def test_folders_that_are_not_its_own(write, tmp_path):
    def check(*texts):
        with refused(*texts):
            write(tmp_path)

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
    with files.locked_folder("folder", tmp_path):
        check("folder", tmp_path, "in use by another process")


def test_what_is_no_number_of_its_type_is_named(vit, photographs, tmp_path):
    params = vit.variables["params"]
    norm = jax.tree.map(lambda leaf: 1e6 * leaf, params["norm"])
    large = imagepiece_jax.Pretrained(vit.model, {"params": params | {"norm": norm}})
    assert write_features(large, photographs[:4], tmp_path / "f").damaged == 4
    assert np.isnan(np.load(tmp_path / "f" / "pooled.npy")).all()
    assert "float16" in (tmp_path / "f" / "damaged.csv").read_text()


def test_a_list_of_paths_stands_for_its_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_bytes(b"a.png\r\n\n\xff.jpg\na\rb\n")
    found = pictures.find_images(["list.txt", "b.jpg"])
    assert found == ["a.png", "\udcff.jpg", "a\rb", "b.jpg"]
    for words in (["b.jpg", "no.csv"], [], [""]):
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
