"""The direction of imports: every file is parsed and held to one order of rooms."""

import ast
import importlib.util
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "imagepiece_jax"

# A room may import itself and those above it in this list.
ROOMS = (
    "errors",
    "common",
    "reduction",
    "data",
    "input",
    "models",
    "weights",
    "config",
    "evaluate",
    "training",
    "inference",
    "benchmark",
    "visualize",
    "commands",
)
APART = {
    *(("data", "reduction"), ("inference", "training"), ("visualize", "benchmark")),
    *(("input", "reduction"), ("models", "input"), ("evaluate", "input")),
    *(("evaluate", "config"), ("inference", "input"), ("visualize", "input")),
    ("weights", "input"),
}
TOP = {"__init__", "__main__", "cli", "errors"}
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
    {"sweep_text"},
)
PLAIN_PYTHON = REDUCTION[0]
# Inside the training room: what keeps a run alive knows nothing of what is trained.
OF_CLUSTER = {"cluster", "logging"}


def room_of(module):
    """The room of a module of the package, or "commands"."""
    name = module.removeprefix(f"{PACKAGE}.")
    room = name.partition(".")[0]
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
        return top == "configs" or name.startswith(f"{PACKAGE}.errors.")
    if module.startswith("experiments"):  # it does what a user of the package can do
        private = any(part.startswith("_") for part in name.split(".")[1:])
        return top in (PACKAGE, "experiments") and not private
    if top != PACKAGE:  # tests, tools, configs, experiments and train.py are nobody's
        return False
    if module == "train":
        return room_of(name) == "entry"
    ours = room_of(module)
    theirs = room_of(name)
    if ours == "entry":  # it starts commands by their names
        return theirs in ("errors", "common")
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
    if ours == theirs == "reduction":
        mine = next(
            (i for i, part in enumerate(REDUCTION) if module.split(".")[2] in part)
        )
        other = next(
            (i for i, part in enumerate(REDUCTION) if name.split(".")[2] in part)
        )
        return other <= mine
    if (ours, theirs) in APART:
        return False
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


def described_files(*folders):
    found = []
    for name in folders:
        found += map(described, (ROOT / name).rglob("*.py"))
    return found


def test_imports_point_one_way():
    files = described_files(PACKAGE, "configs", "experiments")
    files.append(described(ROOT / "train.py"))
    found = []
    for file in files:
        found += violations(*file)
    assert found == []


def cases(text):
    """(module, source) of each line "MODULE | SOURCE"; ~ is the package."""
    return [line.split(" | ") for line in text.replace("~", PACKAGE).split("\n")[1:-1]]


BAD = """
~.reduction.layer_plan | import jax
~.reduction.layer_plan | from ~.reduction import ops
~.reduction.token_counts | import numpy as np
~.reduction.ops | from ~.reduction.moves import f
~.reduction.ops | from . import moves
~.reduction.ops | from .reducers import TopK
~.reduction.reducers | from ~.models import vit
~.reduction.reducers | import ~.reduction.methods
~.reduction.methods.new | from ~ import training
~.reduction.methods.new | from ...models.vit import Block
~.models.vit | import ~
~.data.batches | from ~.reduction import moves
~.data.batches | def f(): import ~.cli
~.data.batches | from ~.input import loader
~.input.loader | from ~.models import vit
~.inference.features | from ~.input import loader
~.evaluate.accuracy | import ~.training.trainer
~.models.vit | import ~.weights.load
~.weights.load | from ~.config.run import RunConfig
~.config.run | from ~.training import data
~.inference.optimize | import ~.training.trainer
~.training.trainer | from configs import base
~.training.trainer | from ~ import cli
~.training.trainer | from ~ import __main__
~.training.trainer | from ~.benchmark import device
~.training.cluster.keeper | from ~.training import trainer
~.training.cluster.keeper | from ~.training.train_step import TrainState
~.benchmark.device | from ~.commands import benchmark
experiments.tables | from ~.evaluate.accuracy import _sums
experiments.tables | from tools import h200
~.visualize.html | from ~.benchmark import device
~.commands.describe | import configs.base
~.commands.describe | from tests import oracles
~.commands.describe | from ~.commands import doctor
~.training.trainer | from ~.commands import _weights
~.errors | import flax
~.data.batches | from ~.config.command_line import parse
~.cli | from ~.training import trainer
configs.deit_s | import jax
configs.deit_s | from ~.models import registry
train | from ~.models import vit
"""


@pytest.mark.parametrize("module, source", cases(BAD))
def test_a_bad_import_is_found(module, source):
    assert len(violations(module, source)) == 1


# Packages that only one path needs, imported where they are used; so are modules that
# Windows does not have.
ON_DEMAND = (
    "imagepiece_jax.common.orbax_files",  # which has Orbax at its top
    *("array_record", "google", "google_crc32c", "grain"),
    *("huggingface_hub", "jax2onnx", "matplotlib", "ml_collections", "onnx", "orbax"),
    *("simplejpeg", "sklearn", "tensorboardX", "tensorflow_datasets"),
    *("timm", "torch"),
    *("fcntl", "resource"),
)


def hidden_imports(module, source, is_package=False):
    """Imports inside functions of what should stand at the top of the file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, functions)]
    names = set()
    for f in nodes:
        names.update(imports(module, ast.unparse(f), is_package))
    return {n for n in names if not {n, n.partition(".")[0]} & {*ON_DEMAND}}


def test_imports_stand_at_the_top():
    files = described_files(PACKAGE)
    # Commands import most after their flags: --help takes no second. They read configs
    # before JAX, which what is made of a config needs. The entry hears signals first.
    late = ("commands", "flags", "config", "entry")
    files = [f for f in files if room_of(f[0]) not in late]
    assert {f[0]: hidden_imports(*f) for f in files if hidden_imports(*f)} == {}


@pytest.mark.parametrize(
    "source, found",
    [
        ("import jax\ndef f():\n    pass", set()),
        ("def f():\n    import torch", set()),
        ("def f():\n    import jax", {"jax"}),
        ("def f():\n    from . import vit", {"imagepiece_jax.models.vit"}),
    ],
)
def test_imports_in_functions_are_found(source, found):
    assert hidden_imports("imagepiece_jax.models.block", source) == found


# Rooms whose texts may speak of flags and of fields of a config.
SPEAKS_OF_FLAGS = ("flags", "config", "commands", "training", "entry")
OF_GIT = {"--error-unmatch", "--always", "--dirty", "--abbrev=40", "--exclude=*"}


def texts_on_flags(source):
    """Texts of a file, not docstrings, with a --flag or a field of a config."""
    tree = ast.parse(source)
    docs = set()
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            if ast.get_docstring(node) is not None:
                docs.add(node.body[0].value)
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and node not in docs and node.value not in OF_GIT:
            texts.append(node.value)
    found = r"(?<![\w-])--[a-z]|(?<!\w)config\.(?!json)[a-z]|train\.py"
    return [text for text in texts if re.search(found, text)]


def test_rooms_below_the_commands_name_their_own_parameters():
    """Whose flags and fields commands and configs know: `InputError.renamed`."""
    found = {}
    for module, source, _ in described_files(PACKAGE):
        if room_of(module) not in SPEAKS_OF_FLAGS and texts_on_flags(source):
            found[module] = texts_on_flags(source)
    assert found == {}


@pytest.mark.parametrize(
    "source, found",
    [
        ('"""Of --out."""\nx = "config.json, a_config.b and a--b"', []),
        ('x = "give --out"', ["give --out"]),
        ('x = f"config.lr is {x}"', ["config.lr is "]),
        ('def f():\n    """Of --out."""\n    return "by train.py"', ["by train.py"]),
    ],
)
def test_a_text_on_flags_is_found(source, found):
    assert texts_on_flags(source) == found


def mentions(module, source, is_package=False):
    """What a file reads or imports of the tools that will be replaced one day."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute)]
    names = {ast.unparse(n) for n in nodes} | {*imports(module, source, is_package)}
    wanted = ("jax.pmap", "jax.shard_map", "jax.distributed", "orbax")
    return {w for w in wanted if any((n + ".").startswith(w + ".") for n in names)}


def test_devices_processes_and_orbax_are_known_by_one_file_each():
    """A move to other tools is one file."""
    files = described_files(PACKAGE)
    found = {file[0]: mentions(*file) for file in files if mentions(*file)}
    assert found == {
        f"{PACKAGE}.common.orbax_files": {"orbax"},
        f"{PACKAGE}.common.parallel": {"jax.pmap"},
        f"{PACKAGE}.training.cluster.job": {"jax.distributed"},
    }
    assert {path.stem for path in (ROOT / PACKAGE).glob("*.py")} == TOP
