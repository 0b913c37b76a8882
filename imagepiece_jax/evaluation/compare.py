"""Comparison of one checkpoint's reductions and smaller images on the same images.

Differences are paired by image. Every row is compared with the dense model, and every
reduction also with the smaller images. All comparisons are one family of exact McNemar
tests, corrected by Holm's rule. Without labels or classes, fidelity is compared.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from imagepiece_jax.common import device, extras, parallel, plotting, statistics
from imagepiece_jax.common.files import check_own_files, replace_file
from imagepiece_jax.common.image_size import image_sides, size_text
from imagepiece_jax.common.tables import rows_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation import result_cache
from imagepiece_jax.evaluation.labeled_images import open_labeled_images
from imagepiece_jax.evaluation.result_cache import MeasuredWeights, ResultCache
from imagepiece_jax.inference import compare_outputs
from imagepiece_jax.models.pretrained import Pretrained, check_loaded
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction

DEFAULT_MAC_SHARES = ("0.6", "0.5")  # if the caller names no row
TABLE_FILE_NAME = "compare.md"
PLOT_FILE_NAME = "compare.png"
MAX_SHOWN_P = 0.05  # only a smaller p is shown
COMPARISONS_NOTE = (
    "Brackets are 95 % intervals of each row by itself. p is corrected for the number "
    "of comparisons in the table (Holm), so an interval without 0 may have none."
)


@dataclasses.dataclass(frozen=True, eq=False)
class ComparedRow:
    """A variant of the weights to compare with the dense model."""

    name: str
    weights: MeasuredWeights
    reduction: Reduction = DENSE_REDUCTION

    @property
    def is_smaller(self) -> bool:
        """Whether it is the dense model on smaller images."""
        return self.weights.smaller_side is not None

    @property
    def is_recovered(self) -> bool:
        """Whether the reduction has values of its own from a recovery."""
        pretrained = self.weights.pretrained
        if not pretrained.recovery or self.reduction == DENSE_REDUCTION:
            return False
        model = pretrained.reduced_model(self.reduction)
        variant = pretrained.recovery.variant_for(model)
        return variant is not None and bool(variant.values)


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Measured metrics, and comparisons between rows."""

    dense_weights: MeasuredWeights
    rows: Sequence[ComparedRow]  # the dense model is the first
    # `MeasuredWeights.measure_reduction` results by row name
    figures: Mapping[str, Mapping[str, Any]]
    # `compare_pairs` results by two row names; {}: figures are of fidelity
    comparisons: Mapping[tuple[str, str], Mapping[str, Any]]

    def __str__(self) -> str:
        return format_page(self)


@parallel.without_mesh
def compare(
    vit: Pretrained,
    data: str | None = None,
    *,
    reductions: str | Iterable[str] = (),
    image_sizes: Iterable[int] = (),
    out: str | os.PathLike | None = None,
    **options: Any,
) -> Report:
    """Compare reductions and smaller images with the dense model on the same images.

    Images without labels, or a model without one class per image, give fidelity: how
    near outputs are to the dense model's, with its own outputs for changed and for
    other images as controls. Give images that recovered nothing: nobody holds them out
    here.

    data: as for `evaluate`; a folder, table or hub data need no labels
    reductions: shares of the dense model's MACs, or methods; without any row 0.6 and
        0.5
    image_sizes: pixels a side, for the dense model
    out: folder for a table, a plot and points.jsonl, where a stopped comparison
        resumes; None: write nothing
    options: as for `evaluate`
    Returns a Report; its `str` is the table.
    Raises InputError for a row that does not fit, and for a folder with foreign files.
    """
    check_loaded(vit)
    if out is not None:
        out_names = (TABLE_FILE_NAME, PLOT_FILE_NAME, result_cache.POINTS_FILE_NAME)
        check_own_files("out", out, "a comparison", lambda file: file.name in out_names)
        extras.check_installed("the plot of a comparison", "matplotlib")
    vit = vit.with_default_execution(None)  # with its own dtype
    images = open_labeled_images(vit, data, need_labels=False, **options)
    weights = MeasuredWeights(vit, images)
    if not (vit.config.head.is_single_label and images.source.num_classes):
        compare_outputs.check_image_count(len(images.source))
        # With a reference, fidelity to it is measured, and not accuracy.
        weights = dataclasses.replace(weights, reference=weights)
    rows = make_rows(weights, reductions, image_sizes)  # before files are made
    if out is None:
        return measure_rows(weights, rows, None)
    cache = ResultCache(out, versions=device.library_versions())
    report = measure_rows(weights, rows, cache)
    replace_file(pathlib.Path(out, TABLE_FILE_NAME), format_page(report))
    paint_plot(pathlib.Path(out, PLOT_FILE_NAME), report)
    return report


def make_rows(
    dense_weights: MeasuredWeights,
    reductions: str | Iterable[str] = (),
    image_sizes: Iterable[int] = (),
) -> list[ComparedRow]:
    """Make the rows of `compare`, by default for DEFAULT_MAC_SHARES.

    Raises InputError for a row that does not fit, and for a duplicate.
    """
    pretrained = dense_weights.pretrained
    reduction_texts = [reductions] if isinstance(reductions, str) else [*reductions]
    sides = list(image_sizes)
    if not reduction_texts and not sides:
        reduction_texts = list(DEFAULT_MAC_SHARES)
    rows = []
    for text in reduction_texts:
        reduction = pretrained.with_reduction(text).known_reduction()
        rows.append(ComparedRow(text, dense_weights, reduction))
    for side in sides:
        weights = use_smaller_images(dense_weights, side)
        rows.append(ComparedRow(f"image_size={side}", weights))
    row_names = {(pretrained.image_size, DENSE_REDUCTION): "dense"}
    for row in rows:
        setting = row.weights.pretrained.image_size, row.reduction
        if setting in row_names:
            raise InputError(f"{row.name} is {row_names[setting]} again; give it once")
        row_names[setting] = row.name
    return rows


def measure_rows(
    dense_weights: MeasuredWeights, rows: list[ComparedRow], cache: ResultCache | None
) -> Report:
    """Measure the dense model, every row and fidelity's controls once, and compare."""
    all_rows = [ComparedRow("dense", dense_weights), *rows]
    if dense_weights.reference:
        for control in compare_outputs.CONTROLS:
            name = f"dense, images {control}"
            weights = dataclasses.replace(dense_weights, control=control, name=name)
            all_rows.append(ComparedRow(name, weights))
    records = {}
    for row in all_rows:
        weights = dataclasses.replace(row.weights, cache=cache)
        records[row.name] = weights.measure_reduction(row.reduction)
    comparisons = {}
    if not dense_weights.reference:  # which means fidelity: no image is right or wrong
        smaller_names = [row.name for row in all_rows if row.is_smaller]
        comparisons = compare_pairs(records, smaller_names)
    return Report(dense_weights, all_rows, records, comparisons)


def compare_pairs(
    records: Mapping[str, Mapping[str, Any]], smaller_names: Sequence[str] = ()
) -> dict[tuple[str, str], dict[str, Any]]:
    """Compare rows in pairs, with p before and after Holm's correction.

    records: metrics by row name or "dense"
    smaller_names: names of rows with smaller images
    Returns {(row, other row): comparison}.
    """
    right_of_row = {name: _decode_right(record) for name, record in records.items()}
    comparisons: dict[tuple[str, str], dict[str, Any]] = {}
    for name, row_right in right_of_row.items():
        if name == "dense":
            continue
        # Smaller images are the alternative to reducing: every reduced row is also
        # compared with each of them, and they only with the dense model.
        base_names = ["dense"] if name in smaller_names else ["dense", *smaller_names]
        for base_name in base_names:
            base_right = right_of_row[base_name]
            comparisons[name, base_name] = {
                "points": statistics.paired_difference(row_right, base_right),
                "p": statistics.mcnemar_p(row_right, base_right),
            }
    p_values = [comparison["p"] for comparison in comparisons.values()]
    corrected_p_values = statistics.holm_correction(p_values)
    for comparison, p in zip(comparisons.values(), corrected_p_values, strict=True):
        comparison["holm"] = p
    return comparisons


def _decode_right(record):
    return result_cache.decode_bits(record["right"], record["images"])


def use_smaller_images(dense_weights: MeasuredWeights, side: int) -> MeasuredWeights:
    """The dense weights on images of `side` pixels a side."""
    pretrained = dense_weights.pretrained
    if side >= min(image_sides(pretrained.image_size)):
        limit = f"the model's image_size, {size_text(pretrained.image_size)}"
        raise InputError(f"image_sizes has {side}; sizes must be below {limit}")
    return dataclasses.replace(
        dense_weights,
        # A reduction's counts fit one image size; a dense model takes any.
        pretrained=pretrained.with_reduction(None).at_size(side),
        smaller_side=side,
        compiled_steps={},  # these steps also shrink images
        name=f"images of {side} pixels a side",
    )


def format_page(report: Report) -> str:
    """Page of a comparison: what was measured, rows, and the picture."""
    pretrained = report.dense_weights.pretrained
    data_name = report.dense_weights.images.facts["data"]
    subject = {
        "weights": f"`{pretrained.origin.name}`",
        "digest": pretrained.digest,
        "images": f"{report.figures['dense']['images']:,} of {data_name}",
        "crop": pretrained.preprocessing.description,
    }
    metric_name = "Accuracy" if report.comparisons else "Fidelity"
    sections = [
        f"# {metric_name} of reductions",
        rows_table([subject]),
        format_table(report),
        f"![{metric_name} by MACs]({PLOT_FILE_NAME})",
    ]
    if report.comparisons:
        sections.insert(3, COMPARISONS_NOTE)  # above the plot
    return "\n\n".join(sections) + "\n"


def format_table(report: Report) -> str:
    """Table of the report's rows, in order."""
    base_of_column = {"points to dense, p if < .05": "dense"}
    for row in report.rows:
        if row.is_smaller:
            base_of_column[f"to `{row.name}`"] = row.name
    table_rows = []
    for row in report.rows:
        record = report.figures[row.name]
        recovered_note = " (recovered)" if row.is_recovered else ""
        cells = {"row": f"`{row.name}`{recovered_note}"}
        cells |= compare_outputs.fidelity_cells(record.get("fidelity", {}))
        if report.comparisons:
            acc1 = statistics.estimate_accuracy(_decode_right(record))
            cells["acc1, %"] = statistics.format_estimate(acc1)
            for column, base_name in base_of_column.items():
                comparison = report.comparisons.get((row.name, base_name))
                cells[column] = format_comparison(comparison)
            cells["acc5, %"] = f"{record['acc5']:.1f}"
            cells["tokens, with class token"] = record["tokens"]
        cells["GMACs"] = f"{record['gmacs']:.3f}"
        mac_share = record["gmacs"] / report.figures["dense"]["gmacs"]
        cells["share of the MACs"] = f"{mac_share:.2f}"
        table_rows.append(cells)
    return rows_table(table_rows)


def format_comparison(comparison: Mapping[str, Any] | None) -> str:
    """Format like "-1.8 [-3.0, -0.6], p = .023"; p only below MAX_SHOWN_P."""
    if comparison is None:  # such as of the dense model with itself
        return ""
    estimate_text = statistics.format_estimate(comparison["points"], signs=True)
    p = comparison["holm"]
    if p >= MAX_SHOWN_P:
        return estimate_text
    if p < 0.001:
        return f"{estimate_text}, p < .001"
    return f"{estimate_text}, p = {p:.3f}".replace("= 0.", "= .")


def paint_plot(path: str | os.PathLike, report: Report) -> None:
    """Write a PNG of accuracy or fidelity by GMACs, with a curve per method."""
    dense_record = report.figures["dense"]
    metric = "acc1"
    if report.comparisons:
        axis_label = "acc1, % (95 %, paired difference to dense)"
        dense_level = statistics.estimate_accuracy(_decode_right(dense_record)).value
    else:
        metric = [*dense_record["fidelity"]][-1]  # the last one has an interval
        axis_label = f"{compare_outputs.FIDELITY_COLUMNS[metric]} (95 %)"
        dense_level = dense_record["fidelity"][metric][0]  # of value, low, high
    curves = {}
    for row in report.rows[1:]:  # without the dense model
        # Shuffled outputs agree by chance, far below: they would stretch the axis.
        if row.weights.control == compare_outputs.SHUFFLED_CONTROL:
            continue
        curve_name = row.reduction.name
        if row.reduction == DENSE_REDUCTION:
            curve_name = "smaller images" if row.is_smaller else row.name
        record = report.figures[row.name]
        if report.comparisons:
            # The interval is that of the paired difference to the dense model.
            difference = report.comparisons[row.name, "dense"]["points"]
            estimate = dense_level + np.array(difference)  # value, low, high
        else:
            estimate = record["fidelity"][metric]
        curves.setdefault(curve_name, []).append((record["gmacs"], estimate))
    dense_line = ("dense", dense_level)
    plotting.draw_curves(path, "GMACs an image", axis_label, curves, dense_line)
