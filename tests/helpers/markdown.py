"""Tables and sections of Markdown pages."""

from tests.helpers.small_runs import ROOT


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(text):
    """Each table as its rows, {column: cell}, in the order of the page."""
    tables_of_page = []
    lines = []
    is_code = False
    for line in [*text.splitlines(), ""]:
        is_code ^= line.startswith("```")
        if line.startswith("|") and not is_code:
            lines.append(cells(line))
        elif lines:
            head, _, *rows = lines
            tables_of_page.append([dict(zip(head, row, strict=True)) for row in rows])
            lines = []
    return tables_of_page


def read_interval(cell):
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
