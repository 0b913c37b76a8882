"""Results of a benchmark: rows, tables, break-even points, a plot, and their files."""

import json
import os

import numpy as np

from imagepiece_jax.common import plotting, timer
from imagepiece_jax.common.files import append_line, check_writable, replace_file
from imagepiece_jax.common.tables import markdown_table, text_table
from imagepiece_jax.errors import InputError

# (title of a column, function from a row to its cell)
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


def rows(programs, readings, peaks, setting):
    """A dict of JSON values for each program.

    `ratio` is the speed relative to the first program, round by round; `mac_ratio` the
    ratio that the MACs predict; `ceiling_share` the model's share of the measured
    matmul rate.

    programs: Workloads by name
    readings: seconds per call by name, from `timer.measure`
    peaks: PeakRates of the device
    setting: fields that all rows share
    """
    first = next(iter(programs))

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
            "mac_ratio": programs[first].macs / work.macs,
            "gmacs": work.macs / work.images / 1e9,
            "macs_per_s": speed,
            "ceiling_share": 2 * speed / peaks.matmul,
            **work.facts,
            **setting,
            "matmul_ceiling": peaks.matmul,
            "copy_ceiling": peaks.copy,
            "seconds_a_call": readings[name],
        }

    return [row(name, work) for name, work in programs.items()]


def _or_blank(value, unit):
    return "" if value is None else f"{value / unit:,.1f}"


def weights(path):
    """The weights in words; path: of trained ones, None: they are random."""
    text = "random weights" if path is None else f"weights of {path}"
    return f"{text}, random images"


def peak_rates(matmul, copy):
    """The peak rates of a device in words, from FLOP/s and bytes/s."""
    rate = f"largest matmul rate {matmul / 1e12:.3f} TFLOP/s"
    return f"{rate}, copy {copy / 1e9:,.0f} GB/s"


def text(rows):
    """The rows as aligned columns for a terminal."""
    return text_table([_titles(), *(_cells(row) for row in rows)])


def markdown(rows):
    """A table for each mode, followed by its setting and device."""
    parts = []
    for mode in _in_order(row["mode"] for row in rows):
        group = [row for row in rows if row["mode"] == mode]
        one = group[0]
        parts.append(f"### {mode}\n")
        parts += markdown_table(_titles(), map(_cells, group))
        parts.append(
            f"\n{one['device']}, {one['dtype']}, {weights(one.get('weights'))}; "
            f"median, lowest and highest of {one['repeats']} repeats of "
            f"{one['seconds']:g} s or more after {one['warmup']} calls; "
            f"{peak_rates(one['matmul_ceiling'], one['copy_ceiling'])}.\n"
        )
    return "\n".join(parts + break_even(rows))


def _titles():
    return [title for title, _ in COLUMNS]


def _cells(row):
    return [cell(row) for _, cell in COLUMNS]


def _in_order(values):
    return list(dict.fromkeys(values))


def break_even(rows):
    """Sentences: the batch size from which each program beats the first.

    Only for modes that were measured at several batch sizes.
    """
    sentences = []
    for mode in _in_order(row["mode"] for row in rows):
        group = [row for row in rows if row["mode"] == mode]
        first = group[0]["config"]
        for name in _in_order(row["config"] for row in group):
            ratios = {r["batch_size"]: r["ratio"] for r in group if r["config"] == name}
            if name != first and len(ratios) > 1:
                sentences.append(f"{mode}: {name} is {_compared(ratios, first)}")
    return sentences


def _compared(ratios, first):
    sizes = sorted(ratios)
    slower = [size for size in sizes if ratios[size] <= 1]
    faster = [size for size in sizes if not slower or size > slower[-1]]
    listed = ", ".join(f"{ratios[size]:.2f} at {size}" for size in sizes)
    last = sizes[-1]
    if not faster:
        text = f"not faster than {first} at batch size {last}, the largest measured"
    elif slower:
        text = f"faster than {first} from batch size {faster[0]} on"
    else:
        text = f"faster than {first} at every batch size measured"
    return f"{text} (times as fast: {listed})"


def plot(path, rows):
    """Write img/s over batch size as a PNG, a panel per mode; bars from low to high."""
    modes = _in_order(row["mode"] for row in rows)
    figure = plotting.new_figure(7, 4.5 * len(modes), layout="constrained")
    columns = ("batch_size", "throughput", "throughput_min", "throughput_max")
    panels = figure.subplots(len(modes), squeeze=False)[:, 0]
    for axes, mode in zip(panels, modes, strict=True):
        group = [row for row in rows if row["mode"] == mode]
        for name in _in_order(row["config"] for row in group):
            line = sorted([r[c] for c in columns] for r in group if r["config"] == name)
            sizes, middle, low, high = np.transpose(line)
            errors = [middle - low, high - middle]
            axes.errorbar(sizes, middle, errors, marker="o", capsize=3, label=name)
        axes.set_xscale("log", base=2)
        sizes = _in_order(row["batch_size"] for row in group)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_yscale("log")
        axes.set_xlabel("batch size")
        axes.set_ylabel("images/s")
        axes.set_title(f"{mode}, {group[0]['device']}, {group[0]['dtype']}")
        axes.grid(alpha=0.3)
        axes.legend()
    plotting.save_figure(figure, path)


class Files:
    """The result files of a run; a killed run keeps its measurements.

    json: gets a line for each row; None: not written
    markdown: gets the tables
    plot: a PNG
    Raises InputError if one cannot be written, or two are the same file.
    """

    def __init__(self, json=None, markdown=None, plot=None):
        self.rows, self._lines = [], None
        self._json, self._markdown, self._plot = json, markdown, plot
        flags = {}
        for flag, path in (("json", json), ("markdown", markdown), ("plot", plot)):
            if path:
                check_writable(f"--{flag}", path, writes=[".png"] * (flag == "plot"))
                first = flags.setdefault(os.path.realpath(path), flag)
                if first != flag:
                    problem = f"{path} is the file of --{first}"
                    raise InputError(problem, field=f"--{flag}", allowed="another")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._lines is not None:
            self._lines.close()

    def add(self, rows):
        """Append rows to the lines, and write the tables anew."""
        self.rows += rows
        if self._json:
            if self._lines is None:
                self._lines = open(self._json, "wb", buffering=0)
            for row in rows:
                append_line(self._lines, json.dumps(row))
        if self._markdown:
            replace_file(self._markdown, markdown(self.rows) + "\n")

    def plot(self):
        """Write the plot of all rows."""
        if self._plot:
            plot(self._plot, self.rows)
