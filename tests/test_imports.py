"""Who may import whom? Every file is parsed, and every import compared with one table.

A room on the left of `ALLOWED` may import what stands on its right, never back; the
longest matching name on the left counts. The standard library is free for all.
"""

import ast
import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "imagepiece_jax"
REDUCTION = f"{PACKAGE}.reduction"
ERRORS = f"{PACKAGE}.errors"
COMMON = f"{PACKAGE}.common"
ANY = "*"  # any third-party package
ROOMS = tuple(
    f"{PACKAGE}.{room}"
    for room in ("common", "reduction", "models", "data", "training", "pictures")
)
EVERYTHING = (PACKAGE, ANY)

ALLOWED = {
    # commands, experiments and the public interface: all rooms
    PACKAGE: EVERYTHING,
    ERRORS: (),
    COMMON: (ERRORS,),
    f"{PACKAGE}.config_files": (ERRORS, ANY),
    f"{PACKAGE}.cli": (f"{PACKAGE}.config_files", ERRORS, ANY),
    "train": (f"{PACKAGE}.training", f"{PACKAGE}.cli", ERRORS, ANY),
    # the rooms
    f"{PACKAGE}.training": (*ROOMS, ERRORS, ANY),
    f"{PACKAGE}.measure": (
        *ROOMS,
        f"{PACKAGE}.measure",
        f"{PACKAGE}.inference",
        ERRORS,
        ANY,
    ),
    f"{PACKAGE}.gallery": (*ROOMS, f"{PACKAGE}.gallery", ERRORS, ANY),
    f"{PACKAGE}.models": (f"{PACKAGE}.models", REDUCTION, ERRORS, ANY),
    f"{PACKAGE}.data": (f"{PACKAGE}.data", COMMON, ERRORS, ANY),
    f"{PACKAGE}.pictures": (
        f"{PACKAGE}.pictures",
        f"{REDUCTION}.tokens",
        COMMON,
        ERRORS,
        ANY,
    ),
    # inside the reduction room: counts know no arrays, ops know no method
    REDUCTION: (),
    f"{REDUCTION}.schedule": (ERRORS,),
    f"{REDUCTION}.flops": (f"{REDUCTION}.schedule", ERRORS),
    f"{REDUCTION}.tokens": (ERRORS, ANY),
    f"{REDUCTION}.ops": (f"{REDUCTION}.tokens", ERRORS, ANY),
    f"{REDUCTION}.moving": (f"{REDUCTION}.ops", f"{REDUCTION}.tokens", ERRORS, ANY),
    **dict.fromkeys(
        (f"{REDUCTION}.kernels", f"{REDUCTION}.reducers"),
        (
            f"{REDUCTION}.kernels",
            f"{REDUCTION}.moving",
            f"{REDUCTION}.ops",
            f"{REDUCTION}.tokens",
            ERRORS,
            ANY,
        ),
    ),
    f"{REDUCTION}.learned": (f"{REDUCTION}.moving", f"{REDUCTION}.tokens", ERRORS, ANY),
    f"{REDUCTION}.methods": (
        *(
            f"{REDUCTION}.{name}"
            for name in (
                "methods",
                "learned",
                "reducers",
                "ops",
                "kernels",
                "tokens",
                "schedule",
            )
        ),
        ERRORS,
        ANY,
    ),
    # configs hold numbers: reading one must not start JAX
    "configs": ("configs", "ml_collections"),
}


def inside(name, parent):
    """Whether dotted `name` is `parent` or lies below it."""
    return name == parent or name.startswith(parent + ".")


def imports(module, source, is_package=False):
    """Dotted names that `source` imports, relative ones resolved, wherever they stand.

    `from a import b` counts as a.b: b may be a module.
    """
    package = module if is_package else module.rpartition(".")[0]
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, package) if node.level else base
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def violations(module, source, is_package=False):
    """Sentences about imports of `module` that the table does not allow."""
    room = max((left for left in ALLOWED if inside(module, left)), key=len)
    bad = []
    for name in imports(module, source, is_package):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        ours = top in (PACKAGE, "configs", "train", "tests")
        named = any(inside(name, right) for right in ALLOWED[room])
        if not named and (ours or ANY not in ALLOWED[room]):
            bad.append(f"{module} imports {name}, which {room} may not")
    return bad


def python_files():
    """All Python files of the repository that people read."""
    folders = (ROOT / name for name in (PACKAGE, "configs", "tests"))
    return [ROOT / "train.py", *(f for folder in folders for f in folder.rglob("*.py"))]


def described(path):
    """(dotted module name, source, is it a package) of a file of the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return module, path.read_text("utf-8"), is_package


def test_rooms_import_only_what_they_may():
    files = [described(p) for p in python_files() if "tests" not in p.parts]
    assert {module.partition(".")[0] for module, *_ in files} == {
        PACKAGE,
        "configs",
        "train",
    }
    assert [line for file in files for line in violations(*file)] == []


@pytest.mark.parametrize(
    "module, source",
    [
        ("imagepiece_jax.reduction.schedule", "import jax"),
        (
            "imagepiece_jax.reduction.schedule",
            "from imagepiece_jax.reduction import ops",
        ),
        ("imagepiece_jax.reduction.flops", "import numpy as np"),
        (
            "imagepiece_jax.reduction.tokens",
            "from imagepiece_jax.reduction.ops import f",
        ),
        ("imagepiece_jax.reduction.tokens", "from . import ops"),
        ("imagepiece_jax.reduction.ops", "from .reducers import TopK"),
        ("imagepiece_jax.reduction.reducers", "from imagepiece_jax.models import vit"),
        (
            "imagepiece_jax.reduction.reducers",
            "import imagepiece_jax.reduction.methods",
        ),
        ("imagepiece_jax.reduction.methods.new", "from imagepiece_jax import training"),
        ("imagepiece_jax.reduction.methods.new", "from ...models.vit import Block"),
        ("imagepiece_jax.models.vit", "from imagepiece_jax.data import loader"),
        ("imagepiece_jax.models.vit", "import imagepiece_jax"),
        ("imagepiece_jax.data.loader", "from imagepiece_jax.reduction import tokens"),
        ("imagepiece_jax.data.loader", "def f():\n    import imagepiece_jax.cli"),
        ("imagepiece_jax.training.trainer", "import imagepiece_jax.describe"),
        ("imagepiece_jax.training.trainer", "from configs import base"),
        ("imagepiece_jax.benchmark.timer", "from imagepiece_jax import benchmark"),
        ("imagepiece_jax.training.trainer", "from imagepiece_jax.measure import clock"),
        ("imagepiece_jax.common.plotting", "from imagepiece_jax.reduction import ops"),
        ("imagepiece_jax.visualize.html", "from imagepiece_jax import visualize"),
        ("imagepiece_jax.describe", "import configs.base"),
        ("imagepiece_jax.describe", "from tests import oracles"),
        ("imagepiece_jax.errors", "import flax"),
        ("imagepiece_jax.common.files", "from imagepiece_jax.training import record"),
        ("imagepiece_jax.cli", "from imagepiece_jax.training import loop"),
        ("configs.deit_s", "import jax"),
        ("configs.deit_s", "from imagepiece_jax.models import zoo"),
        ("train", "from imagepiece_jax.models import vit"),
    ],
)
def test_a_bad_import_is_found(module, source):
    assert len(violations(module, source)) == 1


@pytest.mark.parametrize(
    "module, source",
    [
        ("imagepiece_jax.reduction.schedule", "import dataclasses, math"),
        ("imagepiece_jax.reduction.flops", "from .schedule import LayerPlan"),
        ("imagepiece_jax.reduction.ops", "from imagepiece_jax.reduction import tokens"),
        ("imagepiece_jax.reduction.methods.both", "from . import evit, imagepiece"),
        ("imagepiece_jax.models.vit", "from imagepiece_jax.errors import InputError"),
        ("imagepiece_jax.training.trainer", "from imagepiece_jax.data import loader"),
        (
            "imagepiece_jax.common.plotting",
            "from imagepiece_jax.reduction.tokens import DROPPED",
        ),
        ("imagepiece_jax.describe", "from imagepiece_jax import cli, models"),
        ("configs.deit_s", "from configs import base"),
        ("train", "from absl import flags\nfrom imagepiece_jax import cli"),
    ],
)
def test_a_good_import_is_left_alone(module, source):
    assert violations(module, source) == []


def device_names(module, source, is_package=False):
    """What of `jax.pmap` and `jax.distributed` a file mentions, read or imported."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)]
    names = {ast.unparse(n) for n in nodes} | {*imports(module, source, is_package)}
    wanted = ("jax.pmap", "jax.distributed")
    return {w for w in wanted if any(inside(name, w) for name in names)}


def test_only_one_file_knows_pmap_and_processes():
    """`training/parallel.py`, so that a move to other tools is one file."""
    files = [described(path) for path in (ROOT / PACKAGE).rglob("*.py")]
    found = {file[0] for file in files if device_names(*file)}
    assert found == {f"{PACKAGE}.training.parallel"}


@pytest.mark.parametrize(
    "source, found",
    [
        ("import jax\nrun = jax.pmap(f)", {"jax.pmap"}),
        ("from jax import pmap", {"jax.pmap"}),
        ("import jax\njax.distributed.initialize()", {"jax.distributed"}),
        ("from jax.distributed import initialize", {"jax.distributed"}),
        ("run = parallel.pmap(f)  # jax.pmap", set()),
    ],
)
def test_mentions_of_devices_are_found(source, found):
    assert device_names("imagepiece_jax.training.trainer", source) == found


def test_files_are_short():
    lengths = {p: len(p.read_text("utf-8").splitlines()) for p in python_files()}
    assert {str(p): n for p, n in lengths.items() if n > 400} == {}
    assert lengths[ROOT / "train.py"] < 60
