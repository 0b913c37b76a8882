"""Tables of Markdown pages, read."""


def cells(line):
    """The cells of a row."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text):
    """Each table as its rows, {column: cell}, in the order of the page."""
    found, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(cells(line))
        elif lines:
            head, _, *rows = lines
            found.append([dict(zip(head, row, strict=True)) for row in rows])
            lines = []
    return found


def interval(cell):
    """(value, low, high) of "+0.1 [+0.0, +0.2], within noise", or (value,)."""
    value, _, ends = cell.partition(" [")
    return float(value), *map(float, ends.partition("]")[0].split(",") if ends else [])
