"""An installation without the extra `train`: working parts, and refusals."""

import ast
import importlib
import json
import subprocess
import sys

import pytest

from imagepiece_jax.data.sources import registry
from imagepiece_jax.errors import InputError
from tests.helpers import compiling, small_runs, tiny_vit
from tests.helpers.run_command import sentence, start
from tests.helpers.small_runs import ROOT
from tests.test_packaging import INSTALLED_AS, PROJECT, imported_by, name_of


def test_dependencies_equal_public_imports():
    code = "import imagepiece_jax as p, sys; [getattr(p, name) for name in p.__all__]"
    code += "; print(*(m.__file__ for m in sys.modules.values() if m.__name__"
    code += ".startswith('imagepiece_jax')), sep='\\n')"
    files = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    names = set()
    for file in files.splitlines():
        with open(file, encoding="utf-8") as source:
            statements = ast.parse(source.read()).body  # none inside functions
        names |= imported_by(statements)
    installed = {INSTALLED_AS.get(name, name) for name in names}
    installed.add("tyro")  # commands need it
    assert installed == {name_of(line) for line in PROJECT["dependencies"]}


@pytest.mark.slow
def test_readmes_example_needs_only_dependencies():
    """The example prints nothing unless asked."""
    ended = start(
        "-m", "tests.helpers.readme_example", "--hide", XLA_FLAGS=compiling.QUICK
    ).ok()
    before, _, after = ended.err.partition("asked\n")
    assert before == "" and "of the MACs" in after
    result = json.loads(ended.out)
    assert result["reduction"].startswith("peaks:")
    assert result["steps"] == 1
    assert result["logits"] == [2, tiny_vit.CLASSES]


HIDING = "import runpy, sys; from tests.helpers import readme_example; "
HIDING += "readme_example.hide(); "
HIDING += "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def test_a_command_on_weights_needs_no_configs():
    words = ["predict", "none.npz", __file__]
    assert "none.npz" in sentence(start("-c", HIDING, "imagepiece_jax", *words))


@pytest.fixture
def without(monkeypatch):
    return lambda module: monkeypatch.setitem(sys.modules, module, None)


def test_training_names_missing_packages_first(without, tmp_path):
    without("tensorboardX")
    workdir = tmp_path / "run"
    message = "training needs tensorboardX, which is not installed"
    with pytest.raises(InputError, match=message):
        small_runs.train(small_runs.quickstart_config(), workdir)
    assert not workdir.exists()


def test_data_and_checkpoints_name_missing_packages(without, monkeypatch, tmp_path):
    without("tensorflow_datasets")
    with pytest.raises(InputError, match="imagenet2012 needs tensorflow-datasets"):
        registry.open_source("imagenet2012", "val", data_dir=tmp_path)
    without("datasets")
    with pytest.raises(InputError, match="hf:a/b needs datasets, .*hub-data"):
        registry.open_source("hf:a/b", "val")
    without("orbax")
    name = "imagepiece_jax.common.checkpoints"
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(InputError, match="a checkpoint needs orbax-checkpoint, which"):
        importlib.import_module(name)
    monkeypatch.delitem(sys.modules, name, raising=False)
