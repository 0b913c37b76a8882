"""How good are the feature maps that reduced models give back? A table for weights.

python -m imagepiece_jax.evaluate.patch_features \\
    --weights FILE_OR_WORKDIR --data csv:FILE \\
    --sweep imagepiece --sweep tome:r=8 --sweep evit:keep_rate=.7 [--images 100]

Every method's map (`dense.feature_map`, after the final norm) is compared with that of
the dense model on the same images; `dense_agreement` says by what. Methods that drop
patches have a row for each way to fill them. Sizes and stem come from the run or the
weights, else from --config.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from imagepiece_jax import cli
from imagepiece_jax.common import tables
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import feature_agreement as agreement
from imagepiece_jax.models import features

cli.define_config()
WEIGHTS = cli.weights()
NORMALIZATION = cli.normalization()
DATA = cli.data()
SWEEP = cli.sweep("the methods to compare")
IMAGES = flags.DEFINE_integer(
    "images", None, "so many, spread over the set; default: 100", allow_override=True
)
OUT = flags.DEFINE_string(
    "out",
    None,
    "folder of the table, replaced if there; default: runs/dense",
    allow_override=True,
)

BATCH = 10
FEWEST = 4  # images: half of them remember, the others are asked, and both vary
FATES = ("alone", "merged", "dropped")
FILLED = {"last": "their last feature", "zero": "zero", "class": "the class token's"}
POSITION = "position alone"
HEAD = [
    *("setting", "dropped patches get", "tokens", "GMACs", "self-similarity", "probe"),
    *(f"cosine, {fate}" for fate in FATES),
]


def main():
    path, data = cli.required(WEIGHTS), cli.required(DATA)
    if not SWEEP.value:
        raise InputError("--sweep is missing: name methods, such as --sweep tome:r=8")
    normalization = NORMALIZATION()
    count = 100 if IMAGES.value is None else IMAGES.value
    if count < FEWEST:
        raise InputError(f"--images is {count}; allowed are {FEWEST} or more")
    from imagepiece_jax import variants
    from imagepiece_jax.common.files import make_folder, replace_file
    from imagepiece_jax.evaluate import sweep
    from imagepiece_jax.experiments.render import short

    settings = [setting for text in SWEEP.value for setting in sweep.parse(text)]
    settings = [setting for setting in settings if setting["name"] != "none"]
    out = pathlib.Path(OUT.value or "runs/dense")
    whole, *reduced = variants.variants(
        path, [{"name": "none"}, *settings], cli.config(required=False), normalization
    )
    images = read(data, whole, count)
    make_folder("--out", out)
    rows = []
    print("  ".join(HEAD), flush=True)
    for row in compare(whole, reduced, images):
        rows.append(row)
        print("  ".join(cell or "-" for cell in _cells(row)), flush=True)
    replace_file(out / "dense.json", json.dumps(rows, indent=1) + "\n")
    of = f"{len(images)} images of {short(data)}, weights {pathlib.Path(path).name}"
    replace_file(out / "dense.md", table(rows, of))
    print(f"{len(images)} images; table: {out}/dense.md, data: {out}/dense.json")


def read(data, variant, count):
    """`count` images of a set, spread over it, as uint8 [B, S, S, 3].

    Images of the model's size are taken as they are, unreadable ones are left out.
    """
    from imagepiece_jax.data.decode import UnreadableImage
    from imagepiece_jax.data.sources import open_source
    from imagepiece_jax.data.transforms import fitted

    source = open_source(data, "val", num_classes=variant.model.num_classes)
    images, side = [], variant.image_size
    for index in np.linspace(0, len(source) - 1, min(count, len(source))).astype(int):
        try:
            image, _ = source.read(int(index))
        except UnreadableImage:
            continue
        images.append(fitted(image, side))
    if len(images) < FEWEST:
        raise InputError(
            f"--data {data} has {len(images)} readable images; allowed are {FEWEST} or "
            "more"
        )
    return np.stack(images)


def compare(whole, reduced, images):
    """Rows of the table, as they come: the dense model, what position tells, methods.

    whole: the Variant without reduction; reduced: the others; images: uint8.
    """
    theirs, _, tokens = maps(whole, images)
    theirs = theirs["last"]
    memory = np.arange(len(images)) % 2 == 0
    pairs = agreement.self_similarity(theirs)
    labels = agreement.cluster_labels(theirs, memory)

    def figures(ours, right):
        alike = agreement.correlation(ours, pairs)
        return {
            "self_similarity": agreement.over_images(alike),
            "probe": agreement.over_images(right),
        }

    right = agreement.probe(theirs, labels, memory)
    told = {"setting": "dense", "tokens": tokens, "gmacs": whole.gmacs}
    yield told | figures(pairs, right)
    right = agreement.probe_position(labels, memory)
    yield {"setting": POSITION} | figures(agreement.of_other_images(pairs), right)
    for variant in reduced:
        ours, fate, tokens = maps(variant, images)
        told = {"setting": variant.label, "tokens": tokens, "gmacs": variant.gmacs}
        drops = "dropped" in fate
        fills = [fill for fill in features.FILLS if fill in ours]
        for fill in fills if drops else fills[:1]:
            near = agreement.cosine(ours[fill], theirs)
            told["fill"] = fill if drops else None
            told["cosine"] = {
                f: float(near[fate == f].mean()) for f in FATES if f in fate
            }
            right = agreement.probe(ours[fill], labels, memory)
            yield told | figures(agreement.self_similarity(ours[fill]), right)


def table(rows, images):
    """The rows as a Markdown table; `images` says how many and which."""
    lines = tables.markdown(HEAD, map(_cells, rows))
    note = f"{images}; 95 % intervals; the probe is asked about half of them."
    return "\n".join(lines) + f"\n\n{note}\n"


def _cells(row):
    near = row.get("cosine", {})
    return [
        row["setting"],
        FILLED.get(row.get("fill"), ""),
        str(row.get("tokens", "")),
        f"{row['gmacs']:.3f}" if "gmacs" in row else "",
        str(row["self_similarity"]),
        str(row["probe"]),
        *(f"{near[fate]:.3f}" if fate in near else "" for fate in FATES),
    ]


def maps(variant, images):
    """(maps [B, n, D] by fill, fate [B, n] of each patch, image tokens at the end).

    A fate is "alone", "merged" or "dropped"; after a soft reduction all are merged.
    """
    parts = [
        jax.device_get(_maps(variant.variables, images[i : i + BATCH], variant.model))
        for i in range(0, len(images), BATCH)
    ]
    features, behind = jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
    fate = np.array(FATES)[np.select([behind == 1, behind > 1], [0, 1], 2)]
    prefix = int(variant.model.class_token)
    return features, fate, variant.model.plan[-1].mlp_tokens - prefix


@functools.partial(jax.jit, static_argnames="model")
def _maps(variables, images, model):
    """Maps by fill, and the patches behind each patch's token, 0 where it is gone."""
    from imagepiece_jax.data.normalize import normalize
    from imagepiece_jax.reduction.tokens import unmerge

    images = normalize(images, model.mean, model.std)
    with jax.default_matmul_precision("highest"):  # or TF32 on GPUs
        outputs = model.clone(trace_source=True).apply(variables, images)
    side = images.shape[1] // model.patch_size
    norm = features.final_norm(variables)
    fills = [fill for fill in features.FILLS if fill != "class" or model.class_token]
    features = {
        fill: features.feature_map(outputs, (side, side), fill, norm) for fill in fills
    }
    features = {k: v.reshape(v.shape[0], side * side, -1) for k, v in features.items()}
    state = outputs.state
    if state.source is None:
        return features, jnp.full(features["last"].shape[:2], 2.0)
    size = state.size[:, state.num_prefix :, None]
    return features, unmerge(size, state.source)[..., 0]


if __name__ == "__main__":
    cli.run(main)
