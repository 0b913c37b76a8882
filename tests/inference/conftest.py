"""Photographs, and their folder of features."""

import shutil

import pytest
from PIL import Image

from imagepiece_jax.common import parallel
from imagepiece_jax.data import pictures
from imagepiece_jax.inference import feature_files
from imagepiece_jax.inference.feature_files import write_features
from tests.helpers import tiny_vit
from tests.helpers.feature_folders import DAMAGED_ROWS, PHOTOGRAPH_COUNT, WRITE_OPTIONS
from tests.helpers.picture_files import noise, write_images


@pytest.fixture(scope="module")
def extractors_compiled_once():
    """Let equal models compile once per batch size."""
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
    """Paths of noise images; three files are damaged."""
    folder = tmp_path_factory.mktemp("photographs")
    write_images(folder, noise(PHOTOGRAPH_COUNT, tiny_vit.SIDE, tiny_vit.SIDE))
    for number in DAMAGED_ROWS:
        (folder / f"{number:02}.png").write_bytes(b"nothing %d" % number)
    return pictures.find_images([folder])


@pytest.fixture(scope="module")
def write(vit, photographs):
    """`write_features` with WRITE_OPTIONS."""

    def write(folder, paths=photographs, **options):
        return write_features(vit, paths, folder, **WRITE_OPTIONS | options)

    return write


@pytest.fixture(scope="module")
def written(write, tmp_path_factory):
    """A complete folder, and the result of `write_features`."""
    folder = tmp_path_factory.mktemp("features") / "whole"
    return folder, write(folder)


@pytest.fixture
def computed(monkeypatch):
    """A list that gets the number of computed rows of every call."""
    numbers = []
    batches = feature_files.Batches

    def note_rows(**options):
        numbers.append(len(options["source"]))
        return batches(**options)

    monkeypatch.setattr(feature_files, "Batches", note_rows)
    return numbers


@pytest.fixture
def collection(tmp_path, photographs):
    """A folder with copies of six photographs; one is damaged.

    Two files have equally many bytes.
    """
    folder = tmp_path / "collection"
    folder.mkdir()
    for path in photographs[:6]:
        shutil.copy(path, folder)
    for path in ("00.png", "01.png"):
        with Image.open(folder / path) as image:
            image.save(folder / path, "BMP")
    return folder
