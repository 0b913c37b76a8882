"""The features command: output, and options of `load`."""

import pathlib
import re

import numpy as np
import pytest
from PIL import ExifTags, Image

import imagepiece_jax
from imagepiece_jax.commands import features
from tests import test_readme
from tests.helpers import tiny_vit
from tests.helpers.picture_files import write_damaged
from tests.helpers.run_command import call
from tests.helpers.small_runs import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Saved weights, and three images; the second is damaged."""
    folder = tmp_path_factory.mktemp("features")
    imagepiece_jax.save(tiny_vit.pretrained(), folder / "weights")
    write_damaged(folder / "photos", tiny_vit.SIDE)
    return folder


def test_vectors_of_a_folder_with_a_reduction(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    out = tmp_path / "out"
    words = ["weights", "photos", f"--out={out}"]
    evit = "--reduction=evit:keep_rate=.6:blocks=(1,2)"
    ended = call(features.main, *words, evit).ok()
    rows, damaged = ended.out.splitlines()
    assert rows == f"{out}/pooled.npy: 3 x 30 float16"
    assert damaged == f"1 damaged, whose rows are NaN: {out}/damaged.csv"
    assert "photos/b.png cannot be read" in ended.err
    vit = imagepiece_jax.load("weights", reduction=tiny_vit.EVIT)
    maps = imagepiece_jax.features(vit, ["photos/a.png", "photos/c.png"])
    vectors = np.load(out / "pooled.npy")
    np.testing.assert_allclose(vectors[[0, 2]], maps.pooled, rtol=2e-3, atol=2e-3)
    names = [f"photos/{name}.png" for name in "abc"]
    assert (out / "paths.txt").read_text().split() == names
    second = call(features.main, *words, evit).ok()
    assert second.out == ended.out
    assert "3 of 3 rows exist" in second.err


def test_damaged_images_alone_are_a_failure(folder, tmp_path):
    words = [folder / "weights", folder / "photos/b.png", f"--out={tmp_path}/out"]
    ended = call(features.main, *words)
    assert ended.status == 1
    assert f"error: no photograph has a feature row; {tmp_path}" in ended.err
    assert (tmp_path / "out/damaged.csv").exists()


def test_options_of_load_are_passed_on(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    Image.new("RGB", (80, 60), "red").save(tmp_path / "a.png")
    words = ["weights", tmp_path / "a.png", "--image-size=40", "--crop=0.5"]
    words += ["--dtype=bfloat16", "--storage=float32", f"--out={tmp_path}/out"]
    call(features.main, *words).ok()
    vit = imagepiece_jax.load("weights", image_size=40, crop=0.5, dtype="bfloat16")
    expected = imagepiece_jax.features(vit, tmp_path / "a.png").pooled
    vectors = np.load(tmp_path / "out" / "pooled.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, np.float32(expected), rtol=0.02, atol=0.02)


def test_the_pages_search_finds_the_photograph_itself(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(folder / "photos")
    words = [f"{folder}/weights", "photos", "--out=vectors"]
    call(features.main, *words).ok()
    page = (ROOT / "docs" / "search.md").read_text("utf-8")
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code.replace("cat.jpg", "c.png"), {})
    lines = capsys.readouterr().out.splitlines()
    names = [f"photos/{name}.png" for name in "cab"]
    assert [line.split()[1] for line in lines] == names
    assert (lines[0][:6], lines[-1][:6]) == ("1.000 ", "0.000 ")


@pytest.fixture
def cluster():
    """A local Ray with room for two copies of a model."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # from Ray
def test_the_pages_ray_class_computes_the_commands_rows(
    assets, cluster, tmp_path, monkeypatch
):
    """400 photographs on two copies; one is turned, one gray and one damaged."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    files = sorted((assets / "data" / "nips2017_224_jpg" / "images").glob("*.jpg"))
    for file in files[:397]:
        (photos / file.name).symlink_to(file)
    with Image.open(files[397]) as image:
        image.convert("L").save(photos / "gray.png")
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        image.crop((0, 0, 120, 224)).save(photos / "turned.jpg", exif=exif)
    (photos / "damaged.jpg").write_bytes(files[398].read_bytes()[:500])
    code = test_readme.block(ROOT / "docs" / "search.md", "import io\n")
    weights = str(assets / "weights" / "dinov2_small")
    code = code.replace("hf://facebook/dinov2-small", weights)
    code = code.replace('"image_size": 224', '"image_size": 112')
    exec(code.replace("/data", str(tmp_path)), {})
    rows = cluster.data.read_parquet(str(tmp_path / "vectors")).take_all()
    vectors = {pathlib.Path(row["path"]).name: row["pooled"] for row in rows}
    words = [weights, "photos", "--image-size=112", "--reduction=0.6", "--out=own"]
    call(features.main, *words).ok()
    lines = pathlib.Path("own/paths.txt").read_text().split()
    names = [pathlib.Path(line).name for line in lines]
    assert len(rows) == 400 and {*vectors} == {*names}
    by_command = np.float32(np.load("own/pooled.npy"))
    by_ray = np.stack([np.float32(vectors[name]) for name in names])
    is_damaged = np.isnan(by_command).all(axis=1)
    assert [names[row] for row in np.flatnonzero(is_damaged)] == ["damaged.jpg"]
    np.testing.assert_array_equal(np.isnan(by_ray).all(axis=1), is_damaged)
    products = np.sum(by_command * by_ray, axis=1)
    lengths = np.linalg.norm(by_command, axis=1) * np.linalg.norm(by_ray, axis=1)
    assert (products / lengths)[~is_damaged].min() > 0.9999


@pytest.mark.parametrize("size, is_noted", [(448, True), (224, False)])
def test_a_large_image_size_is_noted(shown, caplog, size, is_noted):
    """224 pixels have a quarter of the patches, and less of the multiply-adds."""
    model = imagepiece_jax.create_model("deit_ti", image_size=size)
    vit = imagepiece_jax.Pretrained(model, {"params": {}})
    features.note_image_cost(vit)
    assert ("--image-size 224" in caplog.text) == is_noted
