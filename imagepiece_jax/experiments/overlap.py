"""Table 7: does ToMe merge what the class token attends to most?

Of the tokens that ToMe merges in its first block: how many are among the top k % by
that block's class attention; by chance k %. The paper does not say whether "merged"
are the tokens that leave or also those they are merged into: both are here.
ImagePiece's candidates are the lowest 30 %, so its overlap with the top 70 % is zero by
construction.
"""

from imagepiece_jax.evaluate import statistics
from imagepiece_jax.experiments import analysis, published, render, table2
from imagepiece_jax.experiments.render import estimate
from imagepiece_jax.experiments.rows import Row, find, form

KINDS = {"src": False, "both": True}
IMAGEPIECE = {"name": "imagepiece"}
ROWS = (
    table2.TOME,
    Row("ImagePiece", IMAGEPIECE, "conv"),
    Row("ImagePiece, patch stem", IMAGEPIECE),
)


def run(lab):
    """Measure every model that is there, and write overlap.md."""
    lines = []
    for size, values in published.OVERLAP.items():
        cells = [render.number(value) for value in values]
        lines.append(
            [f"ToMe, {published.SIZES[size]}", f"not said ({published.LABEL})", *cells]
        )
    for row in ROWS:
        models = find(lab, row)
        for kind in KINDS if models else ():
            found = overlaps(lab, *models[0])
            figures = [found[f"{kind} {k}"] for k in published.OVERLAP_K]
            cells = [statistics.format_estimate(estimate(figure)) for figure in figures]
            lines.append([row.name, f"{kind} (measured)", *cells])
    lines.append(["chance", "", *(f"{k}" for k in published.OVERLAP_K)])
    head = ["model", "merged are", *(f"top {k} %" for k in published.OVERLAP_K)]
    note = (
        "src: the tokens that leave; both: and those they are merged into. ImagePiece "
        "merges among the least attended 30 %, so its zeros are by construction. "
        f"{form(lab)} {render.images_note(lab)}"
    )
    title = "merged tokens among the most attended, %"
    render.page(lab, "overlap", title, render.table(head, lines), note)


def overlaps(lab, subject, reduction):
    """Estimates by "src 30", "both 30", ..., percent, of the first reducing block."""
    model = analysis.observed(subject.model(reduction))
    site = next(site for site in analysis.sites(model) if site.merges)

    def measure(outputs, batch):
        result = outputs.results[site.place]
        attention = outputs.taps[site.place].cls_attn
        found = {}
        for kind, both in KINDS.items():
            members = analysis.taking_part(result, site.counts.n_in, both)
            for k in published.OVERLAP_K:
                found[f"{kind} {k}"] = analysis.overlap(members, attention, k)
        return found

    def summarise(arrays):
        names = [name for name in arrays if name != "index"]
        return {name: statistics.mean(arrays[name]) for name in names}

    return lab.inside("overlap", subject, reduction, measure, model, summarise)
