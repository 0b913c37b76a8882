"""The plot of a comparison, from its JSON."""

import itertools
import os
from collections.abc import Sequence

from experiments.compare_page import COSTS, NAMES, Report, comparison, order, reached
from imagepiece_jax.common import plotting


def draw(path: str | os.PathLike, report: Report):
    """Write a PNG: accuracy by share, a line a method, the best on average first.

    Bars are intervals of the paired difference to dense. Methods stand side by side at
    their share, so that bars do not hide each other.
    """
    from matplotlib import colormaps

    figure = plotting.new_figure(9, 5.5, layout="constrained")
    axes = figure.add_subplot()
    names, shares = order(report), reached(report)
    palette = colormaps["tab20"].colors
    palette = [*palette[:14], *palette[16:]]  # gray is the random tokens'
    palette = [*palette[::2], *palette[1::2]]  # the strong ones first
    gap = min((a - b for a, b in itertools.pairwise(shares)), default=0.1)
    for place, name in enumerate(names):
        lines = [line for line in report["settings"] if line["method"] == name]
        shift = 0.4 * gap * (place / max(len(names) - 1, 1) - 0.5)
        changes = [comparison(report, name, s["share"], "dense") for s in lines]
        strong = name in NAMES
        axes.errorbar(
            [line["share"] + shift for line in lines],
            [line["acc1"][0] for line in lines],
            yerr=_bars(changes),
            color={"tome": "black", "random": "gray"}.get(name, palette[place % 18]),
            linestyle="--" if name == "random" else "-",
            linewidth=2 if strong else 1.2,
            marker="osD^vP*X<>ph"[place % 12],
            markersize=5,
            capsize=2,
            elinewidth=0.8,
            label=name,
            zorder=3 if strong else 2,
        )
    dense = report["dense"]["acc1"][0]
    axes.axhline(dense, color="black", linewidth=0.8, linestyle=":", label="dense")
    axes.set_xticks(shares)
    cost, within = COSTS[report["metric"]], 100 * report["tolerance"]
    axes.set_xlabel(f"share of the dense model's {cost}, matched within {within:g} %")
    axes.set_ylabel("acc1, % (bars: 95 %, paired difference to dense)")
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    plotting.save_figure(figure, path)


def _bars(changes: Sequence[dict]):
    """[below, above] of the intervals' ends."""
    ends = [change["points"] for change in changes]
    return [[v - low for v, low, _ in ends], [high - v for v, _, high in ends]]
