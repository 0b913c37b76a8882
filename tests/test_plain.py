"""An installation without the extra `train`: working parts, and refusals."""

import ast
import json
import pathlib
import sys

import pytest

from imagepiece_jax.data.sources import registry
from tests.helpers import compiling, small_runs, tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.run_command import sentence, start
from tests.test_packaging import PROJECT, name_of, required_by

PUBLIC = """
import imagepiece_jax, sys
for name in imagepiece_jax.__all__:
    getattr(imagepiece_jax, name)
files = {name: module.__file__ for name, module in sys.modules.items()
         if name.startswith("imagepiece_jax")}
print(*files.values(), sep="\\n")
"""


def test_dependencies_equal_public_imports():
    required = {"tyro"}  # of commands
    for file in start("-c", PUBLIC).ok().out.splitlines():
        statements = ast.parse(pathlib.Path(file).read_text()).body
        required |= required_by(statements)  # none inside functions
    assert required == {name_of(line) for line in PROJECT["dependencies"]}


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


def test_training_names_missing_packages_first(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    workdir = tmp_path / "run"
    with refused("training needs tensorboardX, which is not installed"):
        small_runs.train(small_runs.quickstart_config(), workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(
    "name, module, message",
    [
        ("imagenet2012", "tensorflow_datasets", "needs tensorflow-datasets"),
        ("hf:a/b", "datasets", "hub-data"),
    ],
)
def test_data_sets_name_missing_packages(monkeypatch, tmp_path, name, module, message):
    monkeypatch.setitem(sys.modules, module, None)
    with refused(name, message):
        registry.open_source(name, "val", data_dir=tmp_path)
