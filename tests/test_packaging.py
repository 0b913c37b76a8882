"""What is declared is what is used: requirements, extras, the built package."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest
import yaml

import imagepiece_jax
from imagepiece_jax.models.spec import create_model
from imagepiece_jax.models.variables import variable_shapes
from tests import compiling
from tests.command import start
from tests.models import tiny
from tests.runs import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text("utf-8"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
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
    "yaml": "pyyaml",
}
# Needed by what we import, which does not say so itself.
NOT_IMPORTED = {"importlib_resources"}
# Imported where they are installed, by an extra, and done without elsewhere.
OPTIONAL = {"huggingface_hub", "onnx", "timm", "torch"}
LOCAL = {"imagepiece_jax", "configs", "experiments", "train", "tests", "tools"}
# Tables stand beside what reads them.
SOURCES = (".py", ".json", ".txt", ".gz")


def requirements(name):
    """Lines of a requirements file without comments."""
    lines = (line.partition("#")[0] for line in (ROOT / name).read_text().splitlines())
    return [line.strip() for line in lines if line.strip()]


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def parts(version):
    """12.0.1 as numbers, which compare."""
    return [int(part) for part in version.split(".")]


def imported(*folders):
    """Third-party packages that the Python files of these folders import."""
    names = set()
    for folder in folders:
        for file in (ROOT / folder).rglob("*.py"):
            names |= imported_by(ast.walk(ast.parse(file.read_text())))
    return names


def imported_by(nodes):
    """Third-party packages that these nodes of a syntax tree import."""
    names = set()
    for node in nodes:
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
    both = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["train"]
    assert both == requirements("requirements.txt")
    assert imported("configs") == {"ml_collections"}


def test_tests_need_only_what_is_declared():
    extras = PROJECT["optional-dependencies"]
    assert extras["dev"] == requirements("requirements-dev.txt")
    assert {"train", "gpu", "onnx", "torch", "hub", "parity", "dev"} <= set(extras)
    used = {INSTALLED_AS.get(name, name) for name in imported("tests")}
    declared = requirements("requirements.txt") + extras["dev"]
    declared += extras["parity"]  # else these are skipped
    assert used <= {name_of(line) for line in declared}


def test_every_requirement_has_a_tested_range_that_is_installed():
    for line in requirements("requirements.txt") + requirements("requirements-dev.txt"):
        pinned, _, _ = line.partition("; sys_platform")
        found = re.fullmatch(r"([\w.-]+)>=([\d.]+)(,<([\d.]+))?", pinned)
        assert found, line
        installed = importlib.metadata.version(found[1]).split(".")
        low = parts(found[2])
        high = parts(found[4] or "9999")
        assert low <= parts(".".join(installed[: len(low)])), line
        assert parts(".".join(installed[: len(high)])) < high, line


@pytest.mark.parametrize("name", ["cpu", "cuda13"])
def test_a_lock_has_a_version_of_everything_and_no_place(name):
    """If it lacks something: make lock. Neither address of an index nor path."""
    lines = (ROOT / "locks" / f"{name}.txt").read_text().splitlines()
    locked = {}
    for line in lines:
        pinned = r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.]+)( ; [^:/@\\]+)?"
        found = re.fullmatch(pinned, line)
        assert found, line
        locked.setdefault(found[1].lower(), []).append(found[2])
    files = ("requirements.txt", "requirements-dev.txt")
    needed = []
    for file in files:
        needed += requirements(file)
    needed += PROJECT["optional-dependencies"]["gpu"] * (name == "cuda13")
    for line in needed:
        low, _, high = re.search(r">=([\d.]+)(,<([\d.]+))?", line).groups()
        for version in locked[re.sub(r"[-_.]+", "-", name_of(line)).lower()]:
            assert parts(low) <= parts(version), line
            assert high is None or parts(version) < parts(high), line
    assert ("jax-cuda13-plugin" in locked) == (name == "cuda13")


def test_versions_are_those_of_the_makefile_and_of_the_package():
    assert PROJECT["requires-python"] == ">=3.11,<3.15"
    assert "(3, 11) <= sys.version_info < (3, 15)" in (ROOT / "Makefile").read_text()
    versions = [f"3.{minor}" for minor in range(11, 15)]
    classifier = "Programming Language :: Python :: 3."
    named = [x for x in PROJECT["classifiers"] if x.startswith(classifier)]
    assert [name.rpartition(" ")[2] for name in named] == versions
    # That of the package; what has a copy of it agrees.
    assert PROJECT["dynamic"] == ["version"]
    version = imagepiece_jax.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (version, PROJECT["license"])
    assert f"## [{version}] - 20" in (ROOT / "CHANGELOG.md").read_text()
    assert f"Version {version}, " in (ROOT / "README.md").read_text("utf-8")


def test_the_notes_of_a_release_are_its_part_of_the_changelog(tmp_path):
    """As the workflow cuts it out, of several parts."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    (script,) = (
        step["run"]
        for step in workflow["jobs"]["release"]["steps"]
        if "notes.md" in step.get("run", "") and "gh release" not in step["run"]
    )
    parts = {"1.2.0": "new\n\n### Added\n\n- a\n", "1.1.2": "b\n", "1.1": "c\n"}
    text = "".join(f"## [{version}] - day\n\n{part}" for version, part in parts.items())
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{text}")
    for version, part in parts.items():
        env = os.environ | {"TAG": f"v{version}"}
        subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=env, check=True)
        notes = (tmp_path / "notes.md").read_text()
        assert notes == f"## [{version}] - day\n\n{part}"
    env = os.environ | {"TAG": "v9.9.9"}
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=env)
    assert done.returncode != 0


def copy_source(folder):
    """What a package is built from, copied because building writes beside it."""
    for name in ("pyproject.toml", "README.md", "requirements.txt", "Makefile"):
        shutil.copy(ROOT / name, folder)
    for name in ("imagepiece_jax", "configs", "docs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)


def run_build(command, **environment):
    """Run a command that builds the package; skip where setuptools cannot be had."""
    env = os.environ | {"PIP_NO_COMPILE": "no"} | environment  # pip's way to say yes
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("building needs setuptools from a package index; there is none")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this source."""
    folder = tmp_path_factory.mktemp("source")
    copy_source(folder)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    run_build([*command, "--wheel-dir", folder / "wheels", folder])
    (wheel,) = (folder / "wheels").glob("*.whl")
    return wheel


def test_the_wheel_has_every_folder_of_modules():
    files = (ROOT / "imagepiece_jax").rglob("*.py")
    folders = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    assert {*SETUPTOOLS["packages"]} == folders | {"imagepiece_jax.configs"}


@pytest.mark.slow
def test_after_make_the_notebook_finds_the_package_where_it_lies(tmp_path):
    """Requirements are those of this environment, to install nothing twice."""
    copy_source(tmp_path)
    make = ["make", "-C", tmp_path, f"PYTHON={sys.executable}", ".venv/installed"]
    run_build(make, PIP_NO_DEPS="1")
    codes = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    first = "\n".join("".join(cell["source"]) for cell in codes[:2])
    # Behind its own packages, of which another editable install may be one of these.
    packages = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n"
    script = f"{packages}{first}\nprint(imagepiece_jax.__file__)"
    done = subprocess.run(
        [tmp_path / ".venv/bin/python", "-c", script],
        cwd=tmp_path / "docs",
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/imagepiece_jax/__init__.py\n"


@pytest.mark.slow
def test_the_wheel_is_whole(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
        inside = {name for name in names if name.endswith(SOURCES)}
        (metadata,) = (n for n in archive.namelist() if n.endswith("/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    files = [f for f in (ROOT / "imagepiece_jax").rglob("*") if f.suffix in SOURCES]
    configs = {f"imagepiece_jax/configs/{f.name}" for f in ROOT.glob("configs/*.py")}
    assert inside == {str(file.relative_to(ROOT)) for file in files} | configs
    assert f"Version: {imagepiece_jax.__version__}" in lines
    needed = [name_of(x[15:]) for x in lines if x.startswith("Requires-Dist: ")]
    assert {name_of(line) for line in requirements("requirements.txt")} <= set(needed)


@pytest.mark.slow
def test_an_installed_wheel_works_in_an_empty_folder(wheel, tmp_path):
    """Commands that read configs find the wheel's copy."""
    site = tmp_path / "site"
    folder = tmp_path / "empty"
    folder.mkdir()
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    ended = start(*install, "--no-compile", "--target", site, wheel).ok()
    fields = {"patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 4}
    model = create_model(
        "vit_mini", image_size=16, num_classes=10, mlp_ratio=1.0, **fields
    )
    tiny.write(folder / "vit_mini.npz", tiny.fill(variable_shapes(model, 16), 0))

    config = ["--config=configs/quickstart.py", "--config.model.depth=6"]
    described = start(
        *("-m", "imagepiece_jax", "describe", *config), cwd=folder, PYTHONPATH=str(site)
    )
    assert "GMACs an image" in described.ok().out
    words = ["--weights=vit_mini.npz", "--data=digits", "--resize=none", "--limit=16"]
    ended = start(
        *("-m", "imagepiece_jax", "evaluate", *words),
        cwd=folder,
        PYTHONPATH=str(site),
        XLA_FLAGS=compiling.QUICK,
    ).ok()
    assert "images 16" in ended.out
    assert "experiments" not in os.listdir(site / "imagepiece_jax")


def test_pre_commit_hooks_run_here():
    """Local hooks, whose commands are those of the environment."""
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        command, *words = hook["entry"].split()
        words = [word for word in words if word != "--fix"]
        check = ["--check"] if words == ["format"] else []
        start("-m", command, *words, *check, "configs", "train.py").ok()
