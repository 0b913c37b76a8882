"""Docstrings by the template of CONTRIBUTING.md, as Google's style writes them"""

import re
import textwrap
from collections.abc import Container

SECTION = re.compile(r"(Returns|Raises|Source):? (.*)")
ARGUMENT = re.compile(r"(\w+(?:(?:, | and )\w+)*): (.*)")


def google_style(text: str, names: Container[str], arguments: str = "Args") -> str:
    """The text in Google's style, which other tools read.

    names: what the list of arguments may name
    arguments: the heading of that list
    """
    parts = []  # (heading or "", entries)
    for paragraph in re.split(r"\n{2,}", text):
        parts.append(("", []))
        if paragraph.startswith("    "):
            code = textwrap.dedent(paragraph)
            parts[-1][1].append(f"```python\n{code}\n```")
            continue
        for line in map(str.strip, paragraph.splitlines()):
            section = SECTION.match(line)
            argument = ARGUMENT.match(line)
            if section:
                parts.append((section[1], [section[2]]))
            elif argument and _split(argument[1])[0] in names:
                if parts[-1][0] != arguments:
                    parts.append((arguments, []))
                parts[-1][1].append(line)
            elif parts[-1][1]:
                parts[-1][1][-1] += f" {line}"
            else:
                parts[-1][1].append(line)
    return "\n\n".join(_section(*part) for part in parts if part[1])


def _split(names: str) -> list[str]:
    return re.split(", | and ", names)


def _section(heading: str, entries: list[str]) -> str:
    """Exceptions stand before a colon, and each argument for itself."""
    if not heading:
        return entries[0]
    if heading == "Raises":
        entries = [re.sub(r"^(\w+):? ", r"\1: ", entry) for entry in entries]
    elif heading not in ("Returns", "Source"):
        pairs = [entry.split(": ", 1) for entry in entries]
        entries = []
        for names, text in pairs:
            entries += [f"{name}: {text}" for name in _split(names)]
    return "\n".join([f"{heading}:", *(f"    {entry}" for entry in entries)])
