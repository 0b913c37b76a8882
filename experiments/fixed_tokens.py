"""What is left with exactly K tokens: accuracy, maps, speed, neighbors of their mean.

Every method of --sweep, at the strength that leaves K tokens (`inference.features`,
`leaving`), beside the dense model, which gives all patches. Speed is that of programs
of `optimize(tokens=K)`. With --decoder saliency maps are compared with the dense ones
(`experiments saliency`). With --neighbors the class of an image of its val split is
that of the nearest of its train split, by the cosine of the means of their tokens,
weighted as in DINO (Caron et al. 2021).
"""

import itertools

import numpy as np

from experiments import render, saliency
from experiments.context import Answers
from experiments.images import Images
from imagepiece_jax.data.sources import short_name
from imagepiece_jax.errors import InputError
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import encode_bits
from imagepiece_jax.inference.features import leaving
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.reduction import settings

NEAREST, TEMPERATURE = 20, 0.07  # those of DINO's evaluation


def fixed_tokens(context):
    """Every reduction of --sweep at each of --counts; fixed_tokens.md."""
    weights, asked = context.pretrained, context.settings
    dense = weights.model(settings.DENSE)
    entries = [(settings.DENSE, dense.image_tokens)]
    entries += itertools.product(context.reductions, asked.counts)
    # Every mistake before the first figure.
    try:
        models = [leaving(weights.pretrained(r), tokens) for r, tokens in entries]
    except InputError as error:
        raise InputError(f"--counts: {error}") from error
    maps = saliency.Maps(context) if asked.decoder else None
    sets = _sets(context) if asked.neighbors else None
    rows, base = [], None
    for (reduction, tokens), model in zip(entries, models, strict=True):
        checkpoint = context.checkpoint(weights, tokens=tokens)
        macs = model_macs(model, weights.config.image_size)
        row = {"method": f"`{settings.label(reduction)}`", "tokens": tokens}
        row["GMACs"] = f"{macs / 1e9:.3f}"
        if weights.config.num_classes:
            right = Answers(checkpoint.evaluate(reduction)).right
            base = right if base is None else base
            change = statistics.paired_difference(right, base)
            row["acc1, %"] = statistics.format_estimate(statistics.accuracy(right))
            row["to dense, points"] = statistics.format_difference(change)
        if maps:
            figures = maps.compare(reduction, asked.fill[0], tokens)
            row |= zip(saliency.HEAD, saliency.cells(figures), strict=True)
        if asked.speed:
            speed = checkpoint.speed(reduction)
            row["img/s"] = f"{speed['throughput']:.1f}"
            row["times as fast as dense"] = render.speed_cell(speed)
        if sets:
            votes = _neighbors(context, reduction, tokens, *sets)
            row["neighbors, %"] = statistics.format_estimate(votes.accuracy)
        rows.append(row)
    render.page(
        context,
        "fixed_tokens",
        "exactly so many tokens",
        render.table([*rows[0]], [[*row.values()] for row in rows]),
        render.note(context),
        asked.speed and f"Speeds: {render.timing(asked)}.",
        sets
        and f"Neighbors: {len(sets[1])} images of {short_name(asked.neighbors)} by "
        f"their {NEAREST} nearest of {len(sets[0])}.",
    )


def _sets(context):
    """Images of --neighbors, as the model takes them: its memory, and the queries."""
    weights, asked = context.pretrained, context.settings
    return [
        Images.open(
            asked.neighbors,
            None,
            weights.config.image_size,
            split=split,
            limit=count,
            resize=weights.resize,
            batch_size=asked.eval_batch_size,
            workers=asked.readers,
            crop=weights.crop,
        )
        for split, count in (("train", asked.memory), ("val", asked.queries))
    ]


def _neighbors(context, reduction, tokens, memory, queries):
    """Answers to the queries, by `nearest_classes` of the means of their tokens."""
    weights = context.pretrained

    def measured():
        vit = weights.pretrained(reduction)
        model = leaving(vit, tokens)

        def measure(outputs, batch):
            mean = outputs.tokens[:, model.arch.prefix :].mean(axis=1)
            return {"mean": mean, "label": batch["label"]}

        means = context.measurement(model, vit.variables, measure)
        bank, asked = means(memory), means(queries)
        nearest = nearest_classes(bank["mean"], bank["label"], asked["mean"])
        right = nearest == asked["label"]
        return {"right": encode_bits(right), "images": len(right)}

    setting = context.checkpoint(weights, queries, tokens).setting(
        "neighbors", reduction
    )
    what = f"neighbors of {settings.label(reduction)}, {tokens} tokens"
    result = context.cache.result(setting | {"memory": memory.setting}, measured, what)
    return Answers(result)


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
