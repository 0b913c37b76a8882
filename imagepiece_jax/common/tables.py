"""Counts and tables as text: columns that line up, and Markdown."""

import re


def amount(count: int, noun: str) -> str:
    """A count of things: "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def text_table(rows):
    """Aligned columns, the first row a heading; all but the last right-aligned."""
    rows = [list(map(str, row)) for row in rows]
    widths = []
    for column in zip(*rows, strict=True):
        widths.append(max(map(len, column)))
    lines = []
    for row in rows:
        cells = list(map(str.rjust, row, widths))
        cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(head, rows) -> str:
    """A Markdown table, without a newline at its end; None stands for a blank cell."""
    lines = []
    for row in [head, ["---"] * len(head), *rows]:
        cells = " | ".join(map(_markdown_cell, row))
        lines.append(f"| {cells} |")
    return "\n".join(lines)


def _markdown_cell(value):
    """Escape a text, such as a file's name, that could end its cell or be HTML."""
    if value is None:
        return ""
    text = str(value).replace("|", "\\|")
    text = re.sub(r"<(?=[a-zA-Z/!?])", r"\\<", text)  # any other begins no tag
    return " ".join(text.splitlines())
