"""Find explained arguments that do not exist: `make lint` runs this file.

    python -m tools.docstring_arguments imagepiece_jax

A line "name: text" of a docstring explains a parameter of its function, or a field or a
parameter of its class. Linters read such lines only under a heading.
"""

import ast
import pathlib
import re
import sys

EXPLAINED = re.compile(r"^([a-z_]\w*(?:, [a-z_]\w*)*): ")


def stale_arguments(tree):
    """Yield (line number, name) of every explained argument that does not exist."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            names = class_names(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = parameter_names(node)
        else:
            continue
        docstring = ast.get_docstring(node, clean=False) or ""
        statement = node.body[0]
        for number, line in enumerate(docstring.splitlines(), statement.lineno):
            explained = EXPLAINED.match(line.removeprefix(" " * statement.col_offset))
            if explained is None:
                continue
            for argument in explained[1].split(", "):
                if argument not in names:
                    yield number, argument


def parameter_names(function):
    """The parameters of a function, and those of functions inside it."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            names.add(node.arg)
    return names


def class_names(node):
    """The fields of a class, and the parameters of its methods."""
    names = set()
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(
            statement.target, ast.Name
        ):
            names.add(statement.target.id)
        elif isinstance(statement, ast.Assign):
            names |= {
                target.id for target in statement.targets if hasattr(target, "id")
            }
        elif isinstance(statement, ast.FunctionDef):
            names |= {statement.name} | parameter_names(statement)
    return names


def main(folders: list[str]) -> int:
    """Print the stale arguments in the Python files of folders."""
    count = 0
    for folder in folders:
        for file in sorted(pathlib.Path(folder).rglob("*.py")):
            for line, name in stale_arguments(ast.parse(file.read_bytes())):
                print(f"{file}:{line}: no argument {name}, which is explained")
                count += 1
    return min(count, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
