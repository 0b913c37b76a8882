"""ImageNet of the Hugging Face hub: webdataset tars and parquet files."""

import collections
import functools
import json
import os
import signal

import pytest

from imagepiece_jax.data.class_names import imagenet_rows
from imagepiece_jax.errors import InputError
from tests import hub_shards, tars
from tests.command import call, sentence, start
from tools import prepare_imagenet as prepare
from tools.imagenet import parquet as parquet_files
from tools.imagenet import scan, shards, writer
from tools.imagenet import webdataset as webdataset_tars

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

SPLITS = hub_shards.rows()
LEMMAS = [words for _, words in imagenet_rows()]


def by_webdataset(folder, splits):
    """Tars by the package's own writer."""
    webdataset = pytest.importorskip("webdataset")
    folder.mkdir(parents=True)
    for split, images in splits.items():
        for number, part in enumerate(hub_shards.shards(images)):
            path = folder / f"imagenet-{split[:5].rstrip('i')}-{number:06d}.tar"
            with webdataset.TarWriter(str(path)) as tar:
                for name, label, image in part:
                    tar.write({"__key__": name, "jpeg": image, "cls": label})
    return folder


def by_datasets(folder, splits):
    """Parquet files as the package's push_to_hub writes them."""
    datasets = pytest.importorskip("datasets")
    (folder / "data").mkdir(parents=True)
    names = list(LEMMAS)
    names[517] = "crane2"  # 134 is the bird; names must differ, as on the hub
    kind = datasets.ClassLabel(names=names)
    columns = datasets.Features(image=datasets.Image(), label=kind)
    for split, images in splits.items():
        for number, part in enumerate(hub_shards.shards(images)):
            rows = []
            for name, label, image in part:
                path = hub_shards.hub_name(name, label)
                rows.append({"image": {"bytes": image, "path": path}, "label": label})
            path = folder / "data" / f"{split}-{number:05d}-of-00002.parquet"
            datasets.Dataset.from_list(rows, features=columns).to_parquet(path)
    return folder


FORMS = {
    "tars by hand": hub_shards.write_tars,
    "tars by webdataset": by_webdataset,
    "parquet by hand": hub_shards.write_parquet,
    "small pages": functools.partial(
        hub_shards.write_parquet, row_group_size=2, compression="zstd"
    ),
    "parquet by datasets": by_datasets,
}


def words(source, folder, *others):
    return ["--source", source, "--dir", folder, "--partial", "--processes=0", *others]


def files_of(folder):
    return {
        path.name: path.read_bytes()
        for path in (folder / "imagenet2012" / "5.1.0").iterdir()
    }


@pytest.fixture(scope="module")
def from_originals(tmp_path_factory):
    """Files of the set that the ILSVRC2012 tars make."""
    folder = tmp_path_factory.mktemp("originals")
    source = tars.write_tars(folder / "tars", *tars.images())
    assert call(prepare.main, *words(source, folder)).status == 0
    return files_of(folder)


@pytest.mark.parametrize("form", FORMS)
def test_the_set_is_that_of_the_original_tars(form, from_originals, tmp_path):
    source = FORMS[form](tmp_path / "hub", SPLITS)
    ended = call(prepare.main, *words(source, tmp_path))
    assert ended.status == 0, ended
    assert files_of(tmp_path) == from_originals
    _, train, validation, _ = ended.out.splitlines()
    assert train.startswith("train        9 images of 3 classes in 1 files, ")
    assert validation.startswith("validation   4 images of 4 classes in 1 files, ")


def test_processes_of_its_own_unpack_the_same(from_originals, tmp_path):
    source = hub_shards.write_parquet(tmp_path / "hub", SPLITS)
    ended = call(prepare.main, *words(source, tmp_path, "--processes=2"))
    assert ended.status == 0
    assert files_of(tmp_path) == from_originals


# The command, which ends like a machine without power at the n-th file that it is about
# to put in its place: of each parquet file the images and a list of them, the settings
# of the set, and a report on each of its files.
KILLED = """
import os, signal, sys
number, sync = int(sys.argv.pop(1)), os.fsync
def count(file):
    global number
    number -= 1
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sync(file)
os.fsync = count
from imagepiece_jax import cli
from tools import prepare_imagenet
cli.run(prepare_imagenet.main, compiles=False)
"""


@pytest.mark.parametrize(
    "form, number, read",
    [("tars by hand", 2, 4), ("parquet by hand", 3, 3), ("parquet by hand", 10, 0)],
    ids=["writing", "unpacking", "writing what was unpacked"],
)
def test_a_killed_run_resumes(
    form, number, read, from_originals, tmp_path, monkeypatch
):
    source = FORMS[form](tmp_path / "hub", SPLITS)
    flags = words(source, tmp_path)
    ended = start("-c", KILLED, number, *flags, imported=True)
    assert ended.status == -signal.SIGKILL, ended
    assert writer.existing(tmp_path) is None
    paths = []
    for module, name in (
        (parquet_files, "read_rows"),
        (webdataset_tars, "read_samples"),
    ):
        original = getattr(module, name)

        def noted(path, original=original):
            paths.append(path)
            return original(path)

        monkeypatch.setattr(module, name, noted)
    assert call(prepare.main, *flags).status == 0
    assert len(paths) == read  # tars are only looked through
    assert files_of(tmp_path) == from_originals


def test_a_file_that_was_fetched_again_is_unpacked_again(tmp_path):
    options = {"use_dictionary": False, "write_statistics": False}
    source = hub_shards.write_parquet(tmp_path / "hub", SPLITS, **options)
    path = source / "data" / "train-00000-of-00002.parquet"
    target = tmp_path / "a"
    (rows, size) = parquet_files.count(path)
    images = [image for _, _, image in SPLITS["train"][::2]]
    assert rows == 5
    assert 0 < size - sum(map(len, images)) < 200
    assert not parquet_files.is_unpacked(path, target)
    parquet_files.unpack(path, target)
    assert target.read_bytes() == b"".join(images)
    assert parquet_files.is_unpacked(path, target)
    os.utime(path, (1, 1))
    assert not parquet_files.is_unpacked(path, target)


def test_room_for_both_is_asked_for_before_anything_is_unpacked(tmp_path, monkeypatch):
    options = {"use_dictionary": False, "write_statistics": False}
    source = hub_shards.write_parquet(tmp_path / "hub", SPLITS, **options)
    images = []
    for rows in SPLITS.values():
        images += [image for _, _, image in rows]
    size = sum(map(len, images))
    free = collections.namedtuple("usage", "free")
    monkeypatch.setattr(scan.shutil, "disk_usage", lambda _: free(2 * size))
    message = sentence(call(prepare.main, *words(source, tmp_path)))
    assert "of free space; allowed: " in message
    assert not [*tmp_path.rglob("*.images")]
    monkeypatch.setattr(scan.shutil, "disk_usage", lambda _: free(2.2 * size))
    assert call(prepare.main, *words(source, tmp_path)).status == 0


def test_splits_by_names_and_by_flags(tmp_path):
    places = {
        "train/0.tar": "train",
        "a-train-valid.tar": None,
        "imagenet-val-000000.tar": "validation",
        "data/validation-00000-of-00014.parquet": "validation",
        "trainer.tar": None,
        "imagenet_train-000000.tar": "train",
        "test-00000-of-00028.parquet": "test",
    }
    for place, split in places.items():
        assert shards.split_by_name(place) == split, place
    hub_shards.write_tars(tmp_path, SPLITS)
    for number, path in enumerate(sorted(tmp_path.glob("*.tar"))):
        path.rename(tmp_path / f"part-{number}.tar")
    (tmp_path / "test-0.tar").write_bytes(b"no labels: not read")
    (tmp_path / "ILSVRC2012_devkit_t12.tar").write_bytes(b"")
    message = sentence(call(prepare.main, *words(tmp_path, tmp_path / "set")))
    assert f"such as {tmp_path / 'part-0.tar'}; train, val" in message
    flags = "--train_files=part-[01].tar", "--validation_files=part-[23].tar"
    ended = call(prepare.main, *words(tmp_path, tmp_path / "set", *flags))
    assert ended.status == 0
    assert "9 images of 3 classes" in ended.out


SAMPLE = hub_shards.sample("n01440764_1", 0, b"x")
WITHOUT = {
    extension: {k: v for k, v in SAMPLE.items() if not k.endswith(extension)}
    for extension in (".cls", ".json", ".jpg")
}
KEY = "sample n01440764_1"


@pytest.mark.parametrize(
    "files, message",
    [
        ({"n01440764_1.jpg": b"x"}, f"{KEY} has no label; allowed: a number in .cls"),
        (WITHOUT[".jpg"], f"{KEY} has no image; allowed: one of .jpg, .jpeg"),
        (
            SAMPLE | {"n01440764_1.cls": b"7"},
            f"{KEY} has label 7 in .cls and 0 in .json",
        ),
        ({"readme.txt": b""}, "has no sample; allowed: samples of an image (.jpg, "),
        (
            hub_shards.sample("a", 1000, b"x"),
            "sample a has label 1000; allowed: 0..999",
        ),
        (
            hub_shards.sample("n01440764_1", 1, b"x"),
            f"{KEY} is n01440764_1.JPEG and has",
        ),
        (
            hub_shards.sample("ILSVRC2012_val_00000001", 65, b"x"),
            "sample ILSVRC2012_val_00000001 is ILSVRC2012_val_00000001.JPEG; allowed",
        ),
    ],
)
def test_wrong_samples_are_named(files, message, tmp_path):
    path = tmp_path / "train-0.tar"
    path.write_bytes(tars.tar(files))
    with pytest.raises(InputError) as caught:
        scan.find(tmp_path, partial=True)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("share", [0.05, 0.4, 0.6, "between samples", "damaged"])
def test_damaged_tars_are_named(share, tmp_path):
    """Also one that ends between two samples, which Python takes for a whole one."""
    source = hub_shards.write_tars(tmp_path, SPLITS)
    path = source / "imagenet1k-train-0001.tar"
    data = path.read_bytes().rstrip(b"\0")
    second = data.index(b"n01440764_8.cls") if b"n01440764_8.cls" in data else 0
    second = data.index(b".cls", data.index(b".json")) // 512 * 512
    if share == "between samples":
        path.write_bytes(data[:second])
    elif share == "damaged":
        path.write_bytes(data[:second] + b"?" * 512 + data[second + 512 :])
    else:
        path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError) as caught:
        scan.find(source, partial=True)
    assert str(caught.value).startswith(f"{path} is not a complete tar file (")


def find_parquet(source):
    room = scan.Room(str(source / "room"), lambda *_: 0)
    with pytest.raises(InputError) as caught:
        scan.find(source, partial=True, room=room)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data[:-60], "is a damaged parquet file ("),
        (lambda data: b"", "is a damaged parquet file ("),
        (lambda data: data[:40] + b"\xff" * 200 + data[240:], " behind row 0 ("),
        (lambda data: data[:4] + b"\xff" * 40 + data[44:], " behind row 0 ("),
    ],
    ids=["footer", "empty", "page", "page's header"],
)
@pytest.mark.parametrize("checksums", [False, True])
def test_damaged_parquet_files_are_named(damage, message, checksums, tmp_path):
    options = {"compression": "snappy", "write_page_checksum": checksums}
    source = hub_shards.write_parquet(tmp_path, SPLITS, **options)
    path = source / "data" / "train-00001-of-00002.parquet"
    path.write_bytes(damage(path.read_bytes()))
    said = find_parquet(source)
    assert said.startswith(str(path))
    assert message in said


def features(names):
    """Metadata of a file as `datasets` writes it."""
    info = {"features": {"label": {"names": names, "_type": "ClassLabel"}}}
    return {b"huggingface": json.dumps({"info": info}).encode()}


IMAGE = {"bytes": b"x", "path": "a.jpg"}


@pytest.mark.parametrize(
    "rows, names, message",
    [
        ([{"image": IMAGE, "text": "a"}], None, "has the columns image (struct<"),
        (
            [
                {"image": IMAGE | {"bytes": None}, "label": 0},
                {"image": IMAGE, "label": 0},
            ],
            None,
            "image of row 0 has no bytes; images must be in the file",
        ),
        ([{"image": IMAGE, "label": -1}], None, "row 0 has label -1; allowed: 0..999"),
        (
            [{"image": IMAGE | {"path": "n02105855_7.JPEG"}, "label": 0}],
            None,
            "row 0 is n02105855_7.JPEG and has label 0, n01440764; allowed: 230,",
        ),
        (
            [{"image": IMAGE, "label": 0}],
            ["cat", "dog"],
            "has 2 classes; allowed: Im",
        ),
        ([{"image": IMAGE, "label": 0}], LEMMAS[::-1], "label 0 is"),
    ],
)
def test_wrong_rows_are_named(rows, names, message, tmp_path):
    table = pyarrow.Table.from_pylist(rows)
    if names:
        table = table.replace_schema_metadata(features(names))
    path = tmp_path / "train.parquet"
    parquet.write_table(table, path)
    said = find_parquet(tmp_path)
    assert said.startswith(str(path))
    assert message in said


def test_missing_and_doubled_files_are_named(tmp_path):
    source = hub_shards.write_parquet(tmp_path / "hub", SPLITS)
    path = source / "data" / "train-00001-of-00002.parquet"
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(
        InputError, match="1 of the 2 files of train, but not number 000"
    ):
        scan.find(source)
    (source / "train").mkdir()
    other = source / "train" / "train-00000-of-00002.parquet"
    other.write_bytes(content)
    with pytest.raises(
        InputError, match="has train twice, in .* and .*; choose by --tr"
    ):
        scan.find(source)
    other.rename(source / "train" / "0.tar")
    with pytest.raises(InputError, match="has train twice, in .*parquet and .*0.tar"):
        scan.find(source)


def test_what_is_no_jpeg_is_treated_as_in_tars(tmp_path):
    """A PNG becomes a JPEG; what no decoder reads is left out and named."""
    splits = {split: list(rows) for split, rows in hub_shards.rows(35).items()}
    key, label, _ = splits["train"][0]
    splits["train"][0] = key, label, tars.encoded(tars.photo(3), "PNG")
    key, label, _ = splits["train"][7]
    splits["train"][7] = key, label, b"torn"
    source = hub_shards.write_parquet(tmp_path / "hub", splits)
    ended = call(prepare.main, *words(source, tmp_path))
    assert "re-encoded   1 images" in ended.out
    assert f"damaged      1 images left out: {key}.JPEG" in ended.out
    assert "104 images of 3 classes" in ended.out
