"""Recovered weights in each form that they were not recovered for."""

import dataclasses
import os
import shutil
import subprocess
import sys
import warnings

import pytest

import imagepiece_jax
from imagepiece_jax.commands import describe
from imagepiece_jax.models.pretrained import Pretrained
from tests.command import call
from tests.models import recoveries, tiny
from tests.models.recoveries import TOME
from tests.runs import ROOT

FIELDS = {"name": "vit_mini", "num_heads": tiny.HEADS}
LARGER = 2 * tiny.SIDE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recoveries.saved(tmp_path_factory.mktemp("recovered") / "m")


def load(path, **options):
    return imagepiece_jax.load(path, **options)


def by_hand(path):
    """Another model with the variables and the record, as a caller may put it."""
    vit = load(path)
    return Pretrained(tiny.model(), vit.variables, recovery=vit.recovery)


OTHER_FORMS = {
    "load, dense": lambda path: load(path, reduction="none"),
    "load, another reduction": lambda path: load(path, reduction={**TOME, "r": 2}),
    "load, another size": lambda path: load(path, image_size=LARGER),
    "load, proportional attention": lambda path: load(
        path, prop_attn=not load(path).model.prop_attn
    ),
    "dense": lambda path: load(path).with_reduction(None),
    "another reduction": lambda path: load(path).with_reduction(tiny.EVIT),
    "another size": lambda path: load(path).at_size(LARGER),
    "fewer blocks": lambda path: load(path).first_blocks(2),
    "fewer tokens": lambda path: load(path).model_with_tokens(5),
    "a program of fewer tokens": lambda path: imagepiece_jax.optimize(
        load(path), batch_size=1, tokens=5
    ),
    "another model": lambda path: dataclasses.replace(load(path), model=tiny.model()),
    "by hand": by_hand,
    "the file alone": lambda path: load(path / "model.safetensors", **FIELDS),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_another_form_warns_once_at_the_callers_line(folder, form):
    with pytest.warns(UserWarning, match="recovered for tome r=3, 3 blocks") as found:
        OTHER_FORMS[form](folder)
    assert [each.filename for each in found] == [__file__]


def test_a_copied_folder_warns(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    with pytest.warns(UserWarning, match="recovered for tome"):
        load(copy, reduction="none")


def test_its_own_form_is_silent(folder, tmp_path):
    """By its folder or its file, with or without what `recover` did not look at."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vit = load(folder)
        vit.with_reduction(TOME)
        vit.at_size(tiny.SIDE)
        vit.first_blocks(tiny.DEPTH)
        vit.analyzed()
        vit.model_with_tokens(vit.model.plan[-1].mlp_tokens - 1)
        load(folder, class_names=[*"abcdefg"])
        load(folder / "model.safetensors", reduction=TOME, **FIELDS)
        assert load(imagepiece_jax.save(tmp_path / "m", vit)).recovery == vit.recovery
        unchanged = recoveries.saved(tmp_path / "unchanged", changed=False)
        load(unchanged, reduction="none")
        load(unchanged / "model.safetensors", **FIELDS)


def test_a_record_of_an_earlier_version_says_no_size(tmp_path):
    vit = recoveries.recovered(image_size=None, depth=None, weights=None)
    path = imagepiece_jax.save(tmp_path / "m", vit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path).at_size(LARGER)
    with pytest.warns(UserWarning, match="recovered for tome r=3 alone"):
        load(path, reduction="none")


def test_labels_say_what_weights_were_recovered_for(folder):
    vit = load(folder)
    assert vit.label == "tome r=3 (recovered)"
    assert "tome r=3 (recovered), images" in repr(vit)
    with pytest.warns(UserWarning, match="recovered for"):
        dense = vit.with_reduction(None)
    assert dense.label == "dense (recovered for tome r=3, 3 blocks, 20x20 pixels)"
    [line] = dense.differences_from_training()
    assert line == "reduction dense (recovered for tome r=3)"
    assert recoveries.recovered(changed=False).label == "tome r=3"


def test_a_session_is_told_once_for_each_line(folder):
    """Python's own filter, by which commands show warnings, too."""
    code = "import sys, imagepiece_jax\nvit = imagepiece_jax.load(sys.argv[1])\n"
    code += "for name in ('none', 'evit'):\n    vit.with_reduction(name)\n"
    words = [sys.executable, "-c", code, folder]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    done = subprocess.run(words, env=variables, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "recovered for" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("<string>:4: UserWarning")


def test_describe_says_what_weights_were_recovered_for(folder):
    own = call(describe.main, f"--weights={folder}").ok()
    assert "recovered for tome r=3, 3 blocks, 20x20 pixels: KL 0.2500" in own.out
    assert "recovered" not in own.err
    with pytest.warns(UserWarning, match="recovered for tome r=3"):
        call(describe.main, f"--weights={folder}", "--config.reduction.name=none").ok()
