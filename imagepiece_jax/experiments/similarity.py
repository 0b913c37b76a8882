"""Table 6: are tokens still alike when the last ones are merged?

Of an image: mean cosine similarity of the pairs that a step merged, by what it matched
them by (the mean key over heads). The paper shows the mean of the 500 lowest images of
50,000; here it is the lowest 1 %, and the mean of all beside it.
"""

import numpy as np

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import analysis, published, render, table2
from imagepiece_jax.experiments.render import estimate
from imagepiece_jax.experiments.rows import Row, find, form

LOWEST = 0.01  # share of the images
FEW = 10
ROWS = (
    table2.TOME,
    Row("ImagePiece", {"name": "imagepiece"}, "conv"),
    Row("ImagePiece, patch stem", {"name": "imagepiece"}),
)


def run(lab):
    """Measure every model that is there, and write similarity.md."""
    lines = []
    for row in ROWS:
        printed = published.SIMILARITY.get(row.name, (None, None))
        line = [row.name, *(render.number(value, 4) for value in printed)]
        models = find(lab, row)
        if not models:
            lines.append([*line, *[render.BLANK] * 5])
            continue
        found = first_and_last(lab, *models[0])
        gap = estimate(found["gap"])
        lines.append(
            line
            + [
                statistics.format_estimate(estimate(found[f"lowest {at}"]), 4)
                for at in ENDS
            ]
            + [statistics.format_difference(gap, 4)]
            + [
                statistics.format_estimate(estimate(found[f"all {at}"]), 4)
                for at in ENDS
            ]
        )
    head = ["model", *(f"{at} merge, DeiT-S ({published.LABEL})" for at in ENDS)]
    head += [f"{at} merge, lowest 1 %" for at in ENDS] + ["last - first"]
    head += [f"{at} merge, all images" for at in ENDS]
    count = lowest_count(len(lab.images))
    note = (
        f"The lowest 1 % are {count} of {len(lab.images)} images, chosen anew for each "
        f"figure (published: 500 of 50,000). {form(lab)} {render.images_note(lab)}"
    )
    if count < FEW:
        note += f" Of {count} image{'s' * (count > 1)} an interval means little."
    render.page(
        lab, "similarity", "likeness of merged pairs", render.table(head, lines), note
    )


ENDS = ("first", "last")


def lowest_count(images):
    """How many images the lowest share is, at least one."""
    return max(1, round(LOWEST * images))


def lowest(values):
    """Mean of the lowest 1 % of values [images]."""
    return float(np.sort(values)[: lowest_count(len(values))].mean())


def first_and_last(lab, subject, reduction):
    """Estimates by "lowest first", "all last", ..., and their "gap" (of the lowest)."""
    model = analysis.observed(subject.model(reduction))
    merges = [site for site in analysis.sites(model) if site.merges]
    ends = dict(zip(ENDS, (merges[0], merges[-1]), strict=True))

    def measure(outputs, batch):
        return {
            at: analysis.pair_similarity(
                outputs.taps[site.place], outputs.results[site.place]
            )
            for at, site in ends.items()
        }

    def summarise(arrays):
        first, last = (arrays[at].astype(np.float64) for at in ENDS)
        gap = statistics.bootstrap(
            lambda index: lowest(last[index]) - lowest(first[index]), len(first)
        )
        found = {"gap": gap}
        for at, values in (("first", first), ("last", last)):
            found[f"all {at}"] = statistics.mean(values)
            found[f"lowest {at}"] = statistics.bootstrap(
                lambda index, values=values: lowest(values[index]), len(values)
            )
        return found

    return lab.inside("similarity", subject, reduction, measure, model, summarise)
