"""Our docstrings for griffe, which reads them for docs/api.md; mkdocs.yml names it"""

import griffe

from tools.docstrings import google_style


class GoogleStyle(griffe.Extension):
    """A hook that griffe calls for every function and class that it has read."""

    def on_function(self, *, func: griffe.Function, **_) -> None:
        """Rewrite the docstring of a function."""
        _rewrite(func, {parameter.name for parameter in func.parameters}, "Args")

    def on_class(self, *, cls: griffe.Class, **_) -> None:
        """Rewrite the docstring of a class, and describe its fields."""
        for member in cls.members.values():
            if member.is_attribute and not member.docstring:
                _describe(member)
        init = cls.members.get("__init__")
        if init is None or "dataclass" in cls.labels:  # fields, whose checks say little
            _rewrite(cls, cls.members, "Attributes")
        else:
            _rewrite(cls, {parameter.name for parameter in init.parameters}, "Args")


def _describe(field: griffe.Attribute) -> None:
    """Give a field what the comment beside it says, or the lines above it."""
    if field.lineno is None or field.endlineno is None:
        return
    lines = field.filepath.read_text("utf-8").splitlines()
    first = field.lineno - 1
    last = field.endlineno - 1
    _, _, comment = lines[last].partition("  # ")
    words = [comment] if comment else []
    while not comment and lines[first - 1].startswith("    # "):
        first -= 1
        words.insert(0, lines[first].strip("# "))
    if words:
        field.docstring = griffe.Docstring(" ".join(words), parent=field)


def _rewrite(member: griffe.Object, names, arguments: str) -> None:
    if member.docstring:
        text = member.docstring.value
        member.docstring.value = google_style(text, names, arguments)
