"""Table 8: are the tokens that a convolutional stem makes more alike?

The likeness of the pairs of ImagePiece's first merge (as `similarity`), over all pairs
that could have been merged, and how far apart on the image the merged ones are.
"""

import numpy as np

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import analysis, published, render
from imagepiece_jax.experiments.render import estimate
from imagepiece_jax.experiments.rows import Row, find, form
from imagepiece_jax.experiments.similarity import lowest

IMAGEPIECE = {"name": "imagepiece"}
ROWS = {stem: Row(f"{stem} stem", IMAGEPIECE, stem) for stem in ("patch", "conv")}
FIGURES = {
    "lowest": "merged pairs, lowest 1 %",
    "pairs": "merged pairs, all images",
    "candidates": "all pairs of candidates",
    "distance": "distance of merged pairs, patches",
}


def run(lab):
    """Measure the stems that there are models for, and write lcb-similarity.md."""
    lines = []
    for stem, row in ROWS.items():
        line = [row.name, render.number(published.LCB_SIMILARITY[stem], 4)]
        models = find(lab, row, matched=False, stems=("patch", "conv"))
        if not models:
            lines.append([*line, "", *[render.BLANK] * len(FIGURES)])
        for subject, reduction in models:
            found = first_merge(lab, subject, reduction)
            cells = [
                statistics.format_estimate(estimate(found[name]), 3) for name in FIGURES
            ]
            lines.append([*line, subject.seed, *cells])
    head = ["model", f"DeiT-S, lowest 1 % ({published.LABEL})", "seed"]
    note = f"Of ImagePiece's first merge. {form(lab)} {render.images_note(lab)}"
    if lab.small is not None:
        note += " Here the convolutional stem is fresh, and has learned little."
    render.page(
        lab,
        "lcb-similarity",
        "likeness of candidates by stem",
        render.table([*head, *FIGURES.values()], lines),
        note,
    )


def first_merge(lab, subject, reduction):
    """Estimates by the names of FIGURES."""
    model = analysis.observed(subject.model(reduction))
    site = next(site for site in analysis.sites(model) if site.merges)
    width = subject.image_size // model.patch_size

    def measure(outputs, batch):
        result, taps = outputs.results[site.place], outputs.taps[site.place]
        return {
            "pairs": analysis.pair_similarity(taps, result),
            "candidates": analysis.candidate_similarity(taps, site.counts),
            "distance": analysis.pair_distance(result, width),
        }

    def summarise(arrays):
        pairs = arrays["pairs"].astype(np.float64)
        found = {name: statistics.mean(arrays[name]) for name in list(FIGURES)[1:]}
        found["lowest"] = statistics.bootstrap(lambda i: lowest(pairs[i]), len(pairs))
        return found

    return lab.inside("lcb-similarity", subject, reduction, measure, model, summarise)
