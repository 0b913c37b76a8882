"""docs/tables/parts/elsewhere.md says what elsewhere.jsonl has measured."""

from experiments import carried, clock, parts, results
from imagepiece_jax.evaluate import statistics
from tests import markdown

FOLDER = results.PARTS.parent
PAGE = (FOLDER / "elsewhere.md").read_text("utf-8")
DENSE = {"name": "none"}


def key(name, macs):
    if name.startswith("dense"):
        return clock.key(DENSE, int((name + ", 224").split(", ")[1].split()[0]))
    sets = carried.CHOSEN | carried.TOME | carried.STAGES
    return clock.key({**sets[name], "macs": macs}, clock.SIDE)


def rows(heading):
    text = PAGE.partition(f"{heading}\n")[2].partition("\n#")[0]
    cells = [markdown.cells(line) for line in text.splitlines() if line[:2] == "| "]
    return [row for row in cells if row[0] not in ("set", "---", "", "comparison")]


def test_level_is_that_of_the_images():
    """Every row: accuracy, and the paired difference to the dense model."""
    _, found = clock.rights(FOLDER)
    whole = found[key("dense", 1)]
    shown = rows("## `level`: the chosen sets beside the dense model")[:-1]
    assert len(shown) == 19 and len(whole) == 13394
    for name, share, acc1, points, _ in shown:
        right = found[key(name, round(float(share), 3))]
        assert acc1 == statistics.format_estimate(statistics.accuracy(right)), name
        if points:
            change = statistics.paired_difference(right, whole)
            assert points == statistics.format_difference(change), name


def test_the_faster_set_is_ahead():
    _, found = clock.rights(FOLDER)
    ours, theirs = (found[key(*entry)] for entry in carried.FASTER)
    change = statistics.paired_difference(ours, theirs)
    (row,) = [
        line
        for line in PAGE.splitlines()
        if line.startswith("| most attended, stages-3-6-9 at 0.6 -")
    ]
    assert statistics.format_difference(change) in row and row.endswith("| decided |")
    assert statistics.mcnemar(ours, theirs) < parts.LEVEL


def test_figures_of_bfloat16():
    """Shares of changed classes in docs/comparison.md are those of the page."""
    shares = {}
    for line in PAGE.partition("## `decisions`")[2].splitlines():
        cells = markdown.cells(line) if line.startswith("| ") else []
        if len(cells) == 5 and "[" in cells[3]:
            shares.setdefault(cells[1], []).append(float(cells[3].split(" [")[0]))
    dense, *rounded = shares["bfloat16"]
    said = (results.ROOT / "docs" / "comparison.md").read_text("utf-8")
    scores = [*shares["unrounded"], *shares["float32"]]
    for figures in (rounded, shares["replayed"], scores):
        assert f"{min(figures)} to {max(figures)} %" in " ".join(said.split())
    assert f"{dense} %" in said and len(rounded) == 4
