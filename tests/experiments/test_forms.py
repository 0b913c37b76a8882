"""What forms of a program change: the page's tables, and their claims."""

import contextlib
import json

import numpy as np
import pytest

from experiments import forms, results
from experiments.forms import DENSE, ORIGIN, PLAIN, RECOMMENDED, Program
from imagepiece_jax.evaluate.cache import ResultCache
from tests import markdown
from tests.models import tiny

POINTS = forms.read_points()
DEIT = POINTS["deit_tiny_patch16_224", 1000]
DEIT_OF_FLOAT16 = POINTS["deit_tiny_patch16_224", 200]
DINO = POINTS["dinov2_small", 200]


def test_the_page_has_the_tables():
    page = forms.PAGE.read_text("utf-8")
    assert results.filled(page, forms.tables()) == page


@pytest.mark.parametrize("compared", [DEIT, DINO])
@pytest.mark.parametrize("reduction", [DENSE, RECOMMENDED])
def test_tanh_changes_less_than_bfloat16(compared, reduction):
    """A tenth of it in float32; in bfloat16 it adds less than there was."""
    rounded = compared.change(Program(reduction, "bfloat16", PLAIN)).value
    assert compared.change(Program(reduction, "float32", "tanh")).value < 0.11 * rounded
    added = compared.more(Program(reduction, "bfloat16", "tanh"))
    assert added.value < rounded
    if reduction != DENSE:
        assert added.low < 0


@pytest.mark.parametrize("reduction", [DENSE, RECOMMENDED])
def test_tanh_in_float16_changes_less_than_bfloat16(reduction):
    """But more than float16 does, where nothing is reduced."""
    rounded = DEIT.change(Program(reduction, "bfloat16", PLAIN)).value
    exact = DEIT_OF_FLOAT16.change(Program(reduction, "float16", PLAIN)).value
    tanh = DEIT_OF_FLOAT16.change(Program(reduction, "float16", "tanh")).value
    assert tanh < 0.3 * rounded
    if reduction == DENSE:
        assert exact < 0.2 * tanh


def test_a_reduction_makes_more_of_rounding():
    dense, reduced = (
        DEIT.change(Program(reduction, "bfloat16", PLAIN)).value
        for reduction in (DENSE, RECOMMENDED)
    )
    assert reduced > 10 * dense


@pytest.mark.parametrize("compared", [DEIT, DINO])
def test_the_dense_model_hardly_notices_a_direction(compared):
    assert 0 < compared.change(Program(DENSE, "float32", "direction")).value < 5e-4


def test_what_is_as_near_to_the_dense_model():
    """All but ToMe in bfloat16, which is open; there are no verdicts without KL."""
    verdicts = {}
    for program, base in DEIT.pairs:
        if base == ORIGIN and program != program.beside:
            verdicts[program] = DEIT.verdict(program)
    open_one = Program(forms.TOME, "bfloat16", "direction")
    assert verdicts.pop(open_one) == "open"
    assert {*verdicts.values()} == {"yes"}
    assert DINO.verdict(open_one) == ""


@pytest.mark.parametrize("reduction", [forms.THREE_BLOCKS, forms.DIFFRATE])
def test_fast_reductions_change_less_than_bfloat16(reduction):
    """An eighth of it; neither form is nearer to the dense model by the margin."""
    fast = Program(reduction, "bfloat16", "fast")
    exact = Program(reduction, "bfloat16", PLAIN)
    assert DEIT.change(fast).value < DEIT.change(exact).value / 8
    more = DEIT.more(fast)
    assert -forms.MARGIN < more.low < 0 < more.high < forms.MARGIN
    control = DEIT.more(exact)
    assert more.high - more.low < (control.high - control.low) / 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_programs_are_compared_image_by_image(tmp_path, monkeypatch, dtype):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(forms, "FOLDER", tmp_path)
    monkeypatch.setattr(forms.study, "BATCH", 3)
    tome = {"name": "tome", "r_list": (9, 5), "prop_attn": True}
    monkeypatch.setattr(forms, "REDUCTIONS", {DENSE: None, forms.TOME: tome})
    measured = [("tanh", [DENSE], [dtype])]
    measured += [("direction", [DENSE, forms.TOME], ["float32"])]
    monkeypatch.setattr(forms, "MEASURED", measured)
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (n, 20, 20, 3), np.uint8) for n in (3, 2)]
    with contextlib.closing(ResultCache(tmp_path)) as cache:
        forms.measure("tiny", tiny.pretrained(depth=2), images, cache, [dtype])
    (compared,) = forms.read_points().values()
    assert [*compared.pairs] == [*forms.comparisons([dtype])]
    assert (Program(DENSE, dtype, "tanh"), ORIGIN) in compared.pairs
    for pair in compared.pairs.values():
        assert pair.distance.shape == pair.same.shape == (5,)
    for program, base in compared.pairs:
        if base == program.near:
            assert 0 < compared.change(program).value < 1e-2


def test_the_distance_of_vectors_is_that_of_their_directions():
    one = np.array([[3.0, 4.0], [1.0, 0.0]])
    other = np.array([[30.0, 40.0], [0.0, 2.0]])
    np.testing.assert_allclose(forms.distance(one, other), [0, 1], atol=1e-12)


def test_graphs_gain_nothing_by_a_direction():
    lines = (forms.FOLDER / "onnx.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["batch"] for row in rows} == {1, 8}
    text = " ".join(markdown.section("PERFORMANCE.md", "Tried").split())
    for runtime in ("onnxruntime", "OpenVINO"):
        ratios = [row["ratio"][0] for row in rows if row["runtime"] == runtime]
        ends = f"{min(ratios):.2f} to {max(ratios):.2f}"
        assert f"{ends} times as fast in {runtime}" in text or f"{ends} in" in text
