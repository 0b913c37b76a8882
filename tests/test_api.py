import jax
import numpy as np
import pytest

import imagepiece_jax
from imagepiece_jax.inference import predictor
from tests.helpers import tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.run_command import start
from tests.helpers.small_runs import ROOT

IMPORTED = """
import sys, imagepiece_jax as i
loaded = lambda *names: print(*(name in sys.modules for name in names))
assert set(i.__all__) <= set(dir(i))
loaded("jax")
i.create_model
loaded("jax", "orbax", "ml_collections")
i.create_model("deit_ti", reduction="tome")
methods = "imagepiece_jax.reduction.methods."
loaded(methods + "tome", methods + "atc")
# No room has the name of a public function, which importing it would hide.
import pathlib
rooms = {path.stem for path in pathlib.Path(i.__file__).parent.iterdir()}
print(sorted(rooms & set(i.__all__)))
"""


def test_imports_wait_until_use():
    ended = start("-c", IMPORTED, PYTHONPATH=str(ROOT)).quiet()
    lines = ["False", "True False False", "True False", "[]"]
    assert ended.out.splitlines() == lines
    assert imagepiece_jax.Predictor is predictor.Predictor
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = imagepiece_jax.lode


def test_a_path_in_place_of_a_model_is_refused(tmp_path):
    for name in ("Predictor", "features", "recover", "compare", "export"):
        arguments = [] if name == "Predictor" else [tmp_path]
        with refused("load"):
            getattr(imagepiece_jax, name)("deit.pth", *arguments)


def test_a_program_is_not_traced():
    program = imagepiece_jax.optimize(tiny_vit.pretrained(depth=1), 1)
    with pytest.raises(TypeError, match="tracer"):
        jax.jit(program)(np.zeros((1, 20, 20, 3), np.float32))
