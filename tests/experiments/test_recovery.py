"""What `recover` gives back: the page, and which images learn and judge."""

import numpy as np
import pytest
from PIL import Image

from experiments import recovery
from imagepiece_jax.evaluation.result_cache import encode_bits


def test_the_page_has_the_lines():
    page = (recovery.ROOT / "docs/results/recovery.md").read_text("utf-8")
    assert recovery.cells_table(recovery.read_lines()).strip() in page


def test_no_image_both_teaches_and_judges(tmp_path):
    folder = tmp_path / "data/nips2017_224_jpg/images"
    folder.mkdir(parents=True)
    tests = tmp_path / "val"
    tests.mkdir()
    for index in range(12):
        for place in (folder, tests):
            Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(
                place / f"{index:02}.png"
            )
    found = recovery.open_sources(tmp_path, tests)
    shown = {}
    for name, source in found.items():
        shown[name] = {int(source[i].pixels[0, 0, 0]) for i in range(len(source))}
    assert shown["learned"] == {1, 3, 5, 7, 9, 11}
    assert shown["photographs"] == {0, 2, 4, 6, 8, 10}
    assert len(shown["imagenette"]) == 12


def test_points_are_of_the_photographs_that_a_fold_did_not_learn_from():
    """600 of them: fold A answers for 200 odd ones, B for 400 of the even ones."""
    even = np.arange(1000) % 2 == 0
    lines = {}
    for fold, learned in (("A", even), ("B", ~even)):
        right = {
            "dense": np.ones(1000, bool),
            "before": learned,
            "after": learned | (np.arange(1000) >= 600),
        }
        bits = {name: encode_bits(answers) for name, answers in right.items()}
        lines[f"peaks-0.5-{fold}"] = {"right": bits}
    ((cost, (lost, recovered)),) = recovery.points_lost(lines, "peaks").items()
    assert cost == 0.5
    assert lost.value == 100
    # Right from 600 on: all 200 odd ones, and 160 of the 400 even ones.
    assert recovered.value == pytest.approx(100 * 240 / 600)
