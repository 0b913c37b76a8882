"""The package is imported piece by piece."""

import pytest

import imagepiece_jax
from imagepiece_jax.inference import predictor as api
from tests.command import start
from tests.runs import ROOT


def test_the_package_imports_nothing_until_it_is_used():
    code = (
        "import sys, imagepiece_jax as i; assert 'jax' not in sys.modules; "
        "assert set(i.__all__) <= set(dir(i)); i.create_model; print('jax' in "
        "sys.modules, 'orbax' in sys.modules, 'ml_collections' in sys.modules); "
        "i.create_model('deit_ti', reduction='tome'); of = i.__name__ + "
        "'.reduction.methods.'; print(of + 'tome' in sys.modules, of + 'atc' in "
        "sys.modules)"
    )
    ended = start("-c", code, PYTHONPATH=str(ROOT))
    assert (ended.out, ended.err) == ("True False False\nTrue False\n", "")
    assert imagepiece_jax.Predictor is api.Predictor
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = imagepiece_jax.lode
