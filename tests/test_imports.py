"""The direction of imports: every file is parsed and held to one order of rooms."""

import ast
import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "imagepiece_jax"

# A room may import itself and those above it in this list. Those up to training are the
# core, which a stranger can read without the rest: it imports nothing of deploy/.
ROOMS = (
    "errors",
    "common",
    "reduction",
    "data",
    "input",
    "models",
    "config",
    "evaluate",
    "training",
    "deploy",
    "benchmark",
    "commands",
)
# The same inside of deploy/.
DEPLOY = (
    {"pictures"},
    {"weights"},
    {"inference"},
    {"recover"},
    {"compare"},
    {"visualize"},
)
# Inside the reduction room: counts know no arrays, operations know no method.
REDUCTION = (
    {"layer_plan", "schedules", "token_counts"},
    {"ops"},
    {"state"},
    {"moves"},
    {"provenance"},
    {"reducers", "token_selector"},
    {"contract"},
    {"methods"},
    {"reduction"},
)
PLAIN_PYTHON = REDUCTION[0]
# Inside the training room: what keeps a run alive knows nothing of what is trained.
OF_CLUSTER = {"cluster", "logging"}


def floor(order, module):
    """The place in an order of the module's part of its room."""
    return next(i for i, part in enumerate(order) if module.split(".")[2] in part)


def room_of(module):
    """The room of a module of the package."""
    room = module.removeprefix(f"{PACKAGE}.").partition(".")[0]
    return {"cli": "flags", "__main__": "entry"}.get(room, room)


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
            base = "." * int(node.level) + (node.module or "")
            base = importlib.util.resolve_name(base, package) if node.level else base
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def allowed(module, name):
    """Whether `module` may import the dotted `name`, which is of this repository."""
    top, _, rest = name.partition(".")
    if module.startswith("configs"):
        return top == "configs" or name.startswith(f"{PACKAGE}.common.checks.")
    if module.startswith("experiments"):  # it does what a user of the package can do
        private = any(part.startswith("_") for part in name.split(".")[1:])
        return top in (PACKAGE, "experiments", "configs") and not private
    if name == "configs.base":  # of a clone: benchmark trains by its recipe
        return module in ("train", f"{PACKAGE}.benchmark.workloads")
    if top != PACKAGE:  # tests, tools, configs, experiments and train.py are nobody's
        return False
    if module == "train":
        return room_of(name) in ("flags", "errors", "config", "training", "deploy")
    ours = room_of(module)
    theirs = room_of(name)
    if ours == "entry":  # it starts commands by their names
        return theirs in ("errors", "common", "flags")
    if not rest:
        return False
    if theirs == "commands":  # no command imports a command, but what they share
        return ours == "commands" and name.split(".")[2].startswith("_")
    if "entry" in (ours, theirs):
        return False
    if ours == "commands" or module == PACKAGE:
        return True
    if ours == "flags" or theirs == "flags":
        return ours == "flags" and theirs in ("flags", "errors", "common", "config")
    for room, order in (("reduction", REDUCTION), ("deploy", DEPLOY)):
        if ours == theirs == room:
            mine, other = (floor(order, path) for path in (module, name))
            return other <= mine
    if ours == theirs == "training" and module.split(".")[2] == "cluster":
        return name.split(".")[2] in OF_CLUSTER
    return ROOMS.index(theirs) <= ROOMS.index(ours)


def violations(module, source, is_package=False):
    """Sentences about imports of `module` that the order does not allow."""
    bad = []
    for name in imports(module, source, is_package):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or name == f"{PACKAGE}.__version__":
            continue
        if top in (PACKAGE, "configs", "experiments", "train", "tests", "tools"):
            fine = allowed(module, name)
        elif module.startswith("configs"):
            fine = top == "ml_collections"
        elif module.startswith(f"{PACKAGE}.reduction."):
            fine = module.split(".")[2] not in PLAIN_PYTHON
        else:
            fine = module not in (f"{PACKAGE}.errors", PACKAGE)
        if not fine:
            bad.append(f"{module} imports {name}")
    return bad


def described(path):
    """(dotted module name, source, is it a package) of a file of the repository."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    return module, path.read_text("utf-8"), is_package


def test_imports_point_one_way():
    found = violations(*described(ROOT / "train.py"))
    for folder in (PACKAGE, "configs", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            found += violations(*described(path))
    assert found == []


@pytest.mark.parametrize(
    "module, name",
    [
        ("reduction.layer_plan", "jax"),
        ("reduction.ops", "imagepiece_jax.reduction.methods"),
        ("training.trainer", "imagepiece_jax.deploy.weights.load"),
        ("deploy.weights.load", "imagepiece_jax.deploy.inference.optimize"),
        ("training.cluster.keeper", "imagepiece_jax.training.trainer"),
        ("commands.describe", "imagepiece_jax.commands.doctor"),
    ],
)
def test_a_bad_import_is_found(module, name):
    assert len(violations(f"{PACKAGE}.{module}", f"import {name}")) == 1
