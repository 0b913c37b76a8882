"""Our docstrings for griffe, which reads them for docs/api.md; mkdocs.yml names it"""

import griffe

from tools.docstrings import google_style


class GoogleStyle(griffe.Extension):
    """What griffe calls for every function and class that it has read."""

    def on_function(self, *, func: griffe.Function, **_) -> None:
        _rewrite(func, {parameter.name for parameter in func.parameters}, "Args")

    def on_class(self, *, cls: griffe.Class, **_) -> None:
        init = cls.members.get("__init__")
        if init is None or "dataclass" in cls.labels:  # fields, whose checks say little
            _rewrite(cls, cls.members, "Attributes")
        else:
            _rewrite(cls, {parameter.name for parameter in init.parameters}, "Args")


def _rewrite(member: griffe.Object, names, arguments: str) -> None:
    if member.docstring:
        text = member.docstring.value
        member.docstring.value = google_style(text, names, arguments)
