"""Exactly K tokens: accuracy, maps, speed, nearest neighbors of their mean.

Every method of --sweep, at the strength that leaves K tokens (`inference.features`,
`Pretrained.model_with_tokens`), beside the dense model, which gives all patches. Speed
is that of programs of `optimize(tokens=K)`. With --decoder saliency maps are compared
with the dense ones (`experiments saliency`). With --neighbors the class of an image of
its val split is that of the nearest of its train split, by the cosine of the means of
their tokens, weighted as in DINO (Caron et al. 2021).
"""

import itertools

import numpy as np

from experiments import render
from experiments.context import Answers
from experiments.dense_maps.maps import HEAD, FeatureMaps, HeadMaps, cells
from experiments.images import Images
from imagepiece_jax.errors import within
from imagepiece_jax.evaluate import statistics
from imagepiece_jax.evaluate.cache import encode_bits
from imagepiece_jax.models.cost import model_macs
from imagepiece_jax.reduction import settings

NEAREST, TEMPERATURE = 20, 0.07  # those of DINO's evaluation


def fixed_tokens(context):
    """Every reduction of --sweep at each of --counts; fixed_tokens.md."""
    weights, given = context.pretrained, context.settings
    dense = weights.model_with(settings.DENSE)
    entries = [(settings.DENSE, dense.image_tokens)]
    entries += itertools.product(context.reductions, given.counts)
    # Every mistake before the first figure.
    with within(place="--counts"):
        models = [
            weights.with_reduction(r, weights.source.seed).model_with_tokens(tokens)
            for r, tokens in entries
        ]
    maps = HeadMaps(context) if given.decoder else None
    sets = _sets(context) if given.neighbors else None
    rows, base = [], None
    for (reduction, tokens), model in zip(entries, models, strict=True):
        checkpoint = context.checkpoint(weights, tokens=tokens)
        macs = model_macs(model, weights.image_size)
        row = {"method": f"`{settings.label(reduction)}`", "tokens": tokens}
        row["GMACs"] = f"{macs / 1e9:.3f}"
        if weights.model.num_classes:
            right = Answers(checkpoint.evaluate(reduction)).right
            base = right if base is None else base
            change = statistics.paired_difference(right, base)
            row["acc1, %"] = statistics.format_estimate(statistics.accuracy(right))
            row["to dense, points"] = statistics.format_difference(change)
        if maps:
            figures = maps.compare(reduction, given.fills[0], tokens)
            row |= zip(HEAD, cells(figures), strict=True)
        if given.speed:
            speed = checkpoint.speed(reduction)
            row["img/s"] = f"{speed['throughput']:.1f}"
            row["times as fast as dense"] = render.speed_cell(speed)
        if sets:
            votes = _neighbors(context, reduction, tokens, *sets)
            row["neighbors, %"] = statistics.format_estimate(votes)
        rows.append(row)
    parts = [render.rows(rows), render.note(context)]
    if given.speed:
        parts.append(f"Speeds: {render.timing(given)}.")
    if sets:
        memory, queries = sets
        text = f"Neighbors: {queries.text} by their {NEAREST} nearest of {len(memory)}."
        parts.append(text)
    render.page(context, "fixed_tokens", "exactly so many tokens", *parts)


def _sets(context):
    """Images of --neighbors, as the model takes them: its memory, and the queries."""
    weights, given = context.pretrained, context.settings
    name, side = given.neighbors, weights.image_size
    fields = {"batch_size": given.eval_batch_size, "workers": given.readers}
    fields["crop"] = weights.preprocessing.options
    return (
        Images.open(name, None, side, split="train", limit=given.memory, **fields),
        Images.open(name, None, side, split="val", limit=given.queries, **fields),
    )


def _neighbors(context, reduction, tokens, memory, queries):
    """Accuracy of `nearest_classes`, by the means of the queries' tokens."""
    maps = FeatureMaps(context)
    prefix = context.pretrained.model.arch.prefix

    def read(outputs, batch, patches):
        mean = outputs.tokens[:, prefix:].mean(axis=1)
        return {"mean": mean, "label": batch["label"]}

    def measured():
        bank, own = (
            maps.run(reduction, read, tokens, images)[1] for images in (memory, queries)
        )
        nearest = nearest_classes(bank["mean"], bank["label"], own["mean"])
        right = nearest == own["label"]
        return {"right": encode_bits(right), "images": len(right)}

    sets = {"images": queries, "memory": memory.setting}
    found = maps.result("neighbors", reduction, measured, tokens=tokens, **sets)
    return statistics.accuracy(Answers(found).right)


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
