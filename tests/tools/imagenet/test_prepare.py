"""The command that prepares ImageNet: from tars to what training reads."""

import itertools
import re
import signal
import sys

import pytest

from imagepiece_jax.input.registry import open_source
from tests import tars
from tests.command import call, sentence, start
from tools import prepare_imagenet as prepare
from tools.imagenet import writer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tars.write_tars(tmp_path_factory.mktemp("tars"), *tars.images())


def flags(source, folder, *others):
    return ["--source", source, "--dir", folder, "--partial", *others]


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    """(folder, how the command ended) of a run with two processes of its own.

    Whoever of them imports TensorFlow fails.
    """
    folder = tmp_path_factory.mktemp("prepared")
    fake = tmp_path_factory.mktemp("fake")
    (fake / "tensorflow.py").write_text("raise SystemExit('TensorFlow is imported')")
    words = flags(source, folder, "--processes", 2)
    return folder, start("-m", "tools.prepare_imagenet", *words, PYTHONPATH=str(fake))


def test_from_tars_to_training_without_tensorflow(prepared):
    folder, ended = prepared
    assert ended.status == 0, ended
    complete, train, validation, use = ended.out.splitlines()
    assert complete == f"complete     {folder}/imagenet2012/5.1.0"
    assert re.fullmatch(
        r"train        9 images of 3 classes in 1 files, [\d.]+kB", train
    )
    assert re.fullmatch(
        r"validation   4 images of 4 classes in 1 files, [\d.]+kB", validation
    )
    assert use == (
        f"train with   --config.data.name=imagenet2012 --config.data.dir={folder}"
    )
    split = open_source("imagenet2012", "train", num_classes=1000, data_dir=folder)
    labels = {split.name(i): split.read(i)[1] for i in range(len(split))}
    truth = {"n01440764": 0, "n02105855": 230, "n15075141": 999}
    assert labels == {
        f"{w}_{k}.JPEG": truth[w] for w, k in itertools.product(truth, (1, 8, 15))
    }
    split = open_source("imagenet2012", "val", num_classes=1000, data_dir=folder)
    labels = {split.name(i)[-6:]: split.read(i)[1] for i in range(len(split))}
    assert labels == {"1.JPEG": 65, "2.JPEG": 970, "3.JPEG": 230, "4.JPEG": 809}
    assert "tensorflow" not in sys.modules


def test_the_number_of_processes_changes_no_byte(source, prepared, tmp_path):
    folder, _ = prepared
    assert call(prepare.main, *flags(source, tmp_path, "--processes", 0)).status == 0
    for path in (folder / "imagenet2012" / "5.1.0").iterdir():
        other = tmp_path / "imagenet2012" / "5.1.0" / path.name
        assert path.read_bytes() == other.read_bytes()


def test_a_complete_set_is_left_alone(source, prepared):
    folder, first = prepared
    ended = call(prepare.main, *flags("gone", folder))
    assert (ended.status, ended.out) == (0, first.out)
    ended = call(prepare.main, *flags(source, folder, "--short_side", 256))
    assert sentence(ended) == (
        f"--dir {folder} has a complete set with --short_side 0; another "
        "folder for --short_side 256"
    )


def test_changes_to_images_are_printed(tmp_path):
    train, val = tars.images(per_class=35)
    train["n01440764"]["n01440764_8.JPEG"] = b"torn"
    val["ILSVRC2012_val_00000002.JPEG"] = tars.encoded(tars.photo(0, 90, 70), "PNG")
    source = tars.write_tars(tmp_path / "tars", train, val)
    words = ("--processes", 0, "--short_side", 64)
    ended = call(prepare.main, *flags(source, tmp_path, *words))
    assert ended.out.splitlines()[3:6] == [
        "short side   at most 64 pixels, JPEG quality 92",
        "re-encoded   1 images",
        "damaged      1 images left out: n01440764_8.JPEG",
    ]


def test_an_interrupted_run_says_how_to_resume(source, tmp_path, monkeypatch):
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(writer, "write", interrupted)
    ended = call(prepare.main, *flags(source, tmp_path, "--processes", 0))
    assert ended.status == 130
    assert "the same command resumes" in ended.err
