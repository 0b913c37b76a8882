"""What do readings of the clock say? Rows, a table, break-even points, a plot."""

import json

from imagepiece_jax.benchmark import timer
from imagepiece_jax.common import plotting, tables
from imagepiece_jax.common.files import replace_file
from imagepiece_jax.models.summary import format_table

# Title of a column, and a row's cell of it.
COLUMNS = (
    ("program", lambda r: r["config"]),
    ("batch", lambda r: f"{r['batch_size']}"),
    ("img/s", lambda r: f"{r['throughput']:,.0f}"),
    ("lowest", lambda r: f"{r['throughput_min']:,.0f}"),
    ("highest", lambda r: f"{r['throughput_max']:,.0f}"),
    ("ms", lambda r: f"{r['ms']:,.2f}"),
    ("x first", lambda r: f"{r['ratio']:.3f}"),
    ("by MACs", lambda r: f"{r['mac_ratio']:.3f}"),
    ("GMACs", lambda r: f"{r['gmacs']:.3f}"),
    ("TMACs/s", lambda r: f"{r['macs_per_s'] / 1e12:,.3f}"),
    ("of matmul", lambda r: f"{100 * r['ceiling_share']:.1f} %"),
    ("GB", lambda r: _or_blank(r["peak_memory"], 1e9)),
    ("compile, s", lambda r: _or_blank(r["compile_s"], 1.0)),
)


def rows(made, readings, ceilings, setting):
    """One dict a program, JSON values, the first being what `ratio` compares with.

    made: {name: Workload}; readings: {name: seconds a call} from `clock.measure`;
    setting: what all rows share. `ratio` is how many times as fast as the first, round
    by round; `mac_ratio` what its MACs promise; `ceiling_share` the part of the
    measured matmul rate that the MACs of the model make up.
    """
    first = next(iter(made))

    def row(name, work):
        seconds = timer.spread(readings[name])
        ratio = timer.spread(timer.speedups(readings[first], readings[name]))
        speed = work.macs / seconds.median
        return {
            "config": name,
            "throughput": work.images / seconds.median,
            "throughput_min": work.images / seconds.high,
            "throughput_max": work.images / seconds.low,
            "ms": 1e3 * seconds.median,
            "ratio": ratio.median,
            "ratio_min": ratio.low,
            "ratio_max": ratio.high,
            "mac_ratio": made[first].macs / work.macs,
            "gmacs": work.macs / work.images / 1e9,
            "macs_per_s": speed,
            "ceiling_share": 2 * speed / ceilings.matmul,
            **work.facts,
            **setting,
            "matmul_ceiling": ceilings.matmul,
            "copy_ceiling": ceilings.copy,
            "seconds_a_call": readings[name],
        }

    return [row(name, work) for name, work in made.items()]


def _or_blank(value, unit):
    return "" if value is None else f"{value / unit:,.1f}"


def text(rows):
    """Aligned columns for a screen."""
    return format_table([_titles(), *(_cells(row) for row in rows)])


def markdown(rows):
    """A table for each mode, with what was measured on what under it."""
    parts = []
    for mode in _in_order(row["mode"] for row in rows):
        shown = [row for row in rows if row["mode"] == mode]
        one = shown[0]
        parts.append(f"### {mode}\n")
        parts += tables.markdown(_titles(), map(_cells, shown))
        parts.append(
            f"\n{one['device']}, {one['dtype']}, random weights and images; median, "
            f"lowest and highest of {one['repeats']} repeats of {one['seconds']:g} s "
            f"or more after {one['warmup']} calls; largest matmul rate "
            f"{one['matmul_ceiling'] / 1e12:.3f} TFLOP/s, copy "
            f"{one['copy_ceiling'] / 1e9:,.0f} GB/s.\n"
        )
    return "\n".join(parts + break_even(rows))


def _titles():
    return [title for title, _ in COLUMNS]


def _cells(row):
    return [cell(row) for _, cell in COLUMNS]


def _in_order(values):
    return list(dict.fromkeys(values))


def break_even(rows):
    """Sentences: from which batch size on each program is faster than the first.

    Only of modes that were measured at several batch sizes.
    """
    said = []
    for mode in _in_order(row["mode"] for row in rows):
        shown = [row for row in rows if row["mode"] == mode]
        first = shown[0]["config"]
        for name in _in_order(row["config"] for row in shown):
            ratios = {r["batch_size"]: r["ratio"] for r in shown if r["config"] == name}
            if name != first and len(ratios) > 1:
                said.append(f"{mode}: {name} is {_compared(ratios, first)}")
    return said


def _compared(ratios, first):
    sizes = sorted(ratios)
    slower = [size for size in sizes if ratios[size] <= 1]
    faster = [size for size in sizes if not slower or size > slower[-1]]
    listed = ", ".join(f"{ratios[size]:.2f} at {size}" for size in sizes)
    if not slower:
        where = "faster than {} at every batch size measured"
    elif not faster:
        where = f"not faster than {{}} at batch size {sizes[-1]}, the largest measured"
    else:
        where = f"faster than {{}} from batch size {faster[0]} on"
    return f"{where.format(first)} (times as fast: {listed})"


def plot(path, rows):
    """img/s over batch size as a PNG, a panel for each mode; bars from low to high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modes = _in_order(row["mode"] for row in rows)
    figure = Figure((7, 4.5 * len(modes)), 100, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, mode in zip(
        figure.subplots(len(modes), squeeze=False), modes, strict=True
    ):
        axes = panel[0]
        shown = [row for row in rows if row["mode"] == mode]
        for name in _in_order(row["config"] for row in shown):
            line = sorted(
                (
                    r["batch_size"],
                    r["throughput"],
                    r["throughput_min"],
                    r["throughput_max"],
                )
                for r in shown
                if r["config"] == name
            )
            sizes, middle, low, high = zip(*line, strict=True)
            errors = [
                [m - x for m, x in zip(middle, low, strict=True)],
                [x - m for m, x in zip(middle, high, strict=True)],
            ]
            axes.errorbar(sizes, middle, errors, marker="o", capsize=3, label=name)
        axes.set_xscale("log", base=2)
        sizes = _in_order(row["batch_size"] for row in shown)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_yscale("log")
        axes.set_xlabel("batch size")
        axes.set_ylabel("images/s")
        axes.set_title(f"{mode}, {shown[0]['device']}, {shown[0]['dtype']}")
        axes.grid(alpha=0.3)
        axes.legend()
    plotting.save_figure(figure, path)


def write_markdown(path, rows):
    """The whole file anew: a run that is killed keeps what it has."""
    replace_file(path, markdown(rows) + "\n")


def line(row):
    """A row as one line of JSON."""
    return json.dumps(row)
