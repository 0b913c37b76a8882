"""How a line reads, as far as a program can tell: one thought a line."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROOMS = ("configs", "experiments", "imagepiece_jax", "tests", "tools")
COMPREHENSIONS = (ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp)
TRUTHS = ("bool", "isdir", "isfile", "exists", "is_dir", "is_file", "any", "all")


def files():
    """All Python files, by their paths."""
    found = [ROOT / "train.py"]
    for room in ROOMS:
        found += sorted((ROOT / room).rglob("*.py"))
    return found


def names(node):
    """The names that an expression has in it."""
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def is_pair(node):
    """Whether one assignment gives several targets a value each.

    A swap is none: there a value needs what an earlier target was.
    """
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    target = node.targets[0]
    if not isinstance(target, ast.Tuple):
        return False
    assigned = set()
    for each, value in zip(target.elts, node.value.elts, strict=False):
        if assigned & names(value):
            return False
        assigned |= names(each)
    return True


def is_text_by_truth(node):
    """Whether a text or a list is multiplied by what looks like a truth value."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Mult):
        return False
    for text, factor in ((node.left, node.right), (node.right, node.left)):
        if is_text(text) and isinstance(factor, ast.Name | ast.Attribute):
            return True
        if (is_text(text) or isinstance(text, ast.List)) and is_truth(factor):
            return True
    return False


def is_text(node):
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr)


def is_truth(node):
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.Call):
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        return name in TRUTHS
    return isinstance(node, ast.Compare | ast.BoolOp)


def is_tuple_statement(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Tuple)


def has_two_loops(node):
    return isinstance(node, COMPREHENSIONS) and len(node.generators) > 1


def is_nested_conditional(node):
    if not isinstance(node, ast.IfExp):
        return False
    conditionals = [each for each in ast.walk(node) if isinstance(each, ast.IfExp)]
    return len(conditionals) > 1


RULES = {
    "assigns several values at once": is_pair,
    "multiplies a text by a truth value": is_text_by_truth,
    "has a tuple as a statement": is_tuple_statement,
    "has two loops in one comprehension": has_two_loops,
    "has a conditional expression in another": is_nested_conditional,
}


def test_lines_are_calm():
    broken = []
    for path in files():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for rule, breaks in RULES.items():
                if breaks(node):
                    broken.append(f"{path.relative_to(ROOT)}:{node.lineno} {rule}")
    assert broken == []


BROKEN = {
    "a, b = x, y": "assigns several values at once",
    "self.a, self.b = x, f(y)": "assigns several values at once",
    "text = 's' * (n != 1)": "multiplies a text by a truth value",
    "text = f'{x}/' * given": "multiplies a text by a truth value",
    "parts = os.path.isdir(x) * 'folder:'": "multiplies a text by a truth value",
    "f(x), g(y)": "has a tuple as a statement",
    "[x for y in z for x in y]": "has two loops in one comprehension",
    "x = a if b else c if d else e": "has a conditional expression in another",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_line_that_breaks_a_rule_is_found(line):
    found = []
    for rule, breaks in RULES.items():
        if any(map(breaks, ast.walk(ast.parse(line)))):
            found.append(rule)
    assert found == [BROKEN[line]]


@pytest.mark.parametrize(
    "line",
    [
        "a, b = f(x)",
        "a, b = b, a",
        "a, b = b, a + b",
        "text = '-' * len(x)",
        "ends = [(0, 0)] * rank",
        "f((x, y))",
        "[x for x in y if x]",
        "x = (a if b else c) + 1",
    ],
)
def test_a_calm_line_is_not(line):
    found = [each for each in ast.walk(ast.parse(line)) if breaks_one(each)]
    assert found == []


def breaks_one(node):
    return any(breaks(node) for breaks in RULES.values())
