"""Names that exist nowhere: `make lint` runs this file.

    python -m tools.lint

In docstrings, comments, messages and pages, names in backticks must exist: each part of
a dotted name in the code here, or the whole name in its library. Results and the
changelog tell the past and are not read.

In the package, a line "name: text" of a docstring explains a parameter of its function,
or a field or a parameter of its class. Linters read such lines only under a heading.
"""

import ast
import builtins
import fnmatch
import pathlib
import pkgutil
import re
import subprocess
import sys

# {whose names: names that no code here uses}
FOREIGN = {
    "DINOv2": {"dinov2_vits14_pretrain.pth"},
    "ImageNet": {"ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"},
    "Python": {"get_context", "project.urls"},
    "PyTorch": {"DataLoader"},
    "SLURM, gunicorn, Docker": {"--gpus-per-task", "--preload", "--shm-size"},
    "Triton": {"TYPE_UINT8"},
    "XLA, pytest": {"--xla_gpu_deterministic_ops", "--no-loadscope-reorder"},
    "a user": {"class_02", "class_10", "class_2", "norm_merge"},
    "the hub": {"HF_HOME"},
    "transformers": {"BitImageProcessor", "model_file_name", "model_quantized.onnx"},
}
ALIASES = {"jnp": "jax.numpy", "nn": "flax.linen", "nnx": "flax.nnx", "np": "numpy"}
NAME = re.compile(r"(?<![\w.\"-])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
PLACEHOLDER = re.compile("(NAME|FIELD|BLOCK|VERSION)(?![A-Z])")
PAST = re.compile(r"docs/results/|CHANGELOG\.md")
# A page names what is gone with the revision that has it.
GONE = re.compile(r"`[^`]+`(?: and `[^`]+`)*\s+of\s+revision\s+[0-9a-f]{8}")
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
QUOTED = {
    ".py": re.compile(r"`([^`\n]+)`"),
    ".md": re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`"),
}
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
PATH = re.compile(
    r"(?<![\w./])((?:[\w.*-]+/)+[\w.*-]+\.(?:py|md|sh|mjs|toml)"
    r"|(?:imagepiece_jax|configs|docs|experiments|tests|tools)(?:/\w+)+)(?![\w.])"
)
EXPLAINED = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): ")
# An underscore, a dot, CamelCase or capitals; other words may be English.
LIKE_PYTHON = re.compile(r"\w_\w|^_\w|\.|[a-z][A-Z]|^[A-Z]{2,}$")


class KnownNames:
    """Words and files of a repository."""

    def __init__(self, files):
        self.files = [f"/{file}" for file in files]
        self.words = {*dir(builtins)}.union(*FOREIGN.values())
        for file in files:
            path = pathlib.PurePath(file)
            self.words |= {path.name, *path.with_suffix("").parts}

    def read(self, tree):
        """Add the names in a file's code, and its strings without spaces."""
        for node in ast.walk(tree):
            for field in ("id", "attr", "arg", "name", "asname"):
                name = getattr(node, field, None)
                if isinstance(name, str):
                    self.words.update(name.split("."))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if not re.search(r"[\s`]", node.value):
                    self.words |= {node.value, *re.findall(r"\w+", node.value)}

    def has_name(self, dotted):
        """Whether code or a library has a dotted name."""
        parts = dotted.split(".")
        if dotted in self.words or self.words.issuperset(parts):
            return True
        parts[0] = ALIASES.get(parts[0], parts[0])
        try:
            pkgutil.resolve_name(".".join(parts))
        except (ImportError, AttributeError, ValueError):  # `....a_b` is no name
            return bool(PLACEHOLDER.search(dotted))
        return True


def example_names(text):
    """Names in an example of Python that look so, are called or are keywords."""
    try:
        ast.parse(re.sub(r"\.\.+", "...", text))
    except SyntaxError:  # a command, or English
        return
    for found in NAME.finditer(text):
        if LIKE_PYTHON.search(found[0]) or text[found.end() :][:1] in ("(", "="):
            yield found[0]


def example_stale_names(text, known):
    """Yield the flags, paths and Python names in an example that exist nowhere."""
    for flag in FLAG.findall(text):
        field = re.sub("^--(no-)?", "", flag).replace("-", "_")
        if flag not in known.words and not known.has_name(field):
            yield flag
    for path in PATH.findall(text):
        pattern = f"*/{PLACEHOLDER.sub('*', path)}"
        if not any(fnmatch.filter(known.files, pattern + end) for end in ("", "/*")):
            yield path
    if text not in known.words:
        names = example_names(re.sub(r"\S*/\S*", "", text))
        yield from (name for name in names if not known.has_name(name))


def stale_names(text, suffix, known):
    """Yield (line number, name) of every name in a file's text that exists nowhere."""
    if suffix == ".md":
        for skipped in (GONE, FENCED):
            text = skipped.sub(lambda found: "\n" * found[0].count("\n"), text)
    for quoted in QUOTED[suffix].finditer(text):
        line = text.count("\n", 0, quoted.start()) + 1
        for name in example_stale_names(quoted[1].replace("\n", " "), known):
            yield line, name


def stale_arguments(tree):
    """Yield (line number, name) of every explained argument that does not exist."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        # Functions inside a function may explain what they take from outside.
        names = {child.arg for child in ast.walk(node) if isinstance(child, ast.arg)}
        if isinstance(node, ast.ClassDef):
            for child in ast.walk(node):
                if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                    names.add(child.id)
        docstring = ast.get_docstring(node, clean=False) or ""
        statement = node.body[0]
        for number, line in enumerate(docstring.splitlines(), statement.lineno):
            explained = EXPLAINED.match(line.removeprefix(" " * statement.col_offset))
            for argument in explained[1].split(", ") if explained else ():
                if argument not in names:
                    yield number, argument


def main() -> int:
    """Print the stale names in the files of this repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.check_output(command, text=True).splitlines()
    files = [file for file in listed if pathlib.Path(file).is_file()]
    known = KnownNames(files)
    problems = []
    for file in files:
        path = pathlib.Path(file)
        if path.suffix == ".py":
            tree = ast.parse(path.read_bytes())
            known.read(tree)
            if file.startswith("imagepiece_jax/"):
                for line, name in stale_arguments(tree):
                    problems.append(f"{file}:{line}: no argument {name} exists")
        elif path.suffix == ".json":
            known.words.update(re.findall(r'"([\w.]+)"', path.read_text("utf-8")))
    for file in files:
        path = pathlib.Path(file)
        if path.suffix in QUOTED and not PAST.match(file):
            for line, name in stale_names(path.read_text("utf-8"), path.suffix, known):
                problems.append(f"{file}:{line}: {name} exists nowhere")
    for problem in problems:
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
