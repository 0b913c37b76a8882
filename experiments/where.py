"""Where should tokens leave? Sets of blocks at equal cost.

python -m experiments.where --assets FOLDER --imagenette FOLDER [--only WORD ..]

docs/results/peaks/where.md declares it. Cells, lines and options are those of
experiments.peaks. Photographs named "choosing" choose a set of blocks, all other images
judge. `python -m experiments.results` writes the tables of the page.
"""

import json
import math

from scipy import stats

from experiments.intervals import estimate_mean
from experiments.peaks import FOLDER, SCHEDULES, Cell, Lines, main, reduced_cell
from imagepiece_jax.common.statistics import format_estimate
from imagepiece_jax.common.tables import markdown_table
from imagepiece_jax.reduction.methods.recommended import LEAST_STAGED_MACS

SETS = {  # title: schedule. Blocks are twelfths of the depth.
    "3, 6, 9": "three",
    "3, 4, 6": "stages-3-4-6",
    "3, 5, 7": "stages-3-5-7",
    "3, 5, 8": "stages-3-5-8",
    "2, 4, 6": "stages-2-4-6",
    "3, 4, 6, 8": "stages-3-4-6-8",
    "3, 5, 7, 9": "stages-3-5-7-9",
    "2, 4, .., 10": "five",
    "2, 3, 4, 6, 8": "stages-2-3-4-6-8",
    "3 to 8": "stages-3-4-5-6-7-8",
    "2 to 8": "stages-2-3-4-5-6-7-8",
    "1 to 11": "all",
}
LONG = ("2, 4, .., 10", "2, 3, 4, 6, 8", "3 to 8", "2 to 8", "1 to 11")
OF_METHODS = ("3, 6, 9", "3, 4, 6, 8", "2 to 8", "1 to 11")
METHODS = ("peaks", "attended", "tome", "mctf")
SHARES = (0.6, 0.5, 0.4, 0.3)
# (model, images that choose, images that judge, measure, shares)
JUDGES = {
    "DeiT-Ti, photographs": ("deit", "choosing", "photographs", "kl", SHARES),
    "DeiT-Ti, imagenette": ("deit", "choosing", "imagenette 500", "kl", (0.5, 0.4)),
    "DINOv2-S": ("dinov2", "choosing 100", "even", "vector", (0.6, 0.5, 0.4)),
}


# As fast as "3, 6, 9" at .5 in docs/results/peaks/speed.jsonl.
EQUAL_TIME = [(0.48, "3, 4, 6, 8"), (0.46, "2 to 8")]
STEPS = 120  # of a recovery
RECOVERED = [(0.4, "1 to 11"), (0.4, "2 to 8"), (0.5, "3, 6, 9"), (0.5, "3, 4, 6, 8")]


def sets_at(share):
    """The sets compared at a share: at .3 few blocks leave one or two tokens."""
    return LONG if share < 0.35 else tuple(SETS)


def default_set(share):
    return "3, 6, 9" if share >= LEAST_STAGED_MACS else "1 to 11"


def list_cells():
    """All cells, in the order in which they run: first those that choose."""
    cells = []
    for role in (1, 2):
        for judge in JUDGES.values():
            model, images, shares = judge[0], judge[role], judge[4]
            cells.append(Cell(model, images, "dense"))
            for share in shares:
                for title in sets_at(share):
                    schedule = SETS[title]
                    cells.append(reduced_cell(model, images, "peaks", share, schedule))
    for method in METHODS:
        for title in OF_METHODS:
            cell = reduced_cell("deit", "photographs", method, 0.5, SETS[title])
            cells.append(cell)
    for share, title in EQUAL_TIME:
        cells.append(reduced_cell("deit", "photographs", "peaks", share, SETS[title]))
    cells.append(Cell("deit", "photographs, even", "dense"))
    for share, title in RECOVERED:
        cells += recovery_cells(share, title)
    return list(dict.fromkeys(cells))


def recovery_cells(share, title):
    """A set off the shelf and recovered, on photographs that taught nothing."""
    cell = reduced_cell("deit", "photographs, even", "peaks", share, SETS[title])
    steps = (*cell.fields, ("recovery_steps", STEPS))
    return cell, cell._replace(setting=f"recovered, {cell.setting}", fields=steps)


def choose_set(values, default):
    """The nearest set if it is nearer than the default beyond chance, or the default.

    The paired interval has Bonferroni's level for all rivals of the default.

    values: {set: distances of the same images}
    """
    nearest = min(values, key=lambda title: values[title].mean())
    changes = values[nearest] - values[default]
    error = changes.std(ddof=1) / math.sqrt(len(changes))
    quantile = stats.norm.ppf(1 - 0.025 / (len(values) - 1))
    return nearest if changes.mean() + quantile * error < 0 else default


def set_values(lines, model, images, share, field, method="peaks", titles=None):
    """{set: a value per image} of the measured sets."""
    values = {}
    for title in titles or sets_at(share):
        cell = reduced_cell(model, images, method, share, SETS[title])
        if lines.has(cell):
            values[title] = lines.values(cell, field)
    return values


def sets_table(lines):
    """Distances of all sets on the judging images."""
    head = ["leaves in"]
    rows = [[title] for title in SETS]
    for name, (model, _, images, field, shares) in JUDGES.items():
        for share in shares:
            values = set_values(lines, model, images, share, field)
            means = {title: values[title].mean() for title in values}
            if len(means) < 4:
                continue
            head.append(f"{name}, {share:g}")
            least = min(means, key=means.get)
            for row in rows:
                text = f"{means[row[0]]:.4f}" if row[0] in means else ""
                row.append(f"**{text}**" if row[0] == least else text)
    return markdown_table(head, rows)


def format_set(values, title, default):
    """A set, its distance, and its paired change from the default, in percent too."""
    text = f"{title}: {values[title].mean():.4f}"
    if title == default:
        return text
    base = values[default]
    changes = values[title] - base
    percent = 100 * changes.mean() / base.mean()
    change = format_estimate(estimate_mean(changes), 4, signs=True)
    return f"{text} ({percent:+.0f} %), {change}"


def choices_table(lines):
    """The default beside the chosen set and the best set in hindsight."""
    rows = []
    for name, (model, choosing, judging, field, shares) in JUDGES.items():
        for share in shares:
            values = set_values(lines, model, judging, share, field)
            chosen_on = set_values(lines, model, choosing, share, field)
            if len(chosen_on) > 4:
                row = compare_sets(values, chosen_on, default_set(share))
                rows.append([name, f"{share:g}", *row])
    head = ["judged on", "share", "default", "chosen", "best in hindsight"]
    return markdown_table(head, rows)


def compare_sets(values, chosen_on, default):
    chosen = choose_set(chosen_on, default)
    best = min(values, key=lambda title: values[title].mean())
    texts = [format_set(values, title, default) for title in (default, chosen, best)]
    best_text = "chosen" if best == chosen else texts[2]
    return [*texts[:2], f"{best_text} (of {len(values)})"]


def methods_table(lines):
    """The same sets for other methods, at .5 on the photographs."""
    rows = []
    for method in METHODS:
        row = [f"`{method}`"]
        values = set_values(lines, "deit", "photographs", 0.5, "kl", method, OF_METHODS)
        for title in OF_METHODS:
            row.append(f"{values[title].mean():.4f}" if title in values else "")
        rows.append(row)
    return markdown_table(["method", *OF_METHODS], rows)


def recovered_table(lines):
    """Sets off the shelf and recovered: KL, points lost, and changes of the KL."""
    dense = Cell("deit", "photographs, even", "dense")
    rows = []
    for share, title in RECOVERED if lines.has(dense) else ():
        row = [f"{share:g}", title]
        base = recovery_cells(share, default_set(share))
        for cell, base_cell in zip(recovery_cells(share, title), base, strict=True):
            if not lines.has(cell):
                continue
            lost = format_estimate(lines.points(dense, cell))
            text = f"{lines.mean(cell, 'kl'):.4f}, {lost}"
            if title != default_set(share):
                change = lines.change(cell, base_cell, "kl")
                text += f" ({format_estimate(change, 4, signs=True)})"
            row.append(text)
        if len(row) == 4:
            rows.append(row)
    head = ["share", "leaves in", "KL, points lost (KL minus default)"]
    return markdown_table([*head, "the same, recovered"], rows)


def time_table(lines, folder):
    """KL over processor time: sets, and the dense model on smaller images."""
    sets = {schedule: title for title, schedule in SETS.items()}
    speeds = {}
    columns = set()
    for text in (folder / "speed.jsonl").read_text("utf-8").splitlines():
        line = json.loads(text)
        column = -line["batch"], line["runtime"]
        columns.add(column)
        program = line["model"], line["reduction"]
        speeds.setdefault(program, {})[column] = line["ratio"]
    rows = []
    for (name, reduction), ratios in speeds.items():
        images = f"dense on {name.split()[2]} pixels" if " at " in name else name
        cell = Cell("deit", "photographs", images)
        if reduction.startswith("peaks"):
            _, macs, counts = reduction.split(":")
            names = {text: schedule for schedule, text in SCHEDULES.items()}
            share = macs.removeprefix("macs=")
            schedule = counts.removeprefix("counts=")
            schedule = names.get(schedule, schedule)
            setting = "peaks", float(share), schedule
            cell = reduced_cell("deit", "photographs", *setting)
            images = f"{share}: {sets[schedule]}"
        row = [images]
        for column in sorted(columns):
            row.append("")
            if column in ratios:
                row[-1] = "{:.2f} [{:.2f}, {:.2f}]".format(*ratios[column])
        rows.append([*row, f"{lines.mean(cell, 'kl'):.4f}" if lines.has(cell) else ""])
    head = ["share, blocks"]
    head += [f"{runtime}, batches of {-batch}" for batch, runtime in sorted(columns)]
    return markdown_table([*head, "KL"], rows)


def page_tables(folder=FOLDER):
    """The tables by the names in their marks."""
    lines = Lines(folder)
    return {
        "where-sets": sets_table(lines),
        "where-choices": choices_table(lines),
        "where-methods": methods_table(lines),
        "where-recovered": recovered_table(lines),
        "where-time": time_table(lines, folder),
    }


if __name__ == "__main__":
    main(__doc__, list_cells())
