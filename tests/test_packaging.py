"""Requirements, an installation without the extra `train`, and the wheel."""

import ast
import json
import pathlib
import re
import shutil
import sys
import tomllib

import pytest
import yaml

import imagepiece_jax
from imagepiece_jax.common.extras import EXTRA_MODULES
from imagepiece_jax.data.sources import registry
from tests.helpers import compiling, small_runs, tiny_vit
from tests.helpers.refused_calls import refused
from tests.helpers.run_command import start
from tests.helpers.small_runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED_AS = {"PIL": "pillow", **EXTRA_MODULES["train"]}
REQUIREMENTS = re.findall(r"^\w\S*", (ROOT / "requirements.txt").read_text(), re.M)
# Our imports need it without declaring it.
NOT_IMPORTED = {"absl-py", "importlib_resources"}
# Imported only where an extra installed them.
OPTIONAL = {"datasets", "huggingface_hub", "onnx", "onnxruntime", "pillow_heif"}
OPTIONAL |= {"pyarrow", "timm", "torch"}
LOCAL = {"imagepiece_jax", "configs", "experiments", "train", "tests", "tools"}
# Tables lie beside their readers.
SOURCES = (".py", ".json", ".txt", ".gz")


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def required_by(nodes):
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    names = {name.partition(".")[0] for name in names}
    names -= {*sys.stdlib_module_names} | LOCAL
    return {INSTALLED_AS.get(name, name) for name in names}


def test_requirements_equal_imports():
    used = set()
    for folder in ("imagepiece_jax", "configs"):  # of train.py, too
        for file in (ROOT / folder).rglob("*.py"):
            used |= required_by(ast.walk(ast.parse(file.read_text())))
    declared = {name_of(line) for line in REQUIREMENTS}
    assert used - OPTIONAL == declared - NOT_IMPORTED
    both = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["train"]
    assert both == REQUIREMENTS


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


def test_versions_agree():
    assert PROJECT["requires-python"] == ">=3.11,<3.15"
    assert "(3, 11) <= sys.version_info < (3, 15)" in (ROOT / "Makefile").read_text()
    version = imagepiece_jax.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


@pytest.mark.slow
def test_readmes_example_needs_only_dependencies():
    words = ["-m", "tests.helpers.readme_example", "--hide"]
    ended = start(*words, XLA_FLAGS=compiling.QUICK).ok()
    assert ended.err == ""  # the package says nothing unasked
    result = json.loads(ended.out)
    assert result["reduction"].startswith("peaks:")
    assert result["steps"] == 1
    assert result["logits"] == [2, 1000]


def test_missing_packages_are_named_first(monkeypatch, tmp_path):
    for module in ("tensorboardX", "tensorflow_datasets", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with refused("training needs tensorboardX, which is not installed"):
        small_runs.train(small_runs.quickstart_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with refused("imagenet2012", "needs tensorflow-datasets"):
        registry.open_source("imagenet2012", "val", data_dir=tmp_path)
    with refused("hf:a/b", "hub-data"):
        registry.open_source("hf:a/b", "val", data_dir=tmp_path)


def list_sources(folder):
    files = (folder / "imagepiece_jax").rglob("*")
    return {file.relative_to(folder) for file in files if file.suffix in SOURCES}


@pytest.mark.slow
def test_an_installed_wheel_is_whole_and_works_in_an_empty_folder(tmp_path):
    source = tmp_path / "source"  # building writes beside it
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("imagepiece_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, source)
    wheels = ["-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", tmp_path]
    ended = start(*wheels, source)
    if "No matching distribution found for setuptools" in ended.err:
        pytest.skip("building needs setuptools from a package index; there is none")
    ended.ok()
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    start(*install, "--no-compile", "--target", site, wheel).ok()
    assert list_sources(site) == list_sources(ROOT)
    folder = tmp_path / "empty"
    folder.mkdir()
    vit = tiny_vit.pretrained(image_size=16, num_classes=10, depth=1)
    imagepiece_jax.save(vit, folder / "weights")
    words = ["-m", "imagepiece_jax", "evaluate", "weights", "digits", "--limit=16"]
    variables = {"PYTHONPATH": str(site), "XLA_FLAGS": compiling.QUICK}
    ended = start(*words, "--crop=1", cwd=folder, **variables).ok()
    assert "images 16" in ended.out
