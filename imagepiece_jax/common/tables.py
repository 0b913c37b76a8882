"""Counts and tables as text: aligned columns, and Markdown."""

from collections.abc import Iterable, Mapping, Sequence


def counted_noun(count: int, noun: str) -> str:
    """Format a count and its noun: "1 image", "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def text_table(rows: Iterable[Iterable]) -> str:
    """Align columns: the first row is the heading, the last column left-aligned."""
    text_rows = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*text_rows, strict=True)]
    lines = []
    for row in text_rows:
        cells = list(map(str.rjust, row, widths))
        cells[-1] = row[-1]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(head: Sequence, rows: Iterable[Iterable]) -> str:
    """Format a Markdown table without a final newline. None is a blank cell."""
    lines = []
    for row in [head, ["---"] * len(head), *rows]:
        cells = " | ".join(map(_escape_cell, row))
        lines.append(f"| {cells} |")
    return "\n".join(lines)


def rows_table(rows: Sequence[Mapping]) -> str:
    """Format rows, {column: cell}, by Markdown, with the longest row's columns."""
    columns = max(map(list, rows), key=len)
    return markdown_table(columns, [[*map(row.get, columns)] for row in rows])


def _escape_cell(cell):
    """Escape text, such as a file name: it could end its cell or line."""
    if cell is None:
        return ""
    return " ".join(str(cell).replace("|", "\\|").splitlines())
