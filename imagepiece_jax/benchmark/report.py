"""Results of a benchmark: rows, tables, break-even points, a plot, and their files."""

import collections
import json
import os

import numpy as np

from imagepiece_jax.common import plotting, timer
from imagepiece_jax.common.files import check_writable, replace_file
from imagepiece_jax.common.tables import markdown_table, text_table
from imagepiece_jax.errors import InputError

# Endings of the files of each option.
ENDINGS = {"json": (".json", ".jsonl"), "markdown": (".md",), "plot": (".png",)}
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
    ("GELU", lambda r: r["gelu"]),
    ("of matmul", lambda r: f"{100 * r['ceiling_share']:.1f} %"),
    ("GB", lambda r: _or_blank(r["peak_memory"], 1e9)),
    ("compile, s", lambda r: _or_blank(r["compile_s"], 1.0)),
)
TITLES = [title for title, _ in COLUMNS]


def rows(programs, readings, setting):
    """A row of JSON values for each program.

    "ratio" is the speed relative to the first program, "mac_ratio" the ratio that MACs
    predict, and "ceiling_share" the share of the highest matmul rate that the MACs
    reach which the program computes.

    programs: {name: Workload}
    readings: {name: seconds of each call}, from `timer.measure`
    setting: fields that all rows share
    """
    first = next(iter(programs))

    def row(name, work):
        figures = timer.figures(readings[first], readings[name], work.images)
        seconds = figures["ms"] / 1e3
        computed = work.macs - work.skipped
        return {
            "config": name,
            **figures,
            "mac_ratio": programs[first].macs / work.macs,
            "gmacs": work.macs / work.images / 1e9,
            "macs_per_s": work.macs / seconds,
            "ceiling_share": 2 * computed / seconds / setting["matmul_ceiling"],
            **work.facts,
            **setting,
            "seconds_a_call": readings[name],
        }

    return [row(name, work) for name, work in programs.items()]


def _or_blank(value, unit):
    if value is None:
        return ""
    return f"{value / unit:,.1f}"


def weights(path):
    """The weights and images in words; path: None for random weights."""
    if path is None:
        return "random weights, random images"
    return f"weights of {path}, random images"


def peak_rates(matmul, copy):
    """The peak rates of a device in words, from FLOP/s and bytes/s."""
    rate = f"largest matmul rate {matmul / 1e12:.3f} TFLOP/s"
    return f"{rate}, copy {copy / 1e9:,.0f} GB/s"


def ceiling_note(rows):
    """A note on programs that were faster than the matmul rate; None: there are none.

    That rate is measured once, before all programs, and is too low where the machine
    did something else then.
    """
    shares = {row["config"]: row["ceiling_share"] for row in rows}
    fastest = max(shares, key=shares.get)
    if shares[fastest] <= 1:
        return None
    reached = f"{fastest} reaches {shares[fastest]:.0%} of the matmul rate"
    return (
        f"note: {reached}, so that was measured too low: the machine was slower then, "
        "or is shared; measure again"
    )


def text(rows):
    """The rows as aligned columns for a terminal."""
    return text_table([TITLES, *map(_cells, rows)])


def markdown(rows):
    """A table for each mode, followed by its setting and device."""
    parts = []
    for mode, group in _grouped(rows, "mode").items():
        shared = group[0]  # the setting, which all rows of a mode share
        parts.append(f"### {mode}\n")
        parts.append(markdown_table(TITLES, map(_cells, group)))
        peaks = peak_rates(shared["matmul_ceiling"], shared["copy_ceiling"])
        parts.append(
            f"\n{shared['device']}, {shared['dtype']}, "
            f"{weights(shared.get('weights'))}; "
            f"median, lowest and highest of {shared['repeats']} repeats of "
            f"{shared['seconds']:g} s or more after {shared['warmup']} calls; "
            f"{peaks}.\n"
        )
    return "\n".join(parts + break_even(rows))


def _cells(row):
    return [cell(row) for _, cell in COLUMNS]


def _grouped(rows, field):
    """The rows by their values of a field, in order."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row[field]].append(row)
    return groups


def break_even(rows):
    """Sentences that say from which batch size on each program beats the first."""
    sentences = []
    for mode, group in _grouped(rows, "mode").items():
        first = group[0]["config"]
        for name, measured in _grouped(group, "config").items():
            ratios = {row["batch_size"]: row["ratio"] for row in measured}
            if name != first and len(ratios) > 1:
                sentences.append(f"{mode}: {name} is {_compared(ratios, first)}")
    return sentences


def _compared(ratios, first):
    """Where a program is faster than the first, by {batch size: ratio}, in words."""
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
    """Write a PNG of images/s by batch size, with a panel for each mode.

    Error bars reach from the lowest to the highest repeat.
    """
    modes = _grouped(rows, "mode")
    figure = plotting.new_figure(7, 4.5 * len(modes), layout="constrained")
    columns = ("batch_size", "throughput", "throughput_min", "throughput_max")
    panels = figure.subplots(len(modes), squeeze=False)[:, 0]
    for axes, (mode, group) in zip(panels, modes.items(), strict=True):
        for index, (name, measured) in enumerate(_grouped(group, "config").items()):
            line = sorted([row[column] for column in columns] for row in measured)
            sizes, middle, low, high = np.transpose(line)
            errors = [middle - low, high - middle]
            look = {
                "color": f"C{index % 10}",
                "marker": plotting.MARKERS[index // 10 % 5],
            }
            axes.errorbar(sizes, middle, errors, capsize=3, label=name, **look)
        axes.set_xscale("log", base=2)
        sizes = list(_grouped(group, "batch_size"))
        axes.set_xticks(sizes, map(str, sizes))
        axes.set_yscale("log")
        axes.set_xlabel("batch size")
        axes.set_ylabel("images/s")
        axes.set_title(f"{mode}, {group[0]['device']}, {group[0]['dtype']}")
        axes.grid(alpha=0.3)
        axes.legend()
    plotting.save_figure(figure, path)


class Files:
    """The result files of a benchmark; one that is killed keeps its measurements.

    json: path of a file with a line for each row; None: not written
    markdown: path of a file with the tables; None: not written
    plot: path of a PNG; None: not written
    Raises InputError if one cannot be written, or two are the same file.
    """

    def __init__(self, json=None, markdown=None, plot=None):
        self.rows = []
        flag_of = {}
        self._json = json
        self._markdown = markdown
        self._plot = plot
        for flag, path in (("json", json), ("markdown", markdown), ("plot", plot)):
            if not path:
                continue
            check_writable(flag, path, ENDINGS[flag])
            first = flag_of.setdefault(os.path.realpath(path), flag)
            if first != flag:
                raise InputError(f"{flag} is {path}, which is also the file of {first}")

    def add(self, rows):
        """Write the lines and the tables with further rows."""
        self.rows += rows
        if self._json:
            lines = (json.dumps(row) + "\n" for row in self.rows)
            replace_file(self._json, "".join(lines))
        if self._markdown:
            replace_file(self._markdown, markdown(self.rows) + "\n")

    def plot(self):
        """Write the plot of all rows."""
        if self._plot:
            plot(self._plot, self.rows)
