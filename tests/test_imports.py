"""The direction of imports: every file is parsed and held to one order of floors."""

import ast
import graphlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = "imagepiece_jax"
# Nine floors. A file may import files of its own floor and of floors above it in this
# list; rooms of one floor have one direction, too. Indented lines divide a floor:
# counts know no arrays, operations know no method, and training.cluster knows no model.
FLOORS = """
errors common
kernels
reduction.block_plan reduction.schedules
    reduction.state
    reduction.moves
    reduction.provenance
    reduction.reducers reduction.token_selector
    reduction.contract
    reduction.methods
    reduction.reduction
data
models
weights
inference evaluation
training.config training.data training.cluster training.logging
    training recovery visualize benchmark exporters
cli commands __main__
"""
# Training imports none of these rooms.
ABOVE_TRAINING = ("recovery", "inference", "exporters", "visualize", "benchmark")
FLOOR_OF = {}
for number, line in enumerate(FLOORS.split("\n")):
    FLOOR_OF |= dict.fromkeys(line.split(), number)
PLAIN_PYTHON = FLOOR_OF["reduction.block_plan"]
ONLY = {  # module: its only imports from the package
    "errors": (),
    "cli": ("errors", "common"),
    "__main__": ("errors", "common", "cli"),
    "train": ("cli", "errors", "weights", "training"),
}


def floor(module):
    """The number of the floor of a module of the package, "room.part.file".

    The package's public names are on the commands' floor.
    """
    parts = [part for part in FLOOR_OF if f"{module}.".startswith(f"{part}.")]
    return FLOOR_OF[max(parts, key=len, default="commands")]


def imported_names(source):
    """Dotted names that `source` imports anywhere; `from a import b` counts as a.b."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def is_allowed(module, name):
    """Whether `module` may import the dotted `name`, which is of this repository."""
    top, _, imported = name.partition(".")
    if module.startswith("configs"):
        of_base = ("training.config.RunConfig", "models.architecture.Architecture")
        return top == "configs" or imported.startswith(("common.checks.", *of_base))
    if module.startswith("experiments"):  # they use public names
        is_private = any(part.startswith("_") for part in name.split(".")[1:])
        return top in (PACKAGE, "experiments", "configs") and not is_private
    if name == "configs.base":
        return module == "train"
    if top != PACKAGE or not imported:  # nothing imports tests or tools
        return False
    importer = module.removeprefix(f"{PACKAGE}.")
    if importer in ONLY:
        return imported.partition(".")[0] in ONLY[importer]
    if importer.startswith("training.") and imported.startswith(ABOVE_TRAINING):
        return False
    if imported.startswith("commands."):  # no command imports a command
        return importer.startswith("commands.") and imported.startswith("commands._")
    return module == PACKAGE or floor(imported) <= floor(importer)


def find_violations(module, source):
    """Sentences about imports of `module` that the order does not allow."""
    bad = []
    for name in imported_names(source):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or name == f"{PACKAGE}.__version__":
            continue
        if top in (PACKAGE, "configs", "experiments", "train", "tests", "tools"):
            is_fine = is_allowed(module, name)
        elif module.startswith("configs"):
            is_fine = top == "ml_collections"
        elif module.startswith(f"{PACKAGE}.reduction."):
            is_fine = floor(module.removeprefix(f"{PACKAGE}.")) > PLAIN_PYTHON
        else:
            is_fine = module not in (f"{PACKAGE}.errors", PACKAGE)
        if not is_fine:
            bad.append(f"{module} imports {name}")
    return bad


def sources(folder):
    """{dotted module name: source} of a folder's files."""
    texts = {}
    for path in (ROOT / folder).rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        texts[module.removesuffix(".__init__")] = path.read_text("utf-8")
    return texts


def test_rooms_import_without_cycles():
    rooms = {}
    for module, source in sources(PACKAGE).items():
        room, *_ = module.removeprefix(f"{PACKAGE}.").split(".")
        for name in imported_names(source):
            top, _, imported = name.partition(".")
            if top == PACKAGE != room and imported.partition(".")[0] != room:
                rooms.setdefault(room, set()).add(imported.partition(".")[0])
    graphlib.TopologicalSorter(rooms).prepare()


def test_imports_point_one_way():
    violations = find_violations("train", (ROOT / "train.py").read_text("utf-8"))
    for folder in (PACKAGE, "configs", "experiments"):
        for module, source in sources(folder).items():
            violations += find_violations(module, source)
    assert violations == []


def test_test_files_mirror_the_package():
    """tests/ROOM/test_FILE.py or test_FILE_ASPECT.py."""
    misplaced = []
    for test in (ROOT / "tests").rglob("test_*.py"):
        room = ROOT / PACKAGE / test.parent.relative_to(ROOT / "tests")
        if room == ROOT / PACKAGE or not room.is_dir():  # of several rooms, or of none
            continue
        stems = [path.stem for path in room.iterdir() if path.stem[:2] != "__"]
        subject = test.stem.removeprefix("test_")
        if not any(f"{subject}_".startswith(f"{stem}_") for stem in stems):
            misplaced.append(str(test.relative_to(ROOT)))
    assert misplaced == []


def test_a_public_name_has_one_home():
    """Functions and classes; a command's `main` and an export format's are alike."""
    homes = {}
    for module, source in sources(PACKAGE).items():
        if module.endswith("_format"):
            continue
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                homes.setdefault(node.name, []).append(module)
    shared = {name: modules for name, modules in homes.items() if len(modules) > 1}
    assert [name for name in shared if name[0] != "_"] == ["main"], shared
