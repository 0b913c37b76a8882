"""Types of files: cells of tiny models, and the page's figures by hand."""

import base64
import json
import types as builtin
from unittest import mock

import numpy as np
import pytest

from experiments import towers, types
from experiments.types import Cell
from imagepiece_jax.common.timer import Timing
from imagepiece_jax.data.source import ArraySource
from imagepiece_jax.errors import InputError
from imagepiece_jax.weights.save import save
from tests.helpers import markdown, tiny_vit

DENSE = Cell("deit", "dense", "float32")
REDUCED = DENSE._replace(form="0.6")
MIRRORED = DENSE._replace(form="mirrored")
COUNT = 60


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A study of a tiny classifier; image i has the label i % CLASSES."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("types")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, tiny_vit.SIDE, tiny_vit.SIDE, 3), np.uint8)
    photographs = ArraySource([*pixels], np.arange(COUNT) % tiny_vit.CLASSES)
    vit = tiny_vit.pretrained()
    path = str(save(vit, folder / "weights"))
    weights = {"deit": path, "deit-0.6": path}
    study = types.Study(folder / "files", photographs, weights, judged=COUNT // 2)
    # The tiny model lacks the blocks 3, 6 and 9.
    of_three_blocks = {"deit": "attended:macs={share}:counts=proportional"}
    with mock.patch.dict(types.METHODS, of_three_blocks):
        yield builtin.SimpleNamespace(study=study, vit=vit, pixels=pixels)


def test_even_photographs_judge_and_odd_ones_calibrate(tried):
    study = tried.study
    np.testing.assert_array_equal(study.pixels, tried.pixels[::2])
    np.testing.assert_array_equal(study.calibrating.indices, np.arange(1, COUNT, 2))


def test_lines_have_the_answers_of_the_model(tried):
    config = tried.vit.config
    images = ((tried.pixels[::2] / 255 - config.mean) / config.std).astype(np.float32)
    answer = tiny_vit.logits(tried.vit.model)
    first = answer(tried.vit.variables, images).argmax(1)
    first_mirrored = answer(tried.vit.variables, images[:, :, ::-1]).argmax(1)
    lines = {cell: tried.study.measure(cell) for cell in (DENSE, MIRRORED)}
    for cell, classes in ((DENSE, first), (MIRRORED, first_mirrored)):
        bits = np.frombuffer(base64.b64decode(lines[cell]["right"]), np.uint8)
        right = np.unpackbits(bits)[: COUNT // 2]
        np.testing.assert_array_equal(right, classes == np.arange(0, COUNT, 2) % 7)
    assert 0 < right.sum()
    assert lines[DENSE]["openvino"] == pytest.approx(1, abs=1e-6)
    value, *_ = lines[MIRRORED]["dense"]["first_class"]
    assert value == pytest.approx(100 * np.mean(first == first_mirrored))
    assert "dense" not in lines[DENSE]
    size = (tried.study.files / "deit, dense, float32.onnx").stat().st_size
    assert lines[DENSE]["megabytes"] == size / 1e6


def test_weights_that_are_not_recovered_are_refused(tried):
    with pytest.raises(InputError, match="0.6 recovered"):
        tried.study.vit(DENSE._replace(form="0.6 recovered"))
    assert tried.study.vit(REDUCED).gmacs < 0.7 * tried.vit.gmacs


def test_files_take_turns(tried, monkeypatch):
    monkeypatch.setattr(towers, "RULES", Timing(warmup=1, repeats=2, seconds=0.0))
    monkeypatch.setattr(types, "timed", lambda model: [DENSE, REDUCED])
    for cell in (DENSE, REDUCED):
        tried.study.file(cell)
    for runtime in towers.RUNTIMES:
        dense, reduced = json.loads(json.dumps(tried.study.times("deit", runtime)))
        assert Cell(*reduced["cell"]) == REDUCED
        assert dense["runtime"] == runtime
        assert len(dense["seconds"]) == 2
        assert min(dense["seconds"] + reduced["seconds"]) > 0


def test_gains_are_turn_by_turn():
    int8 = DENSE._replace(dtype="int8")
    cell = REDUCED._replace(dtype="int8")
    seconds = {DENSE: [0.040, 0.060], int8: [0.020, 0.024], cell: [0.010, 0.020]}
    times = {("OpenVINO", key): value for key, value in seconds.items()}
    row = types.times_row(times, cell, ["OpenVINO"])
    assert row["ms, OpenVINO"] == "15.0 [10.0, 20.0]"
    assert row["gain, OpenVINO"] == "3.50 [3.00, 4.00]"
    assert row["gain left, OpenVINO"] == "1.60 [1.20, 2.00]"
    assert types.times_row(times, DENSE, ["OpenVINO"])["gain, OpenVINO"] == ""


def test_the_page_is_made_from_the_lines():
    folder = markdown.ROOT / types.FOLDER
    text = folder.with_suffix(".md").read_text("utf-8")
    assert text == types.page(folder)
    lines = (folder / "runs.jsonl").read_text("utf-8").splitlines()
    rows, *_ = markdown.tables(text)
    shown = {row["file"]: row["accuracy, %"] for row in rows}
    for line in map(json.loads, lines):
        model, file = line["name"].split(", ", 1)
        if model == "deit":
            bits = np.frombuffer(base64.b64decode(line["right"]), np.uint8)
            percent = 100 * np.unpackbits(bits).sum() / 300
            value, *_ = markdown.interval(shown.pop(file))
            assert value == pytest.approx(percent, abs=0.051)
    assert not shown
