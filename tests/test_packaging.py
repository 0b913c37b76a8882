import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml

import imagepiece_jax
from tests.helpers import compiling, markdown, tiny_vit
from tests.helpers.run_command import start
from tests.helpers.small_runs import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
# Packages whose name of import differs.
INSTALLED_AS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "yaml": "pyyaml",
}
# Our imports need it without declaring it.
NOT_IMPORTED = {"absl-py", "importlib_resources"}
# Imported only where an extra installed them.
OPTIONAL = {"datasets", "huggingface_hub", "onnx", "onnxruntime", "pillow_heif"}
OPTIONAL |= {"pyarrow", "timm", "torch"}
LOCAL = {"imagepiece_jax", "configs", "experiments", "train", "tests", "tools"}
# Tables lie beside their readers.
SOURCES = (".py", ".json", ".txt", ".gz")


def requirements(name):
    lines = (line.partition("#")[0] for line in (ROOT / name).read_text().splitlines())
    return [line.strip() for line in lines if line.strip()]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def imported(*folders):
    """Third-party packages that the folders' Python files import."""
    names = set()
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            names |= imported_by(ast.walk(ast.parse(file.read_text())))
    return names


def imported_by(nodes):
    """Third-party packages that nodes of a syntax tree import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    names = {name.partition(".")[0] for name in names}
    return names - set(sys.stdlib_module_names) - LOCAL


def test_requirements_equal_imports():
    modules = imported("imagepiece_jax") | imported("configs")  # of train.py, too
    used = {INSTALLED_AS.get(name, name) for name in modules}
    declared = {name_of(line) for line in requirements("requirements.txt")}
    assert used - OPTIONAL == declared - NOT_IMPORTED
    both = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["train"]
    assert both == requirements("requirements.txt")
    assert imported("configs") == {"ml_collections"}


def test_the_page_counts_direct_requirements():
    rows, _ = markdown.tables(markdown.section("docs/questions.md", "Install"))
    counts = [int(row["direct requirements"]) for row in rows]
    whole = requirements("requirements.txt")
    assert counts == [len(PROJECT["dependencies"]), len(whole)]


def test_versions_agree():
    assert PROJECT["requires-python"] == ">=3.11,<3.15"
    assert "(3, 11) <= sys.version_info < (3, 15)" in (ROOT / "Makefile").read_text()
    version = imagepiece_jax.__version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this source; skips without setuptools."""
    folder = tmp_path_factory.mktemp("source")  # building writes beside it
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("imagepiece_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    command += ["--wheel-dir", folder / "wheels", folder]
    ended = subprocess.run(command, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in ended.stderr:
        pytest.skip("building needs setuptools from a package index; there is none")
    assert ended.returncode == 0, ended.stderr
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_is_whole(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
        inside = {name for name in names if name.endswith(SOURCES)}
    files = [f for f in (ROOT / "imagepiece_jax").rglob("*") if f.suffix in SOURCES]
    assert inside == {str(file.relative_to(ROOT)) for file in files}


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    folder = tmp_path / "empty"
    folder.mkdir()
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    ended = start(*install, "--no-compile", "--target", site, wheel).ok()
    vit = tiny_vit.pretrained(image_size=16, num_classes=10, depth=1)
    imagepiece_jax.save(vit, folder / "weights")
    words = ["-m", "imagepiece_jax", "evaluate", "weights", "digits", "--limit=16"]
    variables = {"PYTHONPATH": str(site), "XLA_FLAGS": compiling.QUICK}
    ended = start(*words, "--crop=1", cwd=folder, **variables).ok()
    assert "images 16" in ended.out
    assert "experiments" not in os.listdir(site / "imagepiece_jax")
