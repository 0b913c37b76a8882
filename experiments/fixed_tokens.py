"""What is left with exactly K tokens: accuracy, speed, and neighbors of their mean.

python -m experiments.fixed_tokens --weights FILE --data csv:FILE --resize none \\
    --sweep tome --sweep evit [--counts 128,64,32] [--images 200] \\
    [--neighbors folder:PATH --memory 1000 --queries 500]

Every method of --sweep, with its knob where it leaves K tokens (`inference.features`,
`leaving`). Speed is that of the programs of `optimize(tokens=K)`, in turns with the
dense one, which gives all patches; ratios are taken round by round. With --neighbors
the class of an image of its val split is that of the nearest of its train split, by the
cosine of the means of their tokens, weighted as in DINO (Caron et al. 2021).
"""

import json
import pathlib

import numpy as np

from imagepiece_jax import cli
from imagepiece_jax.common.files import make_folder, replace_file
from imagepiece_jax.errors import InputError

NEAREST, TEMPERATURE = 20, 0.07  # those of DINO's evaluation
HEAD = ("method", "tokens", "GMACs", "acc1, %", "to dense, points", "img/s")
HEAD += ("ratio", "neighbors, %")

MODEL = cli.trained_model(checkpoint=False)
DATA = cli.data()
RESIZE = cli.resize()
SWEEP = cli.sweep("the methods to compare")
COUNTS = cli.text("counts", "128,64,32", "how many tokens, as a list")
IMAGES = cli.whole("images", None, "so many, spread over the set; default: all", 2)
NEIGHBORS = cli.text("neighbors", None, "another set, for nearest neighbors")
MEMORY = cli.whole("memory", 1000, "images of its train split", NEAREST)
QUERIES = cli.whole("queries", 500, "images of its val split", 2)
AT_ONCE = cli.whole("at_once", 8, "images at a time", 1)
TIMING = cli.timing()
OUT = cli.text("out", None, "folder of the table; default: runs/fixed_tokens")


def main():
    # They import JAX: after the flags.
    from imagepiece_jax.common.tables import text_table
    from imagepiece_jax.common.timer import Rules
    from imagepiece_jax.data.sources import short_name
    from imagepiece_jax.data.transforms import EvalTransform
    from imagepiece_jax.inference.features import leaving
    from imagepiece_jax.pretrained.load import read_with_config
    from imagepiece_jax.reduction import settings
    from imagepiece_jax.reduction.sweep_text import parse_sweeps

    typed, data, counts = MODEL(), cli.required(DATA), parse_counts(COUNTS.value)
    if not SWEEP.value:
        raise InputError("--sweep is missing: name methods, such as --sweep tome")
    out = pathlib.Path(OUT.value or "runs/fixed_tokens")
    weights = read_with_config(**typed)[1].analyzed()
    dense = weights.pretrained(settings.DENSE)
    vits = [weights.pretrained(reduction) for reduction in parse_sweeps(SWEEP.value)]
    entries = [(dense, dense.model.plan[-1].mlp_tokens - dense.model.arch.prefix)]
    entries += [(vit, tokens) for vit in vits for tokens in counts]
    for vit, tokens in entries:
        leaving(vit, tokens)  # every mistake before the first figure
    resize = RESIZE.value or weights.resize
    transform = EvalTransform(weights.config.image_size, resize, **weights.crop)
    sets = {"images": read(data, "val", IMAGES.value, transform)}
    if NEIGHBORS.value:
        # Of another size and crop than --data: the model's own.
        own = EvalTransform(weights.config.image_size, weights.resize, **weights.crop)
        sets["memory"] = read(NEIGHBORS.value, "train", MEMORY.value, own)
        sets["queries"] = read(NEIGHBORS.value, "val", QUERIES.value, own)
    make_folder("--out", out)
    rows = []
    for row in measured(entries, sets, AT_ONCE.value, Rules(*TIMING())):
        rows.append(row)
        print("  ".join(cells(row)), flush=True)
    note = (
        f"{len(sets['images'][1])} images of {short_name(data)}, weights "
        f"{weights.name}; batches of {AT_ONCE.value}; 95 % intervals, of img/s and "
        "ratios the lowest and highest round"
    )
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    replace_file(out / "fixed_tokens.json", json.dumps(rows, indent=1) + "\n")
    replace_file(out / "fixed_tokens.md", f"{text}\n\n{note}\n")
    print(text_table([HEAD, *map(cells, rows)]))
    print(f"{note}; table: {out / 'fixed_tokens.md'}")


def parse_counts(text):
    """The whole numbers of a list such as "128,64"."""
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--counts is {text!r}; allowed is a list such as 128,64,32")
    return [int(part) for part in parts]


def read(data, split, count, transform):
    """`count` images spread over a split, uint8 [B, H, W, 3], and their labels [B]."""
    from imagepiece_jax.data.decode import UnreadableImage
    from imagepiece_jax.data.sources import open_source

    source, images, labels = open_source(data, split), [], []
    count = min(count or len(source), len(source))
    for index in np.linspace(0, len(source) - 1, count).astype(int):
        try:
            image, label = source.read(int(index))
        except UnreadableImage:
            continue
        images.append(transform(image))
        labels.append(label)
    return np.stack(images), np.asarray(labels)


def measured(entries, sets, batch, rules):
    """Yield a row for each (Pretrained, tokens); the first is the dense model."""
    from imagepiece_jax.evaluate import statistics
    from imagepiece_jax.reduction import settings

    paces, base = speeds(entries, sets["images"][0], batch, rules), None
    for (vit, tokens), (rate, ratio) in zip(entries, paces, strict=True):
        run = program(vit, tokens, batch)
        row = {"method": settings.label(vit.reduction), "tokens": tokens}
        row |= {"gmacs": run.gmacs, "img_s": rate, "ratio": ratio}
        if vit.model.num_classes:
            images, labels = sets["images"]
            right = run(images)[0].argmax(axis=1) == labels
            base = right if base is None else base
            row["acc1"] = list(map(float, statistics.accuracy(right)))
            row["points"] = list(map(float, statistics.paired_difference(right, base)))
        if "memory" in sets:
            (memory, names), (queries, truth) = sets["memory"], sets["queries"]
            votes = nearest_classes(run(memory)[1], names, run(queries)[1])
            row["neighbors"] = list(map(float, statistics.accuracy(votes == truth)))
        yield row


def program(vit, tokens, batch):
    """A function of uint8 images -> (logits, means of the tokens), with its GMACs."""
    import jax

    from imagepiece_jax.data.normalize import as_normalized
    from imagepiece_jax.inference.features import leaving
    from imagepiece_jax.models.cost import model_macs

    model = leaving(vit, tokens)

    @jax.jit
    def forward(variables, images):
        images = as_normalized(images, model.mean, model.std)
        outputs = model.apply(variables, images)
        return outputs.logits, outputs.tokens[:, model.arch.prefix :].mean(axis=1)

    def run(images):
        parts = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            missing = batch - len(part)
            padded = np.pad(part, ((0, missing), (0, 0), (0, 0), (0, 0)))
            results = forward(vit.variables, padded)
            parts.append([np.asarray(result)[: len(part)] for result in results])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    run.gmacs = model_macs(model, vit.image_size) / 1e9
    return run


def speeds(entries, images, batch, rules):
    """(img/s, ratio to the first) of each entry, a Spread each, in turns."""
    from imagepiece_jax.common import timer
    from imagepiece_jax.inference.optimize import optimize

    images = np.resize(images, (batch, *images.shape[1:]))
    programs = [
        optimize(vit, batch_size=batch, tokens=tokens, pixels=True)
        for vit, tokens in entries
    ]
    jobs = {
        place: timer.job(lambda number, run=run: run(images))
        for place, run in enumerate(programs)
    }
    seconds = timer.measure(jobs, rules)
    for readings in seconds.values():
        rate = timer.spread([batch / reading for reading in readings])
        yield rate, timer.spread(timer.speedups(seconds[0], readings))


def nearest_classes(memory, labels, queries):
    """Class of each query by its NEAREST in the memory. [m, D], [m], [q, D] -> [q]."""
    memory, queries = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (memory, queries)
    )
    alike = queries @ memory.T
    first = np.argsort(-alike, axis=1, kind="stable")[:, :NEAREST]
    weight = np.exp(np.take_along_axis(alike, first, axis=1) / TEMPERATURE)
    votes = [weight * (labels[first] == each) for each in np.unique(labels)]
    return np.unique(labels)[np.stack(votes).sum(axis=2).argmax(axis=0)]


def cells(row):
    """A row of the table as text."""

    def estimate(name, digits):
        if name not in row:
            return ""
        value, low, high = row[name]
        return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    return (
        row["method"],
        str(row["tokens"]),
        f"{row['gmacs']:.3f}",
        estimate("acc1", 1),
        estimate("points", 1),
        estimate("img_s", 1),
        estimate("ratio", 2),
        estimate("neighbors", 1),
    )


if __name__ == "__main__":
    cli.run(main)
