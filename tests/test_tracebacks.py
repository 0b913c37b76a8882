"""What Python shows of a mistake: the caller's line and the sentence, and no more."""

import subprocess
import sys
import traceback

import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax import errors
from imagepiece_jax.errors import InputError
from tests.models import tiny
from tests.runs import ROOT


@pytest.fixture(scope="module")
def vit():
    return tiny.pretrained()


CALLS = {
    "load": lambda vit: imagepiece_jax.load("no.npz"),
    "reduction": lambda vit: vit.with_reduction("tome:r=-1"),
    "optimize": lambda vit: imagepiece_jax.optimize(vit, batch_size=0),
    "features": lambda vit: imagepiece_jax.features(vit, np.zeros((1, 3))),
    "save": lambda vit: imagepiece_jax.save("hf://a/b", vit),
    "step": lambda vit: imagepiece_jax.recover(vit, "photos", step=100),
    "unnamed": lambda vit: imagepiece_jax.Predictor(vit, 32),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_shows_the_callers_line_alone(vit, name):
    with pytest.raises(InputError) as caught:
        CALLS[name](vit)
    error = caught.value
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    assert set(files) == {__file__, errors.__file__}
    assert files.count(errors.__file__) == 1
    text = "".join(traceback.format_exception(error))
    assert text.count("Traceback") == 1
    assert text.rstrip().endswith(str(error))


@pytest.mark.parametrize(
    "call, text",
    [
        (CALLS["step"], "step is unknown; did you mean steps?"),
        (
            lambda vit: imagepiece_jax.features(vit, "a.png", layer=2),
            "layer is unknown; did you mean layers?",
        ),
        (
            CALLS["unnamed"],
            "argument 2 is 32, without the name of what it is; allowed: labels=.., "
            "top=.., batch_size=.., resize=.., threads=..",
        ),
        (
            lambda vit: vit.at_size(pixels=32),
            "pixels is unknown; allowed: image_size",
        ),
    ],
    ids=["recover", "features", "Predictor", "at_size"],
)
def test_a_mistyped_argument_is_told_what_was_meant(vit, call, text):
    with pytest.raises(InputError) as caught:
        call(vit)
    assert str(caught.value) == text


def test_jaxs_switch_shows_everything(vit):
    """For who looks for a fault of this package."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        with pytest.raises(InputError) as caught:
            imagepiece_jax.load("no.npz")
    finally:
        jax.config.update("jax_traceback_filtering", before)
    assert len(traceback.extract_tb(caught.value.__traceback__)) > 3


def test_an_error_of_another_kind_keeps_its_traceback():
    @errors.short_traceback
    def outer():
        return inner()

    def inner():
        raise KeyError("a fault") from OSError("its cause")

    with pytest.raises(KeyError) as caught:
        outer()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "inner"
    assert isinstance(caught.value.__cause__, OSError)


CELL = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
shell.run_cell("import imagepiece_jax")
shell.run_cell("%colors nocolor")
shell.run_cell("vit = imagepiece_jax.load('no.npz')")
"""


def test_in_a_notebook_the_sentence_stands_alone():
    pytest.importorskip("IPython")
    command = [sys.executable, "-c", CELL]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert shown.rstrip().endswith("InputError: path is no.npz: no such file or folder")
    assert "errors.py" not in shown and shown.count("\n") < 12, shown
