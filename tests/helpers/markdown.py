"""Tables and figures of Markdown pages, read."""

from tests.helpers.small_runs import ROOT


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text):
    """Each table as its rows, {column: cell}, in the order of the page."""
    found = []
    lines = []
    is_code = False
    for line in [*text.splitlines(), ""]:
        is_code ^= line.startswith("```")
        if line.startswith("|") and not is_code:
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


def section(page, heading=""):
    """The text of a page, or of its section below "## HEADING.."."""
    text = (ROOT / page).read_text("utf-8")
    if heading:
        text = text.partition(f"\n## {heading}")[2].partition("\n## ")[0]
    assert text, (page, heading)
    return text
