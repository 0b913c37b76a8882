"""docs/tables/api.md, from public docstrings: python -m tools.api_reference"""

import inspect
import pathlib
import re
import textwrap
from collections.abc import Container, Iterable
from typing import Any

import imagepiece_jax
from imagepiece_jax.common.fields import CheckedFields
from imagepiece_jax.inference.features import Features
from imagepiece_jax.inference.optimize import CompileOptions, Program
from imagepiece_jax.inference.predictor import Prediction
from imagepiece_jax.models.config import ModelConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "tables" / "api.md"
# What public functions and methods take and return.
BESIDE = (ModelConfig, CompileOptions, Features, Prediction, Program)
HEAD = """\
Written by `python -m tools.api_reference` from the docstrings of the public names and
of what they take and return. In shapes B counts images, H and W pixels, n tokens and D
channels.
[Models](../models.md), [inference](../inference.md) and [features](../features.md) show
these names in use."""
LINE, WIDTH = 88, 120  # columns of code, of text
SECTION = re.compile(r"(Args|Returns|Raises|Source):?(?:\s+(.*)|$)")
ARGUMENT = re.compile(r"(\w+(?:(?:, | and )\w+)*): (.*)")


def page() -> str:
    """The whole page, Markdown."""
    public = [getattr(imagepiece_jax, name) for name in imagepiece_jax.__all__]
    public.sort(key=lambda member: (isinstance(member, type), member.__name__))
    parts = ["# API", textwrap.fill(HEAD, WIDTH)]
    for member in (*public, *BESIDE):
        name = member.__name__
        parts += [f"## {name}", signature(name, member), *described(member)]
        if isinstance(member, type) and not issubclass(member, CheckedFields):
            parts += members(member)
    return "\n\n".join(part for part in parts if part) + "\n"


def members(kind: type) -> list[str]:
    """Markdown of the public methods and properties that a class itself documents."""
    parts = []
    for name, member in vars(kind).items():
        if name.startswith("_") and name != "__call__" or not inspect.getdoc(member):
            continue
        if isinstance(member, property):
            parts += [f"### {kind.__name__}.{name}", *described(member)]
        elif isinstance(member, classmethod | staticmethod) or inspect.isroutine(
            member
        ):
            shown, bound = f"{kind.__name__}.{name}", getattr(kind, name)
            parts += [f"### {shown}", signature(shown, bound), *described(bound)]
    return parts


def signature(name: str, member: Any) -> str:
    """How `member` is called, as a code block; types without their modules."""
    if _is_plain(member):
        return ""
    called = inspect.signature(member)
    arguments = [p for p in called.parameters.values() if p.name != "self"]
    call = str(called.replace(parameters=arguments)).removesuffix(" -> None")
    call = re.sub(r"(?:[a-zA-Z_]+\.)+(?=[a-zA-Z])", "", call)
    call = call.replace("<factory>", "{}")
    call = re.sub(r"'([A-Z]\w+)'", r"\1", call)  # the type that is being defined
    if len(name + call) > LINE:
        inside, _, result = call.removeprefix("(").rpartition(")")
        # Commas in brackets are part of a type.
        inside = re.sub(r", (?![^\[(]*[\])])", ",\n    ", inside)
        call = f"(\n    {inside},\n){result}"
    return f"```python\n{name}{call}\n```"


def described(member: Any) -> list[str]:
    """Paragraphs, arguments and examples of a docstring, as Markdown."""
    names = () if _is_plain(member) else inspect.signature(member).parameters
    return [
        f"```python\n{textwrap.dedent(part)}\n```"
        if part.startswith("    ")
        else "\n".join(_blocks(part, names)).strip()
        for part in re.split(r"\n{2,}", inspect.getdoc(member))
    ]


def _is_plain(member: Any) -> bool:
    """Whether nobody calls it."""
    return isinstance(member, property) or (
        isinstance(member, type) and issubclass(member, Exception)
    )


def _blocks(paragraph: str, names: Container[str]) -> Iterable[str]:
    """Its lines wrapped anew: text, an item for each argument, each section apart."""
    blocks = [""]
    for line in map(str.strip, paragraph.splitlines()):
        section, argument = SECTION.match(line), ARGUMENT.match(line)
        if section and section[1] == "Args":
            continue
        if section:
            blocks.append(f"\n**{section[1]}** {section[2] or ''}".strip(" "))
        elif argument and re.split(", | and ", argument[1])[0] in names:
            blocks.append(f"- `{argument[1]}`: {argument[2]}")
        else:
            blocks[-1] += f" {line}"
    for block in filter(None, blocks):
        # A section after a list would be part of its last item without an empty line.
        yield "\n" * block.startswith("\n") + textwrap.fill(
            block.strip(),
            WIDTH,
            subsequent_indent="  " * block.startswith("- "),
            break_on_hyphens=False,
            break_long_words=False,
        )


if __name__ == "__main__":
    OUT.write_text(page(), "utf-8")
    print(OUT)
