"""A folder for images under several methods: figures, a page, and slot maps."""

import dataclasses
import html
import math
import os
import pathlib
import urllib.parse
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from imagepiece_jax.common import files
from imagepiece_jax.common.image_size import cut_to_patches
from imagepiece_jax.common.progress import with_progress_bar
from imagepiece_jax.common.tables import counted_noun
from imagepiece_jax.data.class_names import described
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.visualize import figure
from imagepiece_jax.visualize import trace as tracing

FILES = ("figures", "index.html", tracing.JSON)  # in an output folder
TITLE = "What the tokens became"
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 1rem; font-family: sans-serif; }}
th, td {{ padding: 0.2rem 1rem 0.2rem 0; text-align: left; }}
figure {{ margin: 1rem 0; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{weights}; {patches} patches an image</p>
<table>
<tr><th>method</th><th>GMACs</th><th>tokens at the end</th><th>after each step</th></tr>
{rows}
</table>
{sections}
</body>
</html>
"""
ROW = "<tr><td>{label}</td><td>{gmacs:.3f}</td><td>{tokens}</td><td>{steps}</td></tr>"
FIGURE = """<figure>
<figcaption>{caption}</figcaption>
<img src="{path}" alt="{caption}" loading="lazy">
</figure>"""


def check_folder(out: str | os.PathLike):
    """Check that a folder is empty or comes from `write_folder`."""

    def ours(file):
        if file.name == "index.html":
            return TITLE in file.read_text("utf-8", errors="replace")
        return file.name in (*FILES, files.LOCK_NAME)

    files.check_own_files("out", out, "an earlier call", ours)


def write_folder(
    out: str | os.PathLike,
    models: Sequence[Pretrained],
    images: np.ndarray,
    names: Sequence[str],
    source: str,
    blocks: Collection[int] = (),
) -> Iterator[str]:
    """Write page, figures and data for images under a model's reductions.

    models: one per reduction, with equal weights
    images: uint8 [B, H, W, 3], with `names`
    source: name of the weights
    blocks: blocks to draw; empty: all
    Yields a line per reduction, and a line about the files.
    """
    figures = pathlib.Path(out) / "figures"
    methods = []
    traces = []
    os.makedirs(out, exist_ok=True)
    images_of_patches, _ = cut_to_patches(images, models[0].model.config.patch_size)
    for vit in models:
        problem_type = vit.config.problem_type
        trace = tracing.trace(vit.model, vit.variables, images, problem_type)
        traces.append(trace)
        setting = str(vit.reduction)
        method = {"label": vit.label, "setting": setting, "gmacs": vit.gmacs}
        methods.append(method)
        stages = trace.stages
        if blocks:
            stages = tuple(stage for stage in stages if stage.block in blocks)
        drawn = dataclasses.replace(trace, stages=stages)
        os.makedirs(figures, exist_ok=True)  # only with something to put in it
        for i in with_progress_bar(range(len(names)), f"figures of {vit.label}"):
            path = figures / figure.file_name(i, names[i], vit.label)
            figure.save(path, images_of_patches[i], names[i], drawn, i)
        left = counted_noun(trace.tokens, "token")
        yield f"{vit.label}: {math.prod(trace.grid)} patches, {left} at the end"
    tracing.write_traces(out, names, methods, traces)
    text = page(names, methods, traces, source, models[0].class_names)
    files.replace_file(pathlib.Path(out) / "index.html", text)
    yield f"page: {out}/index.html; figures: {figures}; data: {out}/{tracing.JSON}"


def page(names, methods, traces, weights, class_names=None):
    """HTML text; arguments as in `write_folder`."""
    rows = []
    for method, trace in zip(methods, traces, strict=True):
        steps = ", ".join(str(stage.tokens) for stage in trace.stages)
        label = html.escape(method["label"])
        row = ROW.format(
            label=label, gmacs=method["gmacs"], tokens=trace.tokens, steps=steps
        )
        rows.append(row)
    sections = []
    for i, name in enumerate(names):
        sections.append(f"<h2>{html.escape(name)}</h2>")
        for method, trace in zip(methods, traces, strict=True):
            file = figure.file_name(i, name, method["label"])
            path = urllib.parse.quote(os.fsencode(f"figures/{file}"))
            caption = method["label"] + _prediction(trace, i, class_names or ())
            sections.append(FIGURE.format(path=path, caption=html.escape(caption)))
    return PAGE.format(
        title=TITLE,
        weights=html.escape(weights),
        patches=math.prod(traces[0].grid),
        rows="\n".join(rows),
        sections="\n".join(sections),
    )


def _prediction(trace, index, class_names):
    """Most probable class in words; "" without classes."""
    if trace.top is None:
        return ""
    top = trace.top[index]
    name = f"class {top}"
    if top < len(class_names):
        name = described(class_names[top] or name)
    return f": {name}, {100 * trace.confidence[index]:.0f} % sure"
