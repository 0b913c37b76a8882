"""Which reduction keeps a map? A dense head on the features of reduced models.

The head reads a feature of every patch, as segmentation and depth heads do: three
transposed convolutions and a saliency, from 0 to 1, of every pixel. Its maps of each
method, at shares of the dense model's MACs, are compared with those of the dense model
on the same photographs:

* correlation: Pearson's r over the pixels;
* IoU: of the pixels above THRESHOLD, their intersection over their union. Photographs
  without such a pixel in the dense map have none, and are counted apart.

Beside them stand ImagePiece's controls and two baselines: random tokens, and the mean
map of all other photographs, which needs no model. The head is not among the MACs.
"""

import functools
import hashlib
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import render
from experiments.patch_features import FILLED, correlation, of_other_images
from imagepiece_jax.common import plotting
from imagepiece_jax.common.image_size import sides
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import compare, compare_tables, statistics
from imagepiece_jax.evaluate.cache import plan_facts
from imagepiece_jax.inference.features import FILLS, feature_map, final_norm, leaving
from imagepiece_jax.models.config import patch_grid
from imagepiece_jax.pretrained.files import read_state_dict
from imagepiece_jax.reduction import settings
from imagepiece_jax.visualize import trace as tracing

THRESHOLD = 0.5
LAYERS = (1, 2, 3)  # of the head, each of which doubles the map
EPS = 1e-5  # of its batch norms
CAPTION = (
    f"{plotting.CAPTION} Maps are the saliency of every pixel, brightest at 1, on the "
    "gray photograph; IoU is of the pixels above one half, with those of the dense map."
)
FLOOR = "mean of the other maps"
HEAD = ("correlation", "IoU", "a pixel where dense has none")
BASES = (*compare.REFERENCES, compare.CONTROLLED)  # that IoU is compared with
# The picture: methods beside the dense model, their share, and blocks from 0.
PICTURED, SHARE, AFTER = ("tome", "evit"), 0.6, (3, 6, 9)


def read_head(path, width: int) -> dict[str, np.ndarray]:
    """The tensors of a saliency head, float32, by the names of its file.

    path: of a weights file
    width: of the features
    Raises InputError for a file of anything else, and for a head of other features.
    """
    tensors = {
        name: np.asarray(tensor, np.float32)
        for name, tensor in read_state_dict(path).items()
        if not name.endswith(".num_batches_tracked")
    }
    shapes, before = {}, width
    for n in LAYERS:
        after = np.size(tensors.get(f"bn{n}.bias", ()))
        shapes[f"upconv{n}.weight"] = (before, after, 4, 4)
        leaves = ("weight", "bias", "running_mean", "running_var")
        names = [f"upconv{n}.bias", *(f"bn{n}.{leaf}" for leaf in leaves)]
        shapes |= dict.fromkeys(names, (after,))
        before = after
    shapes |= {"final_conv.weight": (1, before, 1, 1), "final_conv.bias": (1,)}
    allowed = (
        "allowed: a head of three transposed convolutions of 4 x 4 with batch norm, "
        "and a last one of 1 x 1"
    )
    if missing := sorted({*shapes} - {*tensors}):
        raise InputError(f"--decoder {path} has no tensor {missing[0]}; {allowed}")
    reads, *_ = tensors["upconv1.weight"].shape or (0,)
    if reads != width:
        raise InputError(
            f"--decoder {path} reads features of {reads} numbers, and the model's have "
            f"{width}; allowed: a head that was trained with the model"
        )
    for name, tensor in sorted(tensors.items()):
        if tensor.shape != shapes.get(name):
            raise InputError(
                f"--decoder {path} has tensor {name} {list(tensor.shape)}; {allowed}"
            )
    return tensors


def decode(head: dict[str, np.ndarray], patches: jax.Array, size) -> jax.Array:
    """Saliency of every pixel. [B, h, w, D] -> [B, *size] float32, from 0 to 1.

    head: from `read_head`
    patches: features after the last norm, such as `imagepiece_jax.features` returns
    size: (height, width) of the image
    """
    x = patches.astype(jnp.float32)
    for n in LAYERS:
        x = upsample(x, head[f"upconv{n}.weight"])
        factor = head[f"bn{n}.weight"] / jnp.sqrt(head[f"bn{n}.running_var"] + EPS)
        mean = head[f"bn{n}.running_mean"] - head[f"upconv{n}.bias"]
        x = jax.nn.relu(
            x * channels(factor) + channels(head[f"bn{n}.bias"] - mean * factor)
        )
    x = jnp.einsum("bhwd,d->bhw", x, head["final_conv.weight"].ravel())
    x = x + head["final_conv.bias"][0]
    # As PyTorch does it, which reads the nearest pixels of a larger map, too.
    x = jax.image.resize(x, (len(x), *size), "bilinear", antialias=False)
    return jax.nn.sigmoid(x)


def channels(values):
    """[D] -> [1, 1, 1, D]."""
    return values[None, None, None]


def upsample(x, kernel):
    """PyTorch's ConvTranspose2d(kernel_size=4, stride=2, padding=1), without its bias.

    x: [B, h, w, I]
    kernel: [I, O, 4, 4]
    Returns [B, 2 h, 2 w, O]. A pixel of each parity reads 2 x 2 of the input, by every
    other row and column of the kernel: a quarter of the products of a convolution of
    the input with zeros between its pixels.
    """
    batch, height, width, _ = x.shape
    parities = [
        lax.conv_general_dilated(
            x,
            kernel[:, :, 3 - row :: -2, 3 - column :: -2],
            window_strides=(1, 1),
            padding=[(1 - row, row), (1 - column, column)],
            dimension_numbers=("NHWC", "IOHW", "NHWC"),
        )
        for row in (0, 1)
        for column in (0, 1)
    ]
    x = jnp.stack(parities, axis=3).reshape(batch, height, width, 2, 2, -1)
    return jnp.swapaxes(x, 2, 3).reshape(batch, 2 * height, 2 * width, -1)


def overlap(ours, theirs):
    """IoU of the pixels above THRESHOLD. [B, ..] twice -> [B]; NaN: theirs has none."""
    axes = tuple(range(1, theirs.ndim))
    ours, theirs = ours > THRESHOLD, theirs > THRESHOLD
    shared, either = (ours & theirs).sum(axis=axes), (ours | theirs).sum(axis=axes)
    some = theirs.any(axis=axes)
    return np.where(some, shared / np.maximum(either, 1), np.nan)


class Maps:
    """Maps of one checkpoint on the images of a Context, by reduction.

    fills: how many ways --fill may name
    """

    def __init__(self, context, fills=1):
        self.context, self.weights = context, context.pretrained
        asked, path = context.settings, context.settings.decoder
        if not {*asked.fill} <= {*FILLS} or len(asked.fill) > fills:
            number = "one" if fills == 1 else "one or more"
            asked.refuse("fill", f"{number} of {', '.join(FILLS)}")
        if path is None:
            raise InputError(
                "--decoder is missing: the weights file of a head that makes saliency "
                "maps of the features"
            )
        self.head = read_head(path, self.weights.config.embed_dim)
        content = pathlib.Path(path).read_bytes()
        self.digest = hashlib.sha256(content).hexdigest()[:16]

    def draw(self, reduction, fill: str, tokens: int | None = None):
        """The model, its maps [images, H, W], and the share of patches that each drops.

        tokens: as `imagepiece_jax.features` takes them
        """
        vit = self.weights.pretrained(reduction)
        model, size = leaving(vit, tokens), sides(vit.image_size)
        norm = final_norm(model, vit.variables)
        grid = patch_grid(size, model.patch_size, cut=True)

        def measure(outputs, batch):
            patches = feature_map(outputs, grid, fill, norm)
            held = outputs.state.size[:, outputs.state.num_prefix :].sum(axis=1)
            return {
                "map": decode(self.head, patches, size),
                "dropped": 1 - held / math.prod(grid),
            }

        each = self.context.measurement(model, vit.variables, measure)()
        return model, each["map"], each["dropped"]

    @functools.cached_property
    def dense(self):
        """The dense model's maps."""
        return self.draw(settings.DENSE, "last")[1]

    def floor(self):
        """Figures of the mean of all other images' dense maps, as if it were a map."""
        if len(self.context.images) < 2:
            raise InputError("--data has 1 image; allowed: 2 or more")

        def measured():
            dense = self.dense
            flat = of_other_images(dense.reshape(len(dense), -1))
            return figures(flat.reshape(dense.shape), dense)

        setting = self.setting(settings.DENSE, FLOOR)
        return self.context.cache.result(setting, measured, "the dense maps")

    def setting(self, reduction, fill, tokens=None):
        """What decides the figures of a reduction."""
        checkpoint = self.context.checkpoint(self.weights, tokens=tokens)
        setting = checkpoint.setting("saliency", reduction)
        return setting | {"decoder": self.digest, "fill": fill}

    def is_measured(self, reduction, fill):
        """Whether `compare` has its result already."""
        return self.setting(reduction, fill) in self.context.cache

    def compare(self, reduction, fill, tokens=None):
        """Figures of each image beside the dense model's, as JSON has them."""

        def measured():
            dense = self.dense
            model, ours, dropped = self.draw(reduction, fill, tokens)
            return figures(ours, dense) | {
                "dropped": round(float(np.mean(dropped)), 5),
                **plan_facts(model, self.weights.config.image_size),
            }

        setting = self.setting(reduction, fill, tokens)
        what = f"maps of {settings.label(reduction)}, {len(self.context.images)} images"
        return self.context.cache.result(setting, measured, what)


def figures(ours, theirs) -> dict:
    """Correlation and IoU of each image, JSON values: IoU is null where there is none.

    ours, theirs: maps [B, H, W]; extra: the images where ours alone has a pixel above
    THRESHOLD.
    """
    alike = correlation(*(maps.reshape(len(maps), -1) for maps in (ours, theirs)))
    shared = overlap(ours, theirs)
    extra = np.isnan(shared) & (ours > THRESHOLD).any(axis=(1, 2))
    return {
        "correlation": [round(float(value), 5) for value in alike],
        "iou": [None if np.isnan(v) else round(float(v), 5) for v in shared],
        "extra": int(extra.sum()),
    }


def saliency(context):
    """Every method without learned parts at shares of the dense MACs; saliency.md."""
    asked = context.settings
    maps, shares = Maps(context, len(FILLS)), sorted(set(asked.shares), reverse=True)
    checkpoint = context.checkpoint(context.pretrained)
    entries, left_out = compare.match(checkpoint, shares, asked.methods)
    floor = maps.floor()
    rows = _measured(maps, entries, asked.fill)
    plot, curves = context.out / "saliency.png", _curves(rows)
    if curves:
        render.curves(plot, "share of the dense MACs", "IoU to dense maps", curves)
    render.page(
        context,
        "saliency",
        "which reduction keeps a map",
        _facts(checkpoint, floor),
        _by_share(rows, shares),
        f"![IoU by share of the dense MACs]({plot.name})" * bool(curves),
        _settings(rows, floor),
        compare_tables.absent_table({"left_out": left_out}),
    )


def _measured(maps, near, fills):
    """(MatchedMethod, fill, figures) of each; one fill where nothing is dropped."""
    rows, waiting = [], near
    for fill in fills:
        results = compare.measure_all(
            [entry.reduction for entry in waiting],
            functools.partial(maps.is_measured, fill=fill),
            functools.partial(maps.compare, fill=fill),
        )
        pairs = [*zip(waiting, results, strict=True)]
        rows += [(e, fill if r["dropped"] else None, r) for e, r in pairs]
        waiting = [entry for entry, result in pairs if result["dropped"]]
    return sorted(rows, key=lambda row: near.index(row[0]))


def _estimate(result, name, base=None):
    """Mean over images, less that of `base`, by bootstrap; None where there is none."""
    values = np.array(result[name], float)
    values = values if base is None else values - np.array(base[name], float)
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    return statistics.bootstrap(lambda index: float(values[index].mean()), len(values))


def _mean(result, name):
    """Mean over images; 0 for an IoU that no image has."""
    values = [value for value in result[name] if value is not None]
    return float(np.mean(values or 0))


def _label(entry, fill):
    return entry.method if fill is None else f"{entry.method}, {fill}"


def _curves(rows):
    """{method: [(share, Estimate)]}, the best first; methods that have an IoU."""
    curves = {}
    for entry, fill, result in rows:
        if estimate := _estimate(result, "iou"):
            curves.setdefault(_label(entry, fill), []).append((entry.share, estimate))
    return {label: curves[label] for label in _order(rows) if label in curves}


def _order(rows):
    """Labels by how far they are behind the highest IoU, on average over the shares."""
    best, behind = {}, {}
    for entry, _, result in rows:
        best[entry.share] = max(best.get(entry.share, 0), _mean(result, "iou"))
    for entry, fill, result in rows:
        lost = best[entry.share] - _mean(result, "iou")
        behind.setdefault(_label(entry, fill), []).append(lost)
    return sorted(behind, key=lambda label: np.mean(behind[label]))


def _facts(checkpoint, floor):
    """Table of what was measured, and the line that says how to read the others."""
    images, weights = checkpoint.images, checkpoint.weights
    without = floor["iou"].count(None)
    head = ["weights", "images", "pixels a side", "dense GMACs, without head"]
    row = [f"`{weights.name}`", images.text, images.image_size]
    row += [f"{weights.gmacs(settings.DENSE):.3f}"]
    head += [f"dense maps without a pixel above {THRESHOLD:g}"]
    return (
        f"{render.table(head, [[*row, without]])}\n\nCorrelation / IoU with the dense "
        "maps; brackets are 95 % intervals by bootstrap over images."
    )


def _by_share(rows, shares):
    """Table of methods by shares."""
    cells = {
        (_label(entry, fill), entry.share): (
            f"{_mean(result, 'correlation'):.3f} / {_mean(result, 'iou'):.3f}"
        )
        for entry, fill, result in rows
    }
    lines = [
        [f"`{label}`", *(cells.get((label, share)) for share in shares)]
        for label in _order(rows)
    ]
    head = ["share of the dense MACs", *(f"{share:g}" for share in shares)]
    return render.table(head, lines)


def _settings(rows, floor):
    """Table of every setting, by share and IoU, the floor last."""
    references = {
        (entry.method, entry.share): result
        for entry, _, result in reversed(rows)  # the first fill
        if entry.method in BASES
    }
    lines = []
    for entry, fill, result in sorted(
        rows, key=lambda row: (-row[0].share, -_mean(row[2], "iou"))
    ):
        line = [f"{entry.share:g}", f"`{entry.method}`"]
        line += [compare_tables.fields(entry.shown), FILLED.get(fill, fill)]
        line += [f"{result['gmacs']:.3f}", result["tokens"]]
        line += cells(result)
        for name in BASES:
            base = references.get((name, entry.share))
            change = base and entry.method != name and _estimate(result, "iou", base)
            line.append(statistics.format_difference(change or None, 3))
        lines.append(line)
    blank = [None] * len(BASES)
    lines.append([None, FLOOR, *[None] * 4, *cells(floor), *blank])
    head = ["share", "method", "setting", "dropped patches get", "GMACs"]
    head += [render.TOKENS_LEFT, *HEAD]
    head += [f"IoU, to {compare_tables.NAMES[name]}" for name in BASES]
    return render.table(head, lines)


def cells(result):
    """Figures as text, a cell for each of HEAD."""
    figures = (_estimate(result, name) for name in ("correlation", "iou"))
    return [*(statistics.format_estimate(f, 3) for f in figures), result["extra"]]


def picture(context):
    """Tokens and maps of photographs, dense and with two methods; saliency-picture.png.

    It draws every image of --data: take few (--limit).
    """
    maps, weights = Maps(context), context.pretrained
    entries, _ = compare.match(context.checkpoint(weights), [SHARE], PICTURED)
    near = {entry.method: entry.reduction for entry in entries}
    reductions = [settings.DENSE, *(near[name] for name in PICTURED if name in near)]
    batches, fill = context.images.batches(), context.settings.fill[0]
    images = np.concatenate([batch["image"][batch["mask"] > 0] for batch in batches])
    drawn = [
        (weights.pretrained(reduction), maps.draw(reduction, fill)[1])
        for reduction in reductions
    ]
    dense, rows = drawn[0][1], []
    traces = [tracing.trace(vit.model, vit.variables, images) for vit, _ in drawn]
    for index, image in enumerate(images):
        for (vit, own), trace in zip(drawn, traces, strict=True):
            rows.append(_row(vit, image, trace, own, dense, index))
    path = context.out / "saliency-picture.png"
    plotting.panel_page(path, rows, CAPTION, colors=144)


def _row(vit, image, trace, maps, dense, index):
    """Panels of one photograph and one model: it, its tokens, its map."""
    scale, patches = plotting.enlargement(image), math.prod(trace.grid)
    panels = [
        (vit.label, image.repeat(scale, 0).repeat(scale, 1), f"{vit.gmacs:.2f} GMACs")
    ]
    for block in AFTER:
        before = [stage for stage in trace.stages if stage.block <= block]
        source = before[-1].source[index] if before else np.arange(patches)
        tokens = before[-1].tokens if before else patches
        drawn = plotting.draw_groups(image, source, trace.grid, scale)
        panels.append((f"after block {block}", drawn, f"{tokens} tokens"))
    drawn = plotting.draw_values(
        image, maps[index].ravel(), image.shape[:2], scale=scale
    )
    (iou,) = overlap(maps[[index]], dense[[index]])
    note = "" if vit.reduction == settings.DENSE else f"IoU {iou:.2f}"
    return [*panels, ("map", drawn, note)]
