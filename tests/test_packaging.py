"""What is declared is what is used: requirements, extras, the built package."""

import ast
import importlib.metadata
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What is imported under another name than it is installed by.
INSTALLED_AS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "google": "protobuf",
    "google_crc32c": "google-crc32c",
    "ml_collections": "ml-collections",
    "orbax": "orbax-checkpoint",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}
# Needed by what we import, which does not say so itself.
NOT_IMPORTED = {"flatbuffers", "importlib_resources"}
# Imported where they are installed, by an extra, and done without elsewhere.
OPTIONAL = {"timm", "torch"}
LOCAL = {"imagepiece_jax", "configs", "scripts", "train", "tests", "tools"}
SOURCES = (".py", ".h", ".cc", ".cu")  # kernels are compiled where they are used


def requirements(name):
    """Lines of a requirements file without comments."""
    lines = (line.partition("#")[0] for line in (ROOT / name).read_text().splitlines())
    return [line.strip() for line in lines if line.strip()]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def imported(*folders):
    """Third-party packages that the Python files of these folders import."""
    names = set()
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module)
    names = {name.partition(".")[0] for name in names}
    return names - set(sys.stdlib_module_names) - LOCAL


def test_requirements_are_what_the_package_imports():
    used = {INSTALLED_AS.get(name, name) for name in imported("imagepiece_jax")}
    declared = {name_of(line) for line in requirements("requirements.txt")}
    assert used - OPTIONAL == declared - NOT_IMPORTED
    assert imported("configs") == {"ml_collections"}


def test_tests_need_only_what_is_declared():
    used = {INSTALLED_AS.get(name, name) for name in imported("tests")}
    files = ("requirements.txt", "requirements-dev.txt")
    assert used <= {name_of(line) for file in files for line in requirements(file)}


def test_dev_extra_is_requirements_dev():
    extras = PROJECT["optional-dependencies"]
    assert extras["dev"] == requirements("requirements-dev.txt")
    assert {"gpu", "onnx", "torch", "dev"} <= set(extras)


def test_every_requirement_has_a_tested_range_that_is_installed():
    for line in requirements("requirements.txt") + requirements("requirements-dev.txt"):
        found = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<([\d.]+))?", line)
        assert found, line
        installed = importlib.metadata.version(found[1]).split(".")
        low, high = found[2].split("."), (found[4] or "9999").split(".")
        assert list(map(int, low)) <= [int(part) for part in installed[: len(low)]]
        assert [int(part) for part in installed[: len(high)]] < list(map(int, high))


def test_python_versions_are_those_of_the_makefile():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    assert "(3, 11) <= sys.version_info < (3, 14)" in (ROOT / "Makefile").read_text()


@pytest.mark.slow
def test_the_package_can_be_built_and_is_whole(tmp_path):
    """From a copy, because building writes into the source folder."""
    for name in ("pyproject.toml", "README.md", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "imagepiece_jax",
        tmp_path / "imagepiece_jax",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--wheel-dir", tmp_path / "wheels", tmp_path],
        capture_output=True,
        text=True,
    )
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("building needs setuptools from a package index; there is none")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.endswith(SOURCES)}
        (metadata,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    files = (ROOT / "imagepiece_jax").rglob("*")
    files = (file for file in files if file.name.endswith(SOURCES))
    assert inside == {str(pathlib.Path(file).relative_to(ROOT)) for file in files}
    assert f"Version: {PROJECT['version']}" in lines
    needed = [name_of(x[15:]) for x in lines if x.startswith("Requires-Dist: ")]
    assert {name_of(line) for line in requirements("requirements.txt")} <= set(needed)
