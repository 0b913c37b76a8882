"""A folder for images under several methods: figures, a page, and slot maps."""

import dataclasses
import html
import os
import pathlib
import urllib.parse
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from imagepiece_jax.common import extras, files
from imagepiece_jax.common.progress import with_progress_bar
from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.data.class_names import describe_class
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.visualize import figure
from imagepiece_jax.visualize import trace as tracing
from imagepiece_jax.visualize.trace import Trace

PAGE_FILES = ("figures", "index.html", tracing.TRACE_FILE)  # in an output folder
PAGE_TITLE = "What the tokens became"
PAGE_TEMPLATE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ font-family: sans-serif; }} td, th {{ padding-right: 2rem; }}</style>
<h1>{title}</h1>
<p>{weights}; {patches} patches an image</p>
<table>
<tr><th>method</th><th>GMACs</th><th>tokens at the end</th><th>after each step</th></tr>
{rows}
</table>
{sections}
"""


def check_page_writable(folder: pathlib.Path) -> None:
    """Check, before the work starts, that `write_page` can draw and write a page."""
    extras.check_installed("a figure", "matplotlib")

    def is_ours(file):
        if file.name == "index.html":
            return PAGE_TITLE in file.read_text("utf-8", errors="replace")
        return file.name in PAGE_FILES

    files.check_own_files("out", folder, "an earlier call", is_ours)


def write_page(
    folder: pathlib.Path,
    variants: Sequence[Pretrained],
    images: UInt8[np.ndarray, "images height width 3"],
    names: Sequence[str],
    blocks: Collection[int] = (),
) -> Iterator[str]:
    """Write page, figures and data for images under a model's reductions.

    variants: the model with each reduction
    blocks: blocks to show; empty: all
    Yields a line per reduction, and a line about the files.
    """
    figure_folder = folder / "figures"
    figure_folder.mkdir(parents=True, exist_ok=True)
    methods = []
    traces = []
    for earlier_figure in figure_folder.glob("[0-9]*_*.png"):
        earlier_figure.unlink()
    for variant in variants:
        trace = tracing.trace_tokens(variant.model, variant.variables, images)
        traces.append(trace)
        label = variant.label
        method_fields = {"label": label, "setting": str(variant.reduction)}
        methods.append(method_fields | {"gmacs": variant.gmacs})
        # Like the model, figures leave out incomplete patches, at the far edges.
        height, width = (variant.config.patch_size * side for side in trace.grid)
        shown_images = images[:, :height, :width]
        stages = [
            stage for stage in trace.stages if not blocks or stage.block in blocks
        ]
        shown_trace = dataclasses.replace(trace, stages=tuple(stages))
        for index, name in enumerate(with_progress_bar(names, f"figures of {label}")):
            file = figure_folder / figure.figure_name(index, name, label)
            figure.write_figure(file, shown_images[index], name, shown_trace, index)
        tokens_text = counted_noun(trace.num_tokens, "token")
        yield f"{label}: {trace.num_patches} patches, {tokens_text} at the end"
    data_file = tracing.write_traces(folder, names, methods, traces)
    weights = variants[0]  # all variants have the same weights
    page = render_page(names, methods, traces, weights.origin.name, weights.class_names)
    files.replace_file(folder / "index.html", page)
    yield f"page: {folder}/index.html; figures: {figure_folder}; data: {data_file}"


def render_page(
    names: Sequence[str],
    methods: Sequence[Mapping[str, Any]],
    traces: Sequence[Trace],
    weights_name: str,
    class_names: Sequence[str | None] | None = None,
) -> str:
    """Render the page as HTML; `names`, `methods` and `traces` as in `write_traces`."""
    rows = []
    for method, trace in zip(methods, traces, strict=True):
        counts = ", ".join(str(stage.num_tokens) for stage in trace.stages)
        label = html.escape(method["label"])
        cells = (label, f"{method['gmacs']:.3f}", str(trace.num_tokens), counts)
        rows.append(f"<tr><td>{'</td><td>'.join(cells)}</td></tr>")
    sections = []
    for index, name in enumerate(names):
        sections.append(f"<h2>{html.escape(name)}</h2>")
        for method, trace in zip(methods, traces, strict=True):
            file_name = figure.figure_name(index, name, method["label"])
            url = urllib.parse.quote(os.fsencode(f"figures/{file_name}"))
            caption = method["label"]
            if trace.top_labels is not None and trace.confidence is not None:
                top_label = trace.top_labels[index]
                class_text = f"class {top_label}"
                if class_names and (class_name := class_names[top_label]):
                    class_text = describe_class(class_name)
                caption += f": {class_text}, {100 * trace.confidence[index]:.0f} % sure"
            safe_caption = html.escape(caption)
            image_tag = f'<img src="{url}" alt="{safe_caption}">'
            sections.append(f"<p>{safe_caption}</p>\n{image_tag}")
    return PAGE_TEMPLATE.format(
        title=PAGE_TITLE,
        weights=html.escape(weights_name),
        patches=traces[0].num_patches,
        rows="\n".join(rows),
        sections="\n".join(sections),
    )
