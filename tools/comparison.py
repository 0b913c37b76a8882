"""docs/comparison.md, its plot and README's table, from the JSON of a comparison.

python -m tools.comparison runs/experiments/compare.json

Without a file: from docs/comparison.json, where the last one was kept.
"""

import json
import pathlib
import sys
import textwrap

from imagepiece_jax.common.files import replace_file
from imagepiece_jax.experiments import compare_page, compare_plot

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEPT = ROOT / "docs" / "comparison.json"
PAGE, PLOT = KEPT.with_suffix(".md"), KEPT.with_suffix(".png")
README = ROOT / "README.md"
MARKS = "<!-- comparison -->\n", "<!-- /comparison -->\n"
WIDTH = 105  # of README's lines


def page(report) -> str:
    """The text of docs/comparison.md."""
    return compare_page.page(report, plot=PLOT.name)


def readme(report) -> str:
    """What stands between README's marks."""
    start, rows, legend = compare_page.readme(report)
    start += f" ([which reduction, at which cost](docs/{PAGE.name})):"
    start, legend = (
        textwrap.fill(part, WIDTH, break_on_hyphens=False, break_long_words=False)
        for part in (start, legend)
    )
    return f"{start}\n\n{rows}\n\n{legend}\n"


def parts(text: str) -> tuple[str, str, str]:
    """README up to the first mark, between the marks, and from the last one on."""
    start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
    return text[:start], text[start:end], text[end:]


def main(words):
    text = pathlib.Path(words[0] if words else KEPT).read_text("utf-8")
    report = json.loads(text)
    replace_file(KEPT, text)
    replace_file(PAGE, page(report))
    compare_plot.draw(PLOT, report)
    before, _, after = parts(README.read_text("utf-8"))
    replace_file(README, before + readme(report) + after)


if __name__ == "__main__":
    main(sys.argv[1:])
