"""A folder of images under several methods: an HTML page, figures and data.

The page is one file with style, pictures and text, and no script. Groups are small JPEG
files; attention, sizes and weights are one pixel per patch, over the gray photograph.
"""

import base64
import dataclasses
import html
import io
import math
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np
from PIL import Image

from imagepiece_jax.common import files
from imagepiece_jax.common.image_size import cut_to_patches
from imagepiece_jax.common.progress import counted
from imagepiece_jax.common.token_pictures import enlarged, value_colors
from imagepiece_jax.data.class_names import described
from imagepiece_jax.models.pretrained import Pretrained
from imagepiece_jax.visualize import figure
from imagepiece_jax.visualize import trace as tracing

WIDTH = 224  # of pictures before they are loaded, in pixels of the page
QUALITY = 85  # of JPEG files, with full-resolution chroma: outlines are thin and bright
FILES = ("figures", "index.html", "provenance.json", "provenance.npz")  # of a folder
TITLE = "What the tokens became"
LABELS = {"tokens": "tokens", "attention": "class attention", "sizes": "token sizes"}


def check_folder(out: str | os.PathLike):
    """Raise InputError for a folder that holds anything but what `write_folder` wrote.

    A page of another kind is not its own, either.
    """
    title = f"<title>{TITLE}</title>".encode()

    def ours(file):
        if file.name == "index.html":
            return title in file.read_bytes()[:1000]
        return file.name in (*FILES, files.LOCK)

    files.check_own("out", out, "an earlier call", ours)


def write_folder(
    out: str | os.PathLike,
    models: Sequence[Pretrained],
    images: np.ndarray,
    names: Sequence[str],
    source: str,
    blocks: Collection[int] = (),
) -> Iterator[str]:
    """Write page, figures and data of images under several reductions of one model.

    out: a folder, made if it does not exist
    models: one for each reduction, of equal weights
    images: uint8 [B, H, W, 3], with a name each in `names`
    source: a name of the weights
    blocks: those in figures; none stands for all
    Yields a line on each reduction, and one on the files.
    Raises InputError where the folder cannot be created.
    """
    figures = pathlib.Path(out) / "figures"
    methods = []
    traces = []
    files.make_folder("out", out)
    files.check_folder("out", figures)
    images_of_patches, _ = cut_to_patches(images, models[0].model.patch_size)
    for vit in models:
        trace = tracing.trace(vit.model, vit.on_device(), images, vit.problem_type)
        traces.append(trace)
        method = {
            "label": vit.label,
            "setting": vit.reduction.fields,
            "untrained": "selectors" in vit.untrained_kinds,
            "gmacs": vit.gmacs,
        }
        methods.append(method)
        stages = trace.stages
        if blocks:
            stages = tuple(stage for stage in stages if stage.block in blocks)
        drawn = dataclasses.replace(trace, stages=stages)
        files.make_folder("out", figures)  # where there is something to put in it
        for i in counted(range(len(names)), f"figures of {vit.label}"):
            path = figures / figure.file_name(i, names[i], vit.label)
            figure.save(path, images_of_patches[i], names[i], drawn, i)
        patches = math.prod(trace.grid)
        yield f"{vit.label}: {patches} patches, {trace.tokens} tokens at the end"
    tracing.write_traces(out, names, methods, traces)
    classes = models[0].class_names
    text = page(images_of_patches, names, methods, traces, source, classes)
    files.replace_file(pathlib.Path(out) / "index.html", text)
    yield f"page: {out}/index.html; figures: {figures}; data: {out}/provenance.*"


def page(images, names, methods, traces, weights, class_names=None):
    """The page as text; arguments as `write_folder` makes them."""
    sections = []
    photos = []
    class_names = class_names or ()
    for i in counted(range(len(names)), "images on the page"):
        section = _section(i, images[i], names[i], methods, traces, class_names)
        sections.append(section)
        url = _jpeg(_gray(images[i]))
        photos.append(f".photo-{i} {{ background-image: url({url}); }}")
    photos = "\n".join(photos)
    style = pathlib.Path(__file__).with_name("page.css").read_text("utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE}</title>
<style>{style}{photos}
</style>
</head>
<body>
<header>
<h1>{TITLE}</h1>
<p>{_count(len(names), "image")}, {_count(len(methods), "method")}, one checkpoint:
{html.escape(weights)}.</p>
{_table(methods, traces)}
{_untrained(methods)}
{_contents(names)}
</header>
{_switch()}
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def _table(methods, traces):
    """The table of the methods: their costs and numbers of tokens."""
    rows = []
    for method, trace in zip(methods, traces, strict=True):
        label = html.escape(method["label"])
        counts = ", ".join(str(stage.tokens) for stage in trace.stages) or "none"
        rows.append(
            f'<tr><th scope="row">{label}</th><td>{method["gmacs"]:.3f}</td>'
            f"<td>{trace.tokens}</td><td>{counts}</td></tr>"
        )
    heads = (
        '<th scope="col">method</th>'
        '<th scope="col">GMACs an image</th>'
        '<th scope="col">image tokens at the end</th>'
        '<th scope="col">after each step</th>'
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Methods"><table>'
        "<caption>What each method costs and leaves, of "
        f"{math.prod(traces[0].grid)} patches</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _untrained(methods):
    if not any(method["untrained"] for method in methods):
        return ""
    return (
        "<p>Untrained selectors: the checkpoint has no parameters for what these "
        "methods learn; theirs are random and say nothing about the method.</p>"
    )


def _contents(names):
    if len(names) == 1:
        return ""
    links = []
    for i, name in enumerate(names):
        links.append(f'<a href="#image-{i}">{html.escape(name)}</a>')
    return f'<nav aria-label="Images"><p>{", ".join(links)}</p></nav>'


def _switch():
    """Choice of the kind of picture; browsers without :has() show all kinds."""
    choices = ""
    keys = ""
    for kind, text in LABELS.items():
        checked = ""
        caption = figure.CAPTIONS[kind]
        if kind == "tokens":
            checked = " checked"
            caption += f" {figure.CAPTIONS['weights']}"
        choices += f'<label><input type="radio" name="show" id="show-{kind}"{checked}>'
        choices += f"{text}</label>"
        keys += f'<p class="{kind}">{caption}</p>'
    return f'<fieldset class="switch"><legend>Show</legend>{choices}</fieldset>{keys}'


def _section(index, image, name, methods, traces, class_names):
    """One image: the results of all methods side by side, then each block by block."""
    escaped = html.escape(name)
    cells = []
    details = []
    for method, trace in zip(methods, traces, strict=True):
        label = html.escape(method["label"])
        views = figure.views(trace, index)
        drawing = _Drawing(image, index, name, method["label"], trace.grid, views)
        prediction = _prediction(trace, index, class_names)
        cells.append(
            f'<div class="cell"><h3>{label}</h3>{drawing.result()}{prediction}</div>'
        )
        if trace.stages:
            details.append(
                f"<details><summary>{label}, block by block</summary>"
                f'<div class="strip" tabindex="0" role="region" aria-label="{label}, '
                f'{escaped}">{drawing.strip()}</div></details>'
            )
    original = (
        f'<div class="cell"><h3>input</h3><figure><img src="{_jpeg(image)}" '
        f'alt="{escaped}" width="{image.shape[1]}" height="{image.shape[0]}">'
        f"</figure></div>"
    )
    return (
        f'<section id="image-{index}" aria-labelledby="name-{index}">'
        f'<h2 id="name-{index}">{escaped}</h2>'
        f'<div class="methods">{original}{"".join(cells)}</div>'
        f"{''.join(details)}</section>"
    )


def _prediction(trace, index, class_names):
    """A line with an image's most probable class; "" where there are no classes."""
    if trace.top is None:
        return ""
    top = trace.top[index]
    name = f"class {top}"
    if top < len(class_names):
        name = described(class_names[top] or name)
    sure = 100 * trace.confidence[index]
    return f'<p class="none">{html.escape(name)}, {sure:.0f} % sure</p>'


class _Drawing:
    """Pictures of one image under one method, as figures of the page.

    index: number of the image, which its CSS class has
    views: {kind: of each block, a view, or None where it has none}
    """

    def __init__(self, image, index, name, method, grid, views):
        self._image = image
        self._index = index
        self._grid = grid
        self._views = {}
        for kind, listed in views.items():
            self._views[kind] = [view for view in listed if view is not None]
        self._subject = f"{method}, {name}"

    def result(self):
        """The method's result: a figure, or a sentence, of each kind."""
        text = ""
        for kind in figure.KINDS:
            if kind == "tokens" and self._views["weights"]:
                text += self._sheet(self._views["weights"])
            elif self._views[kind]:
                text += self._figure(self._views[kind][-1], kind)
            else:
                text += self._no_figure(kind)
        return text

    def strip(self):
        """All views in order; learned tokens stand with the groups."""
        text = ""
        for kind in figure.KINDS:
            views = self._views[kind]
            if kind == "tokens":
                views = views + self._views["weights"]
            for view in views:
                text += self._figure(view, kind)
            if not views:
                text += self._no_figure(kind)
        return text

    def _no_figure(self, kind):
        """The sentence in place of the figures of a kind."""
        reason = kind
        if kind == "sizes" and self._views["weights"]:
            reason = "overlap"
        return f'<p class="none {kind}">{_NO_FIGURE[reason]}</p>'

    def _figure(self, view, kind):
        """`view` as a figure that is shown while the kind is selected."""
        alt = html.escape(f"{view.title}, {view.note}: {self._subject}")
        if view.kind == "tokens":
            drawn = _jpeg(view.draw(enlarged(self._image), self._grid))
            return _framed(kind, drawn, alt, view.title, view.note, self._grid)
        painted = value_colors(view.values, figure.COLORMAPS[view.kind])
        small = _png(painted.reshape(*self._grid, 4))
        photo = f"values photo-{self._index}"
        return _framed(kind, small, alt, view.title, view.note, self._grid, photo)

    def _sheet(self, maps):
        """All learned tokens as one picture of small maps."""
        across = math.ceil(len(maps) ** 0.5)
        height, width = self._grid
        down = math.ceil(len(maps) / across)
        # One clear pixel between two maps.
        rows = down * (height + 1) - 1
        columns = across * (width + 1) - 1
        sheet = np.zeros((rows, columns, 4), "uint8")
        for i, view in enumerate(maps):
            top = (height + 1) * (i // across)
            left = (width + 1) * (i % across)
            painted = value_colors(view.values, figure.COLORMAPS["weights"])
            painted = painted.reshape(height, width, 4)
            sheet[top : top + height, left : left + width] = painted
        note = f"{len(maps)} learned tokens"
        alt = html.escape(f"weights of {note}, a map each: {self._subject}")
        picture = _png(sheet)
        return _framed(
            "tokens", picture, alt, "weights", note, sheet.shape, frame="values"
        )


_NO_FIGURE = {
    "tokens": "All patches are tokens.",
    "attention": "There is no class token.",
    "sizes": "Every token is one patch.",
    "overlap": "Learned tokens overlap: no sizes.",
}


def _framed(kind, source, alt, title, note, shape, frame="groups"):
    """A figure of a picture whose data URL is `source`."""
    height = round(WIDTH * shape[0] / shape[1])
    return (
        f'<figure class="{kind}"><div class="{frame}"><img src="{source}" alt="{alt}" '
        f'width="{WIDTH}" height="{height}" loading="lazy"></div>'
        f"<figcaption><b>{title}</b>{note}</figcaption></figure>"
    )


def _count(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _gray(image):
    """A photograph without its colors, still [H, W, 3]."""
    gray = image.mean(axis=-1, keepdims=True)
    return np.repeat(gray, 3, axis=-1).astype(np.uint8)


def _jpeg(pixels):
    return _inlined(pixels, "jpeg", quality=QUALITY, subsampling=0)


def _png(pixels):
    return _inlined(pixels, "png", optimize=True)


def _inlined(pixels, kind, **options):
    """Pixels as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    text = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind};base64,{text}"
