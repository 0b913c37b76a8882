"""Comparison of one checkpoint's reductions and smaller images on the same images.

Differences are paired by image. Every row is compared with the dense model, and every
reduction also with the smaller images. All comparisons are one family of exact McNemar
tests, corrected by Holm's rule. Without labels or classes, fidelity is compared.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from imagepiece_jax.common import device, extras, plotting, statistics
from imagepiece_jax.common.checks import check_range
from imagepiece_jax.common.files import LOCK_NAME, check_own_files, replace_file
from imagepiece_jax.common.image_size import image_sides, size_text
from imagepiece_jax.common.signals import deferred_signals
from imagepiece_jax.common.tables import markdown_table, rows_table
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluation import result_cache
from imagepiece_jax.evaluation.labeled_images import open_labeled_images
from imagepiece_jax.evaluation.result_cache import (
    MeasuredImages,
    MeasuredWeights,
    ResultCache,
    decode_bits,
)
from imagepiece_jax.inference.annotations import read_annotations
from imagepiece_jax.inference.compare_outputs import (
    FIDELITY_COLUMNS,
    IMAGE_CONTROLS,
    MIN_COMPARED_IMAGES,
    SHUFFLED_CONTROL,
    Annotations,
    fidelity_cells,
)
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.reduction.reduction import DENSE_REDUCTION, Reduction

DEFAULT_MAC_SHARES = (
    "0.6",
    "0.5",
)  # of the dense model's MACs, if the caller names no row
TABLE_FILE_NAME = "compare.md"
PLOT_FILE_NAME = "compare.png"
MAX_SHOWN_P = 0.05  # only a smaller p is shown


@dataclasses.dataclass(frozen=True, eq=False)
class ComparedRow:
    """A variant of the weights to compare with the dense model."""

    name: str
    weights: MeasuredWeights
    reduction: Reduction
    is_smaller: bool = False  # the dense model on smaller images


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Measured figures, and comparisons between rows."""

    weights: MeasuredWeights
    rows: Sequence[ComparedRow]  # the dense model is the first
    # `MeasuredWeights.evaluate` results by row name
    figures: Mapping[str, Mapping[str, Any]]
    # `compare_pairs` results by two row names; {}: figures are of fidelity
    comparisons: Mapping[tuple[str, str], Mapping[str, Any]]

    def __str__(self):
        return report_page(self)


def compare(
    vit: Pretrained,
    data: str | None = None,
    *,
    reductions: Iterable[str] = (),
    image_sizes: Iterable[int] = (),
    texts: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
) -> Report:
    """Compare reductions and smaller images with the dense model on the same images.

    Images without labels, or a model without one class per image, give fidelity: how
    near outputs are to the dense model's, with its own outputs for changed and for
    other images as controls. In class folders, the nearest images also vote. Give
    images that recovered nothing: nobody holds them out here.

    data: as for `evaluate`; a folder, table or hub data need no labels
    reductions: shares of the dense model's MACs, or methods; without any row 0.6 and
        0.5
    image_sizes: pixels a side, for the dense model
    texts: a text tower's vectors for recall of text to image, as for `read_annotations`
    out: folder for a table, a plot and points.jsonl, where a stopped comparison
        resumes; None: write nothing
    data_dir to threads: as for `evaluate`
    Returns a Report; its `str` is the table.
    Raises InputError for a row that does not fit, and for a folder with foreign files.
    """
    if out is not None:
        check_report_folder(out)
        extras.check_installed("the plot of a comparison", "matplotlib")
    vit = vit.analyzed(None)
    images = open_labeled_images(
        vit,
        data,
        data_dir=data_dir,
        need_labels=False,
        limit=limit,
        batch_size=batch_size,
        workers=workers,
        threads=threads,
    )
    is_fidelity = not vit.config.head.is_single_label or not images.source.num_classes
    known = Annotations()
    if is_fidelity or texts is not None:
        check_range("number of images", len(images.source), MIN_COMPARED_IMAGES)
        known = read_annotations(vit, images.source, texts)  # before images are read
    setting = images.setting | known.setting
    measured = MeasuredWeights(vit, MeasuredImages(setting, images.batches))
    if is_fidelity:
        dense = vit.with_reduction(None)

        @functools.cache
        def reference():
            per_image = measured.run(dense).per_image
            return per_image["outputs"], known.subset(per_image["index"])

        measured = dataclasses.replace(measured, reference=reference)
    rows = make_rows(measured, reductions, image_sizes)  # before files are made
    with contextlib.ExitStack() as stack:
        folder = out
        if out is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        versions = device.library_versions()
        results = stack.enter_context(ResultCache(folder, versions=versions))
        report = measure_rows(measured, rows, results)
        if out is not None:
            table_file, plot_file = report_files(out, report)
            with deferred_signals():  # the files belong together
                replace_file(table_file, report_page(report, plot_file.name))
                paint_plot(plot_file, report)
    return report


def make_rows(
    measured: MeasuredWeights,
    reductions: Iterable[str] = (),
    image_sizes: Iterable[int] = (),
) -> list[ComparedRow]:
    """Make rows from reductions and image sizes; the default is SHARES.

    reductions: texts for `Reduction.read`
    image_sizes: pixels a side, for the dense model
    Raises InputError for a row that does not fit, and for a duplicate.
    """
    vit = measured.vit
    texts = list(reductions)
    sizes = list(image_sizes)
    if not texts and not sizes:
        texts = list(DEFAULT_MAC_SHARES)
    rows = []
    for text in texts:
        reduction = vit.with_reduction(text).reduction
        rows.append(ComparedRow(text, measured, reduction))
    for size in sizes:
        resized = on_smaller_images(measured, size)
        rows.append(
            ComparedRow(f"image_size={size}", resized, DENSE_REDUCTION, is_smaller=True)
        )
    seen = {(vit.image_size, DENSE_REDUCTION): "dense"}
    for row in rows:
        key = row.weights.vit.image_size, row.reduction
        if key in seen:
            raise InputError(f"{row.name} is {seen[key]} again; give it once")
        seen[key] = row.name
    return rows


def measure_rows(
    measured: MeasuredWeights, rows: Sequence[ComparedRow], out: ResultCache
) -> Report:
    """Measure the dense model, every row and fidelity's controls once, and compare."""
    rows = [ComparedRow("dense", measured, DENSE_REDUCTION), *rows]
    if measured.reference:
        rows += [
            control_row(measured, name) for name in (*IMAGE_CONTROLS, SHUFFLED_CONTROL)
        ]
    figures = {}
    for row in rows:
        weights = dataclasses.replace(row.weights, cache=out)
        figures[row.name] = weights.evaluate(row.reduction)
    if measured.reference:
        return Report(measured, rows, figures, {})
    smaller = [row.name for row in rows if row.is_smaller]
    return Report(measured, rows, figures, compare_pairs(figures, smaller))


def control_row(measured: MeasuredWeights, name: str) -> ComparedRow:
    """The dense weights on images changed by `IMAGE_CONTROLS[name]`, or SHUFFLED_CONTROL."""

    def batches():
        for batch in measured.images.batches():
            changed = [IMAGE_CONTROLS[name](pixels) for pixels in batch["image"]]
            yield {**batch, "image": np.stack(changed)}

    images = MeasuredImages(measured.images.setting | {"change": name}, batches)
    title = f"dense, images {name}"
    weights = dataclasses.replace(
        measured, images=images, name=title, is_shuffled=name == SHUFFLED_CONTROL
    )
    return ComparedRow(title, weights, DENSE_REDUCTION)


def compare_pairs(
    figures: Mapping[str, Mapping[str, Any]], smaller: Sequence[str] = ()
) -> dict[tuple[str, str], dict[str, Any]]:
    """Compare rows in pairs, with p before and after Holm's correction.

    figures: by row name or "dense"
    smaller: names of rows with smaller images
    Returns {(row, other row): comparison}.
    """
    rights = {name: _right_answers(record) for name, record in figures.items()}
    results = {}
    for name, right in rights.items():
        if name == "dense":
            continue
        bases = ["dense"] if name in smaller else ["dense", *smaller]
        for base in bases:
            gained, lost = statistics.count_discordant(right, rights[base])
            results[name, base] = {
                "points": statistics.paired_difference(right, rights[base]),
                "gained": gained,
                "lost": lost,
                "p": statistics.mcnemar_p(right, rights[base]),
            }
    corrected = statistics.holm_correction([record["p"] for record in results.values()])
    for record, p in zip(results.values(), corrected, strict=True):
        record["holm"] = p
    return results


def _right_answers(figures):
    """Right answers, bool [images]."""
    return decode_bits(figures["right"], figures["images"])


# Smaller images


def on_smaller_images(measured: MeasuredWeights, size: int) -> MeasuredWeights:
    """The dense weights on images of `size` pixels a side."""
    if size >= min(image_sides(measured.vit.image_size)):
        model_size = size_text(measured.vit.image_size)
        raise InputError(
            f"image_sizes has {size}; sizes must be below the model's image_size, "
            f"{model_size}"
        )

    def alter(images, batch, model):
        # The dense model's normalized images, by antialiased bicubic weights.
        shape = (images.shape[0], size, size, images.shape[3])
        return jax.image.resize(images, shape, "cubic", antialias=True)

    dense = measured.vit.with_reduction(None)  # a dense model fits any size
    setting = measured.images.setting | {"smaller": (size, size)}
    return dataclasses.replace(
        measured,
        vit=dense.at_size(size),
        images=MeasuredImages(setting, measured.images.batches, alter),
        programs={},
        name=f"images of {size} pixels a side",
    )


# Files


def check_report_folder(folder: str | os.PathLike):
    """Check that a folder is empty or holds comparisons."""
    regex = rf"compare(-[0-9a-f]{{8}})?\.(md|png)|{LOCK_NAME}|"
    regex += re.escape(result_cache.POINTS_FILE_NAME)
    check_own_files(
        "out", folder, "a comparison", lambda file: re.fullmatch(regex, file.name)
    )


def report_files(
    folder: str | os.PathLike, report: Report
) -> tuple[pathlib.Path, pathlib.Path]:
    """Paths of a report's table and plot in a folder."""
    folder = pathlib.Path(folder)
    subject = subject_table(report)
    table = folder / TABLE_FILE_NAME
    # A comparison of other weights or images has its own names, so both stay.
    if table.exists() and subject not in table.read_text("utf-8", errors="replace"):
        number = hashlib.sha256(subject.encode()).hexdigest()[:8]
        table = folder / f"compare-{number}.md"
    return table, table.with_suffix(".png")


def subject_table(report: Report) -> str:
    """Table of the measured weights, images and crop."""
    dense = report.figures["dense"]
    vit = report.weights.vit
    columns = {
        "weights": f"`{vit.origin.name}`",
        "digest": vit.digest,
        "images": f"{dense['images']:,} of {report.weights.images.setting['data']}",
        "crop": vit.preprocessing.text,
    }
    return markdown_table([*columns], [[*columns.values()]])


def report_page(report: Report, plot: str = PLOT_FILE_NAME) -> str:
    """Page of a comparison: subject, rows, and the picture in file `plot`."""
    subject = "Accuracy" if report.comparisons else "Fidelity"
    parts = [
        f"# {subject} of reductions",
        subject_table(report),
        report_table(report),
        f"![{subject} by MACs]({plot})",
    ]
    return "\n\n".join(parts) + "\n"


def report_table(report: Report) -> str:
    """Table of the report's rows, in order."""
    vit = report.weights.vit
    bases = {"points to dense, p if < .05": "dense"}
    for row in report.rows:
        if row.is_smaller:
            bases[f"to `{row.name}`"] = row.name
    lines = []
    for row in report.rows:
        figures = report.figures[row.name]
        variant = None
        if vit.recovery and row.reduction != DENSE_REDUCTION:
            variant = vit.recovery.variant_for(vit.model_with(row.reduction))
        recovered = " (recovered)" if variant and variant.values else ""
        line = {"row": f"`{row.name}`{recovered}"}
        line |= fidelity_cells(figures.get("fidelity", {}))
        if report.comparisons:
            acc1 = statistics.estimate_accuracy(_right_answers(figures))
            line["acc1, %"] = statistics.format_estimate(acc1)
            for column, base in bases.items():
                line[column] = format_comparison(
                    report.comparisons.get((row.name, base))
                )
            line["acc5, %"] = f"{figures['acc5']:.1f}"
            line["tokens, with class token"] = figures["tokens"]
        line["GMACs"] = f"{figures['gmacs']:.3f}"
        share = figures["gmacs"] / report.figures["dense"]["gmacs"]
        line["share of the MACs"] = f"{share:.2f}"
        lines.append(line)
    return rows_table(lines)


def format_comparison(estimate: Mapping[str, Any] | None) -> str:
    """Format a comparison: "-1.8 [-3.0, -0.6], p = .023"; p only if SIGNIFICANT."""
    if estimate is None:
        return ""
    text = statistics.format_estimate(estimate["points"], signs=True)
    p = estimate["holm"]
    if p < 0.001:
        return f"{text}, p < .001"
    return f"{text}, p = {p:.3f}".replace("= 0.", "= .") if p < MAX_SHOWN_P else text


def paint_plot(path: str | os.PathLike, report: Report):
    """Write a PNG of accuracy or fidelity by GMACs, with a curve per method."""
    if not report.comparisons:
        fidelity = report.figures["dense"]["fidelity"]
        figure = [*fidelity][-1]  # the last one has an interval
        label = f"{FIDELITY_COLUMNS[figure]} (95 %)"
        dense = fidelity[figure][0]
    else:
        label = "acc1, % (95 %, paired difference to dense)"
        dense = statistics.estimate_accuracy(
            _right_answers(report.figures["dense"])
        ).value
    curves = {}
    for row in report.rows[1:]:
        if row.weights.is_shuffled:  # chance would stretch the axis
            continue
        name = row.reduction.name
        if row.reduction == DENSE_REDUCTION:
            name = "smaller images" if row.is_smaller else row.name
        figures = report.figures[row.name]
        if report.comparisons:
            # The band is the interval of the paired difference to the dense model.
            band = dense + np.array(report.comparisons[row.name, "dense"]["points"])
        else:
            band = figures["fidelity"][figure]
        curves.setdefault(name, []).append((figures["gmacs"], band))
    plotting.draw_curves(path, "GMACs an image", label, curves, level=("dense", dense))
